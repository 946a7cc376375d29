# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Training that is killed, resumed, preempted: real processes, real signals.

The configuration is the small model with all that could make two runs differ:
dropout, random sentences, shuffling, EMA, a schedule by iteration, data
workers.
"""
import os
import random
import re
import shutil
import signal
import time

import pytest
import torch
from conftest import (
    CONFIG,
    REPO,
    ReferSet,
    assert_same_run,
    children,
    equal,
    probed,
    start_tool,
    tool,
)

EPOCH = 5  # iterations
KEEP_TWO = 'default_hooks.checkpoint.max_keep_ckpts=2'
SMALL = [
    'model.decode_head.num_layers=1', 'model.decode_head.dropout=0.1',
    'train_dataloader.batch_size=2',
    'train_dataloader.dataset.num_expressions=1',
    'image_size=64',
    'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False',
    'custom_hooks.0.type=EMAHook', 'train_cfg.val_interval=1'
]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    refer_set = ReferSet(tmp_path_factory.mktemp('data') / 'refer')
    for k in range(2 * EPOCH - 4):  # four are there
        refer_set.add_ref(1 + k % 2, [[5, 20, 30, 20, 30, 45]], 'train')
    return refer_set.write()


def arguments(data, work, epochs, *options, workers=2, persistent=True,
              config=CONFIG):
    return [
        config, '--work-dir', work, '--resume', '--cfg-options', *SMALL,
        f'train_dataloader.dataset.data_root={data}',
        f'val_dataloader.dataset.data_root={data}',
        f'train_cfg.max_epochs={epochs}',
        f'train_dataloader.num_workers={workers}',
        f'train_dataloader.persistent_workers={persistent}', *options
    ]


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    """The work dir of a run of four epochs that was not interrupted."""
    root = tmp_path_factory.mktemp('whole')
    tool('train.py', *arguments(data, root / 'work', 4, KEEP_TWO))
    return shutil.copytree(root / 'work', root / 'whole')


@pytest.fixture
def work(whole):
    """The same, to be changed; its checkpoints name this folder."""
    work = whole.parent / 'work'
    shutil.rmtree(work)
    return shutil.copytree(whole, work)


def wait_for(text, output, process):
    while not output.exists() or text not in output.read_text():
        assert process.is_alive(), output.read_text()
        time.sleep(0.02)


def run_killed_and_not(data, tmp_path, times, epochs, *options, whole=None,
                       first_saves=False, **workers):
    """Kill a run again and again; returns how often it was resumed.

    With first_saves it is not killed before it has saved once.
    """
    killed, output = tmp_path / 'killed', tmp_path / 'output'
    if whole is None:
        whole = tmp_path / 'whole'
        tool('train.py', *arguments(data, whole, epochs, *options, **workers))
    args = arguments(data, killed, epochs, *options, **workers)
    rng = random.Random(times)
    resumed = 0
    for k in range(times):
        output.unlink(missing_ok=True)
        process = start_tool('train.py', *args, output=output)
        wait_for('Checkpoints will be saved', output, process)
        while first_saves and k == 0 and not any(killed.glob('*.pth')):
            assert process.is_alive(), output.read_text()
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.5))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (
            'the training ended by itself: more epochs are needed')
        resumed += 'resumed epoch' in output.read_text()
    resumed += 'resumed epoch' in tool('train.py', *args)
    assert_same_run(whole, killed)
    assert not list(killed.glob('*.partial'))
    return resumed


@pytest.mark.slow
def test_thirty_kills(data, tmp_path):
    """Checkpoints in the middle of epochs, persistent workers."""
    resumed = run_killed_and_not(
        data, tmp_path, 30, 60, 'default_hooks.checkpoint.by_epoch=False',
        'default_hooks.checkpoint.interval=3', first_saves=True)
    assert resumed == 30


def test_two_kills(data, whole, tmp_path):
    run_killed_and_not(data, tmp_path, 2, 4, KEEP_TWO, whole=whole)


@pytest.mark.slow
def test_kills_in_the_middle_of_epochs_without_workers(data, tmp_path):
    run_killed_and_not(
        data, tmp_path, 1, 3, 'default_hooks.checkpoint.by_epoch=False',
        'default_hooks.checkpoint.interval=2', workers=0, persistent=False)


@pytest.mark.slow
def test_kills_in_the_middle_of_epochs_of_a_set_read_on_demand(
        data, tmp_path):
    root = tmp_path / 'parquet'
    tool('dataset_converters/prepare.py', 'convert', data, '--dataset',
         'refer', '--to', 'parquet', '--shards', 3, '--out', root)
    config = tmp_path / 'on_demand.py'
    parts = ('models/cris_tiny', 'datasets/parquet',
             'schedules/schedule_scratch', 'default_runtime')
    bases = [f'{REPO}/configs/_base_/{part}.py' for part in parts]
    config.write_text(f'''
_base_ = {bases}
train_dataloader = dict(batch_sampler=dict(streams=2),
                        dataset=dict(on_demand=True))
''')
    assert run_killed_and_not(
        root, tmp_path, 1, 6, 'default_hooks.checkpoint.by_epoch=False',
        'default_hooks.checkpoint.interval=3', first_saves=True,
        config=config) == 1


def test_sigterm_saves_and_the_run_goes_on_at_the_next_batch(
        data, whole, tmp_path):
    """To the data workers, too, as cluster schedulers send it."""
    stopped, output = tmp_path / 'stopped', tmp_path / 'output'
    args = arguments(data, stopped, 4, KEEP_TWO,
                     'default_hooks.logger.interval=1', persistent=False)
    process = start_tool('train.py', *args, output=output)
    wait_for('Epoch(train) [2][2/5]', output, process)
    for pid in [*children(process.pid), process.pid]:
        os.kill(pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 143, output.read_text()
    assert 'SIGTERM: preempted.pth is saved' in output.read_text()
    assert (stopped / 'preempted.pth').is_file()
    log = tool('train.py', *args)
    assert re.search('resumed epoch: 1, iter: [6-9]', log)
    assert_same_run(whole, stopped)


@pytest.fixture
def better(tmp_path):
    """A config with a better score in every epoch."""
    return probed(tmp_path / 'config.py', """
