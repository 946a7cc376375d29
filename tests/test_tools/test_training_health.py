# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Losses that are not finite, data workers that stall."""
import json
import os
import re

import pytest
import torch
from conftest import CONFIG, ReferSet, options, tool


@pytest.fixture
def poisoned(tmp_path):
    """A config in which the pictures 2.jpg reach the model as NaN."""
    path = tmp_path / 'poisoned.py'
    path.write_text(f'''
_base_ = {str(CONFIG)!r}
custom_imports = dict(imports=['cris', 'training_probes'],
                      allow_failed_imports=False)
train_pipeline = _base_.train_pipeline + [dict(type='Poison')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline,
                                     num_expressions=1))
''')
    return path


def test_a_loss_that_is_not_finite_ends_the_run(poisoned, tmp_path):
    data = ReferSet(tmp_path / 'refer').write()
    log = tool('train.py', poisoned, '--work-dir', tmp_path, *options(data),
               ok=False)
    assert re.search(r'^error: the loss of iteration \d+ is not finite: see '
                     r'.*json\. Look at these samples', log, re.M)
    assert 'Traceback' not in log
    (file, ) = tmp_path.glob('nonfinite_loss_iter*_rank0.json')
    noted = json.loads(file.read_text())
    paths = [sample['img_path'] for sample in noted['samples']]
    assert any(path.endswith('2.jpg') for path in paths)
    assert noted['loss'] == 'nan' and noted['samples'][0]['expressions']


def test_such_batches_are_skipped_without_a_trace(poisoned, tmp_path):
    data = ReferSet(tmp_path / 'refer').write()
    log = tool('train.py', poisoned, '--work-dir', tmp_path, *options(data),
               'default_hooks.check_loss.action=skip')
    skipped = len(re.findall(r'is not finite: .*; the batch is skipped', log))
    assert skipped >= 2
    last = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    assert last['message_hub']['runtime_info'][
        'num_skipped_batches'] == skipped
    assert all(torch.isfinite(w.float()).all()
               for w in last['state_dict'].values())


def test_a_model_that_is_lost_is_not_skipped_forever(tmp_path):
    data = ReferSet(tmp_path / 'refer').write()
    log = tool('train.py', CONFIG, '--work-dir', tmp_path, *options(data),
               'default_hooks.check_loss.action=skip',
               'default_hooks.check_loss.max_in_a_row=2',
               'param_scheduler=None', 'optim_wrapper.optimizer.lr=1e30',
               'train_dataloader.batch_size=1',
               'train_dataloader.dataset.num_expressions=2',
               'train_cfg.max_epochs=9', ok=False)
    assert 'error: the loss' in log and log.count('batch is skipped') == 2


def test_a_stalled_worker_is_reported_with_its_file(tmp_path):
    data = ReferSet(tmp_path / 'refer').write()
    config = tmp_path / 'config.py'
    config.write_text(f'''
_base_ = {str(CONFIG)!r}
custom_imports = dict(imports=['cris', 'training_probes'],
                      allow_failed_imports=False)
train_dataloader = dict(
    dataset=dict(pipeline=[dict(type='Stall'), *_base_.train_pipeline]))
''')
    cfg = [o for o in options(data) if 'train_dataloader.num_w' not in o
           and 'train_dataloader.pers' not in o]
    log = tool('train.py', config, '--work-dir', tmp_path, *cfg,
               'default_hooks.data_timeout.seconds=2', ok=False)
    assert 'DataLoader timed out after 2 seconds' in log
    image = data / 'images/2.jpg'
    assert re.search(rf'Files being read:\n  worker \d: {image}', log)


def test_a_pipe_among_the_images_is_refused(tmp_path):
    """Whoever opened it would wait for a writer."""
    data = ReferSet(tmp_path / 'refer').write()
    image = data / 'images/2.jpg'
    image.unlink()
    os.mkfifo(image)
    log = tool('train.py', CONFIG, '--work-dir', tmp_path, *options(data),
               'train_dataloader.dataset.check_images=False', ok=False)
    assert f'error: {image} is not a regular file' in log
