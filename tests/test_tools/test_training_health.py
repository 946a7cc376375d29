# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Losses that are not finite, data workers that stall."""
import json
import os
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import CONFIG, options, probed, tool
from torch.utils.data import DataLoader

from cris.engine.hooks.data_timeout_hook import data_workers


def train(config, refer_set, *more, ok=False):
    """The log; the work dir is the folder of the data."""
    return tool('train.py', config, '--work-dir', refer_set.root,
                *options(refer_set.root), *more, ok=ok)


@pytest.fixture
def poisoned(tmp_path):
    """A config in which the pictures 2.jpg reach the model as NaN."""
    return probed(tmp_path / 'poisoned.py', """
train_pipeline = _base_.train_pipeline + [dict(type='Poison')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline,
                                     num_expressions=1))
""")


def test_a_loss_that_is_not_finite_ends_the_run(poisoned, refer_set):
    log = train(poisoned, refer_set)
    assert re.search(r'^error: the loss of iteration \d+ is not finite: see '
                     r'.*json\. Look at these samples', log, re.M)
    assert 'Traceback' not in log
    (file, ) = refer_set.root.glob('nonfinite_loss_iter*_rank0.json')
    noted = json.loads(file.read_text())
    paths = [sample['img_path'] for sample in noted['samples']]
    assert any(path.endswith('2.jpg') for path in paths)
    assert noted['loss'] == 'nan' and noted['samples'][0]['expressions']


def test_such_batches_are_skipped_without_a_trace(poisoned, refer_set):
    log = train(poisoned, refer_set, 'default_hooks.check_loss.action=skip',
                ok=True)
    skipped = len(re.findall(r'is not finite: .*; the batch is skipped', log))
    assert skipped >= 2
    last = torch.load(refer_set.root / 'epoch_2.pth', weights_only=False)
    assert last['message_hub']['runtime_info'][
        'num_skipped_batches'] == skipped
    assert all(torch.isfinite(w.float()).all()
               for w in last['state_dict'].values())


def test_a_model_that_is_lost_is_not_skipped_forever(refer_set):
    log = train(CONFIG, refer_set, 'default_hooks.check_loss.action=skip',
                'default_hooks.check_loss.max_in_a_row=2',
                'param_scheduler=None', 'optim_wrapper.optimizer.lr=1e30',
                'train_dataloader.batch_size=1',
                'train_dataloader.dataset.num_expressions=2',
                'train_cfg.max_epochs=9')
    assert 'error: the loss' in log and log.count('batch is skipped') == 2


def test_a_stalled_worker_is_reported_with_its_file(refer_set, tmp_path):
    config = probed(tmp_path / 'config.py', """
train_dataloader = dict(
    dataset=dict(pipeline=[dict(type='Stall'), *_base_.train_pipeline]))
""")
    log = train(config, refer_set, 'train_dataloader.num_workers=2',
                'default_hooks.data_timeout.seconds=2')
    assert 'DataLoader timed out after 2 seconds' in log
    image = refer_set.root / 'images/2.jpg'
    assert re.search(rf'Files being read:\n  worker \d: {image}', log)


def test_a_pipe_among_the_images_is_refused(refer_set):
    """Whoever opened it would wait for a writer."""
    image = refer_set.root / 'images/2.jpg'
    image.unlink()
    os.mkfifo(image)
    log = train(CONFIG, refer_set,
                'train_dataloader.dataset.check_images=False')
    assert f'error: {image} is not a regular file' in log


def test_data_workers_end_with_the_run():
    """Not when the garbage is collected."""
    loader = DataLoader(range(4), num_workers=2, persistent_workers=True)
    runner = SimpleNamespace(
        hooks=[], _train_loop=SimpleNamespace(dataloader=loader),
        _val_loop=dict(type='ValLoop'), _test_loop=None)
    with data_workers(runner):
        list(loader)
        workers = loader._iterator._workers
        assert all(worker.is_alive() for worker in workers)
    assert not any(worker.is_alive() for worker in workers)