custom_hooks = [dict(type='EMAHook'), dict(type='BetterEveryEpoch')]
""")


def test_kills_around_validations(data, better, tmp_path):
    """Before one, and before the best so far is removed after one."""
    work = tmp_path / 'work'
    args = [better, *arguments(data, work, 2)[1:], KEEP_TWO]
    tool('train.py', *args, 'custom_hooks.1.killed=1',
         'custom_hooks.1.before=val', ok=False)
    log = tool('train.py', *args, 'custom_hooks.1.killed=2', ok=False)
    assert 'The validation of epoch 1 was interrupted' in log
    # Or a kill now would make the best so far unknown.
    checkpoint = torch.load(work / 'epoch_1.pth', weights_only=False)
    info = checkpoint['message_hub']['runtime_info']
    assert info['best_score'] == 1
    assert info['best_ckpt'].endswith('best_mIoU_epoch_1.pth')
    best = [work / f'best_mIoU_epoch_{k}.pth' for k in (1, 2, 3)]
    assert [path.exists() for path in best] == [True, True, False]
    log = tool('train.py', *args, 'train_cfg.max_epochs=3')
    assert 'resumed epoch: 2' in log
    assert 'The validation of epoch 2 was interrupted: it is repeated' in log
    assert [path.exists() for path in best] == [False, False, True]
    log = tool('train.py', *args, 'train_cfg.max_epochs=4')
    assert re.findall(r'Epoch\(val\) \[(\d)\]', log) == ['4']


@pytest.mark.parametrize('harm', ['cut', 'flipped bit'])
def test_a_broken_newest_checkpoint_is_skipped(data, work, harm):
    newest = work / 'epoch_4.pth'
    before = torch.load(newest, weights_only=False)
    content = bytearray(newest.read_bytes())
    if harm == 'cut':
        content = content[:len(content) // 2]
    else:
        content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    log = tool('train.py', *arguments(data, work, 4, KEEP_TWO))
    assert re.search(r'epoch_4.pth is .*it is skipped', log)
    assert 'resumed epoch: 3' in log
    # That of epoch 3 is known, whatever became of later checkpoints.
    assert re.findall(r'Epoch\(val\) \[(\d)\]', log) == ['4']
    again = torch.load(newest, weights_only=False)
    assert equal(before['state_dict'], again['state_dict'])


def test_a_full_disk_keeps_the_last_checkpoint(data, work, tmp_path):
    """Real: the kernel refuses to write files beyond a size."""
    kept = (work / 'epoch_4.pth').read_bytes()
    limited = tmp_path / 'limited.py'
    limited.write_text(f'''
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, [{len(kept) // 2}] * 2)
runpy.run_path({str(REPO / 'tools/train.py')!r}, run_name='__main__')
''')
    log = tool(limited, *arguments(data, work, 5), ok=False)
    assert re.search(r'error: .*epoch_5.pth could not be written: File too '
                     'large.*What was saved before is intact', log)
    assert 'Traceback' not in log
    assert (work / 'epoch_4.pth').read_bytes() == kept
    assert not list(work.glob('*.partial'))
    tool('train.py', *arguments(data, work, 5))
    assert (work / 'epoch_5.pth').is_file()
