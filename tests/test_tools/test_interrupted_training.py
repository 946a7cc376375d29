# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Training that is killed, resumed, preempted: real processes, real signals.

The configuration is the small model with all that could make two runs differ:
dropout, random sentences, shuffling, EMA, a schedule by iteration, data
workers.
"""
import os
import random
import signal
import time

import pytest
import torch
from conftest import CONFIG, ReferSet, start_tool, tool

EPOCH = 5  # iterations
SMALL = [
    'model.decode_head.num_layers=1', 'model.decode_head.dropout=0.1',
    'train_dataloader.batch_size=2',
    'train_dataloader.dataset.num_expressions=1',
    'train_dataloader.dataset.pipeline.3.size=64',
    'val_dataloader.dataset.pipeline.2.size=64',
    'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False',
    'custom_hooks.0.type=EMAHook', 'train_cfg.val_interval=1'
]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    refer_set = ReferSet(tmp_path_factory.mktemp('data') / 'refer')
    for k in range(2 * EPOCH - 4):  # four are there
        refer_set.add_ref(1 + k % 2, [[5, 20, 30, 20, 30, 45]], 'train')
    return refer_set.write()


def arguments(data, work, epochs, *options, workers=2, persistent=True):
    cfg = SMALL + [
        f'{part}_dataloader.dataset.data_root={data}'
        for part in ('train', 'val')
    ] + [
        f'train_cfg.max_epochs={epochs}',
        f'train_dataloader.num_workers={workers}',
        f'train_dataloader.persistent_workers={persistent}'
    ]
    return [CONFIG, '--work-dir', work, '--resume', '--cfg-options', *cfg,
            *options]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_same_run(work, other):
    """Weights, EMA, optimizer, schedules and the best, bit for bit."""
    names = [sorted(f.name for f in w.glob('*.pth')) for w in (work, other)]
    assert names[0] == names[1]
    for name in names[0]:
        a, b = (torch.load(w / name, weights_only=False)
                for w in (work, other))
        for key in ('state_dict', 'ema_state_dict', 'optimizer',
                    'param_schedulers'):
            assert equal(a.get(key), b.get(key)), (name, key)
        info = [c['message_hub']['runtime_info'] for c in (a, b)]
        assert info[0]['best_score'] == info[1]['best_score']
        assert a['meta']['iter'] == b['meta']['iter']


def wait_for(text, output, process):
    while not output.exists() or text not in output.read_text():
        assert process.is_alive(), output.read_text()
        time.sleep(0.02)


def kill_at_random(args, output, times, seed):
    """Kill a run again and again; returns how often it was resumed."""
    rng = random.Random(seed)
    resumed = 0
    for _ in range(times):
        output.unlink(missing_ok=True)
        process = start_tool('train.py', *args, output=output)
        wait_for('Checkpoints will be saved', output, process)
        time.sleep(rng.uniform(0, 1.5))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (
            'the training ended by itself: more epochs are needed')
        resumed += 'resumed epoch' in output.read_text()
    return resumed


def run_killed_and_not(data, tmp_path, times, epochs, *options, **workers):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    tool('train.py', *arguments(data, whole, epochs, *options, **workers))
    args = arguments(data, killed, epochs, *options, **workers)
    resumed = kill_at_random(args, tmp_path / 'output', times, times)
    log = tool('train.py', *args)
    assert_same_run(whole, killed)
    assert not list(killed.glob('*.partial'))
    return resumed, log


@pytest.mark.slow
def test_thirty_kills(data, tmp_path):
    """Checkpoints in the middle of epochs, persistent workers."""
    resumed, _ = run_killed_and_not(
        data, tmp_path, 30, 60, 'default_hooks.checkpoint.by_epoch=False',
        'default_hooks.checkpoint.interval=3')
    print(f'resumed after {resumed} of 30 kills')
    assert resumed >= 25


def test_two_kills(data, tmp_path):
    run_killed_and_not(data, tmp_path, 2, 4)
