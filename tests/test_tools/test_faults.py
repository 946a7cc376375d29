# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What goes wrong on clusters ends in the same weights, or in a sentence."""
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    REPO,
    assert_same_run,
    children,
    launch,
    ranks_train,
    start_tool,
    tool,
)
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.runner import EpochBasedTrainLoop
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.utils.data import BatchSampler

from cris.datasets import ResumableSampler, ShardBatchSampler
from cris.engine import work_dir
from cris.engine.hooks import CheckLossHook, ExactResumeHook
from cris.engine.logs import short_errors
from cris.engine.run_checkpoints import latest_checkpoint, note_last_checkpoint
from cris.evaluation.results import write_results_file
from cris.io.atomic import atomic_write, disk_space

HOLDER = '''
import os, socket, sys, time
from mmengine.config import Config
from cris.engine.work_dir import lock_work_dir
socket.gethostname = lambda: 'node7'
lock_work_dir(Config(dict(launcher='none', work_dir=sys.argv[1])))
orphan = os.fork()  # as a data worker that does not end
if orphan:
    print('held, orphan', orphan, flush=True)
time.sleep(999)
'''


@pytest.fixture
def holder(tmp_path):
    """A run in the folder 'work' as (process, pid of its data worker)."""
    script, output = tmp_path / 'holder.py', tmp_path / 'output'
    script.write_text(HOLDER)
    process = start_tool(script, tmp_path / 'work', output=output)
    while not output.exists() or 'held' not in output.read_text():
        assert process.is_alive(), output.read_text()
    orphan = int(output.read_text().split('orphan')[1].split()[0])
    yield process, orphan
    process.kill()
    os.kill(orphan, signal.SIGKILL)


def lock(folder):
    work_dir.lock_work_dir(
        Config(dict(launcher='none', work_dir=str(folder))))


def test_a_work_dir_is_for_one_run(holder, tmp_path, monkeypatch):
    """Until it dies, even if a data worker of it lives on."""
    process, orphan = holder
    monkeypatch.setattr(work_dir, '_PATIENCE', 0)
    with pytest.raises(OSError, match=rf'another run \(host node7, process '
                       rf'{process.pid}\) trains in .*work: wait for its end'):
        lock(tmp_path / 'work')
    assert os.listdir(tmp_path / 'work') == ['train.lock']
    process.kill()
    process.join()
    os.kill(orphan, 0)  # it is there
    lock(tmp_path / 'work')


def test_a_run_that_is_ending_is_waited_for(holder, tmp_path, monkeypatch):
    process, _ = holder

    def end(seconds):
        process.kill()
        process.join()

    monkeypatch.setattr(work_dir.time, 'sleep', end)
    lock(tmp_path / 'work')
    assert not process.is_alive()


def test_a_file_system_without_locks_is_warned_of(
        tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    logged = []
    monkeypatch.setattr(fcntl, 'lockf', refuse)
    monkeypatch.setattr(work_dir, 'print_log',
                        lambda text, *_: logged.append(text))
    lock(tmp_path)
    assert 'train.lock cannot be locked' in logged[0]


def checkpoint(path, iteration):
    torch.save(dict(meta=dict(iter=iteration), state_dict={}, optimizer={}),
               path)
    return str(path)


def test_the_newest_checkpoint_does_not_depend_on_clocks(tmp_path):
    paths = [checkpoint(tmp_path / f'iter_{i}.pth', i) for i in (5, 10, 20)]
    for age, path in enumerate(paths):  # the first is of 2038
        os.utime(path, (2**31 - age * 86400, ) * 2)
    assert latest_checkpoint(str(tmp_path)) == paths[2]
    # The run was resumed from an older one and has saved this:
    note_last_checkpoint(str(tmp_path), paths[1])
    assert latest_checkpoint(str(tmp_path)) == paths[1]
    for damaged, next_one in ((1, 2), (2, 0)):
        (tmp_path / paths[damaged]).write_bytes(b'PK')
        assert latest_checkpoint(str(tmp_path)) == paths[next_one]


class Loader:
    """The samples of a rank, as data loaders ask for them."""

    def __init__(self, ranks, rank, batch_size, kind, monkeypatch, samples=80):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info',
                            lambda: (rank, ranks))
        sampler = (DefaultSampler if kind == 'shards' else
                   ResumableSampler)(range(samples), seed=3)
        if kind == 'shards':
            self.batch_sampler = ShardBatchSampler(
                sampler, batch_size, streams=2)
        else:
            self.batch_sampler = BatchSampler(sampler, batch_size, False)
        self.dataset = None


def runners(ranks, batch_size, kind, monkeypatch, iteration=0, epoch=0):
    """What the hook needs of the runner of each rank."""
    loop = object.__new__(EpochBasedTrainLoop)
    loop.val_interval, loop._max_epochs = 99, 9
    warnings = []
    return [SimpleNamespace(
        train_loop=loop, val_loop=None, cfg=Config(dict(
            randomness=dict(seed=3))), seed=3, rank=rank, world_size=ranks,
        epoch=epoch, iter=iteration, work_dir='/nowhere', warnings=warnings,
        logger=SimpleNamespace(warning=warnings.append),
        train_dataloader=Loader(ranks, rank, batch_size, kind, monkeypatch))
        for rank in range(ranks)]


def start(runner, saved=None):
    hook = ExactResumeHook()
    hook._write_validated = lambda runner: None
    if saved:
        hook.after_load_checkpoint(runner, saved)
    hook.before_train(runner)
    hook.before_train_epoch(runner)
    return hook


def saved_after(steps, ranks, batch_size, kind, monkeypatch):
    """Samples of the first steps of an epoch, and a checkpoint of then."""
    seen = []
    for runner in runners(ranks, batch_size, kind, monkeypatch):
        hook = start(runner)
        batches = list(runner.train_dataloader.batch_sampler)
        seen += sum(batches[:steps], [])
    at_end = steps == len(batches)
    saved = dict(meta=dict(epoch=int(at_end), iter=steps))
    hook.before_save_checkpoint(runner, saved)
    return seen, saved


@pytest.mark.parametrize('before, after', [
    ((2, 4), (1, 8)), ((1, 8), (2, 4)), ((2, 6), (3, 4)), ((2, 4), (2, 4))])
def test_an_epoch_goes_on_with_other_ranks(before, after, monkeypatch):
    seen, saved = saved_after(3, *before, 'samples', monkeypatch)
    for runner in runners(*after, 'samples', monkeypatch, iteration=3):
        hook = start(runner, saved)
        rest = list(runner.train_dataloader.batch_sampler)
        seen += sum(rest, [])
        again = dict(meta=dict(epoch=0, iter=5))
        hook.before_save_checkpoint(runner, again)
        assert again['exact_resume']['batches'] == 5
    # If ranks do not divide them, the first few come once more.
    assert len(seen) == -(-80 // after[0]) * after[0]
    assert set(seen) == set(range(80))


@pytest.mark.parametrize('kind, before, after, changed, version', [
    ('samples', (2, 4), (3, 4), 'samples per step were 8, now 12', 'this'),
    ('samples', (2, 4), (3, 4), 'samples per step were 8, now 12', 'earlier'),
    ('samples', (2, 4), (1, 4), 'samples per step were 8, now 4', 'this'),
    ('samples', (2, 4), (1, 4), 'samples per step were 8, now 4', 'earlier'),
    ('shards', (2, 4), (1, 8), 'processes were 2, now 1', 'this')])
def test_or_refuses_to(kind, before, after, changed, version, monkeypatch):
    _, saved = saved_after(3, *before, kind, monkeypatch)
    if version == 'earlier':
        del saved['exact_resume']['order']
    for runner in runners(*after, kind, monkeypatch, iteration=3):
        with pytest.raises(ValueError, match=f'middle of an epoch.*{changed}.*'
                           'train_dataloader.batch_size.*--resume CKPT'):
            start(runner, saved)


@pytest.mark.parametrize('kind', ['samples', 'shards'])
def test_shards_and_samples_go_on_as_they_were(kind, monkeypatch):
    seen, saved = saved_after(3, 2, 4, kind, monkeypatch)
    for runner in runners(2, 4, kind, monkeypatch, iteration=3):
        start(runner, saved)
        seen += sum(runner.train_dataloader.batch_sampler, [])
    assert sorted(seen) == list(range(80))


@pytest.mark.parametrize('kind', ['samples', 'shards'])
@pytest.mark.parametrize('after, warned', [
    ((1, 8), False), ((1, 4), True), ((3, 4), True)])
def test_the_next_epoch_has_any_number_of_ranks(
        kind, after, warned, monkeypatch):
    _, saved = saved_after(10, 2, 4, kind, monkeypatch)
    assert saved['exact_resume']['batches'] == 0
    seen = []
    for runner in runners(*after, kind, monkeypatch, iteration=10, epoch=1):
        start(runner, saved)
        assert bool(runner.warnings) == warned
        seen += sum(runner.train_dataloader.batch_sampler, [])
    assert len(seen) == -(-80 // after[0]) * after[0]
    assert set(seen) == set(range(80))


def test_samples_that_cannot_be_noted_do_not_hide_the_loss(tmp_path):
    hook = CheckLossHook()
    hook._batch = dict(data_samples=[])
    runner = SimpleNamespace(work_dir=str(tmp_path / 'lost'), rank=1, iter=6,
                             epoch=0)
    with pytest.raises(FloatingPointError, match='iteration 7 is not finite: '
                       'its samples could not be written: .*No such file'):
        hook._check_loss(runner, torch.tensor(float('nan')))


def test_a_full_disk_is_named_once(tmp_path):
    with pytest.raises(OSError, match='the disk of .* is full .*: .*, then '
                       'go on with --resume'):
        with disk_space(tmp_path, then='go on with --resume'):
            raise OSError(errno.ENOSPC, 'No space left on device')
    with pytest.raises(OSError, match='a.pth could not be written'):
        with disk_space(tmp_path), atomic_write(str(tmp_path / 'a.pth')):
            raise OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize('name', ['a.json', 'a.parquet'])
def test_results_on_a_full_disk(tmp_path, name):
    if name.endswith('.parquet'):
        pytest.importorskip('pyarrow')
    (tmp_path / name).symlink_to('/dev/full')
    with pytest.raises(OSError, match=f'the disk of {tmp_path} is full'):
        write_results_file([dict(iou=0.5)], str(tmp_path / name))


def test_torchrun_ends_its_output_with_the_error(tmp_path, monkeypatch):
    file = str(tmp_path / 'error.json')
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', file)
    with pytest.raises(SystemExit), short_errors():
        raise OSError('the disk is lost')
    failure = ProcessFailure(0, 1234, 1, file)
    assert failure.message['extraInfo'][
        'py_callstack'] == 'the disk is lost'


PERSISTENT = '''
import signal
import torch.distributed as dist
from torch.utils.data import DataLoader
from cris.engine import ranks

def ignore(worker):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

def train():
    loader = DataLoader(range(8), num_workers=2, persistent_workers=True,
                        worker_init_fn=ignore)
    list(loader)
    loader.runner = loader  # as a runner and its hooks hold each other

ranks._PATIENCE = 9  # PyTorch waits 5 seconds for each worker
dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
train()
ranks._leave_group()
'''


def test_the_end_does_not_wait_for_data_workers(tmp_path):
    """Or the end of a good run with many of them would be a failure."""
    (tmp_path / 'persistent.py').write_text(PERSISTENT)
    tool(tmp_path / 'persistent.py')


# The drills: real processes, started by torchrun.

THREE = dict(max_keep_ckpts=3, by_epoch=False, interval=5)


def faulty(ranks_config, path, *hooks, **checkpoint):
    """The config of the ranks, two epochs of ten steps, with more hooks."""
    path.write_text(f'''
_base_ = {str(ranks_config)!r}
train_cfg = dict(max_epochs=2)
custom_hooks = [dict(type='Probe', freeze_norm=True), {', '.join(hooks)}]
default_hooks = dict(checkpoint=dict({checkpoint}))
''')
    return path


def fault(kind, rank, **kwargs):
    return str(dict(type='Fault', kind=kind, rank=rank, **kwargs))


@pytest.fixture(scope='module')
def whole(ranks_config):
    """The work dir of two ranks that nothing happened to."""
    work = ranks_config.parent / 'whole'
    ranks_train(faulty(ranks_config, work.with_suffix('.py')), work, 2)
    return work


def ended(out):
    """What torchrun said of the rank that failed first; none waited."""
    assert 'Timed out' not in out
    return out.split('Root Cause (first observed failure)')[-1]


def scores(work):
    """Of each validation, as they were logged."""
    found = {}
    for file in work.glob('*/vis_data/scalars.json'):
        for line in file.read_text().splitlines():
            values = json.loads(line)
            if 'mIoU' in values:
                found[values['step']] = {key: value for key, value in
                                         values.items() if 'time' not in key}
    return found


@pytest.mark.slow
def test_a_rank_that_dies_in_validation(ranks_config, whole, tmp_path):
    config = faulty(ranks_config, tmp_path / 'c.py', fault('kill', 1))
    work = tmp_path / 'restarted by torchrun'
    log = ranks_train(config, work, 2, MAX_RESTARTS='1')
    assert 'exitcode: -9) local_rank: 1' in log
    assert 'The validation of epoch 1 was interrupted: it is repeated' in log
    assert_same_run(whole, work)
    assert scores(work) == scores(whole) and scores(work).keys() == {1, 2}
    work = tmp_path / 'by hand'
    log = ranks_train(config, work, 2, ok=False)
    assert 'Signal 9 (SIGKILL)' in ended(log)
    ranks_train(config, work, 2, '--resume')
    assert_same_run(whole, work)
    assert scores(work) == scores(whole)


@pytest.mark.slow
def test_a_full_disk_of_the_first_rank(ranks_config, whole, tmp_path):
    config = faulty(ranks_config, tmp_path / 'c.py',
                    fault('full disk', 0, at=12, size=2**20))
    work = tmp_path / 'work'
    out = ranks_train(config, work, 2, ok=False)
    assert 'epoch_2.pth could not be written' in ended(out)
    assert 'make room, then go on with --resume' in ended(out)
    assert (work / 'epoch_1.pth').is_file()
    ranks_train(config, work, 2, '--resume')
    assert_same_run(whole, work)


@pytest.mark.slow
def test_a_full_disk_of_another_rank(ranks_config, tmp_path):
    """It cannot write the samples of a bad batch."""
    config = faulty(ranks_config, tmp_path / 'c.py',
                    fault('full disk', 1, at=0))
    with config.open('a') as file:
        file.write("""
train_pipeline = _base_.train_pipeline + [dict(type='Poison')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
""")
    out = ranks_train(config, tmp_path / 'work', 2, ok=False)
    assert 'is not finite: its samples could not be written: [Errno 27]' in out
    assert 'is not finite: ' in ended(out)


@pytest.mark.slow
def test_a_slow_rank(ranks_config, whole, tmp_path):
    config = faulty(ranks_config, tmp_path / 'c.py', fault('slow', 1, at=3))
    ranks_train(config, tmp_path / 'work', 2)
    assert (tmp_path / 'work/fault').exists()
    assert_same_run(whole, tmp_path / 'work')


@pytest.mark.slow
@pytest.mark.parametrize('content', [b'', b'no picture', None])
def test_a_rank_with_a_broken_picture(ranks_config, tmp_path, content):
    """The file breaks after the data was checked, or is not checked."""
    root = tmp_path / 'refer'
    shutil.copytree(ranks_config.parent / 'refer', root)
    picture = root / 'images/5.jpg'  # one of seven of the validation
    if content is None:
        content = picture.read_bytes()[:500]
    picture.write_bytes(content)
    config = faulty(ranks_config, tmp_path / 'c.py')
    out = ranks_train(config, tmp_path / 'checked', 2,
                      f'val_dataloader.dataset.data_root={root}', ok=False)
    assert f'{picture} cannot be decoded' in ended(out)
    out = ranks_train(config, tmp_path / 'not', 2,
                      f'val_dataloader.dataset.data_root={root}',
                      'val_dataloader.dataset.check_images=False', ok=False)
    assert f'{picture} cannot be decoded' in ended(out)
    assert out.count(f'{picture} cannot be decoded') == 2  # and by the rank


def seen(work):
    """Refs by epoch, of all ranks."""
    refs = {}
    for file in work.glob('seen_rank*.jsonl'):
        for line in file.read_text().splitlines():
            epoch, *ids = json.loads(line)
            refs.setdefault(epoch, []).extend(ids)
    return {epoch: sorted(ids) for epoch, ids in refs.items()}


@pytest.mark.slow
def test_a_restart_with_other_ranks(ranks_config, tmp_path):
    """From the middle of an epoch with steps of as many samples."""
    killed, hook = tmp_path / 'killed', "dict(type='Seen')"
    # Seen up to the checkpoint: its kill is before the next iteration.
    config = faulty(ranks_config, tmp_path / 'c.py', hook,
                    fault('kill', 1, at=5), **THREE)
    ranks_train(config, killed, 2, ok=False)
    three = shutil.copytree(killed, tmp_path / 'three')
    out = launch('dist_train.sh', config, 3, '--work-dir', three, '--resume',
                 '--cfg-options', 'train_dataloader.batch_size=4', ok=False)
    assert 'middle of an epoch' in ended(out)
    assert 'samples per step were 8, now 12' in ended(out)
    log = ranks_train(config, killed, 1, '--resume')
    assert 'resumed epoch: 0, iter: 5' in log
    every = sorted(set(seen(killed)[0]))
    assert seen(killed) == {0: every, 1: every} and len(every) == 80
    # From the end of an epoch with any.
    (three / 'seen_rank0.jsonl').unlink()
    (three / 'seen_rank1.jsonl').unlink()
    log = launch('dist_train.sh', config, 3, '--work-dir', three, '--resume',
                 killed / 'iter_10.pth', '--cfg-options',
                 'train_dataloader.batch_size=4')
    assert 'samples per step were 8, now 12' in log
    assert seen(three).keys() == {1} and set(seen(three)[1]) == set(every)
    assert len(seen(three)[1]) == 81  # three ranks of 27


def listing(work):
    return {path: path.stat().st_mtime_ns for path in work.rglob('*')}


@pytest.mark.slow
def test_two_runs_and_a_restart_in_a_work_dir(ranks_config, whole, tmp_path):
    config = faulty(ranks_config, tmp_path / 'c.py',
                    fault('wait', 0, at=12))
    work = tmp_path / 'work'
    command = ['bash', REPO / 'tools/dist_train.sh', config, '2',
               '--work-dir', work, '--cfg-options',
               'train_dataloader.batch_size=4']
    with (tmp_path / 'output').open('w') as output:
        first = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=output,
            env=dict(os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable,
                     MASTER_PORT=str(29000 + os.getpid() % 900),
                     PYTHONPATH=os.pathsep.join(filter(None, sys.path))))
    try:
        while not (work / 'fault').exists():
            assert first.poll() is None, (tmp_path / 'output').read_text()
        ranks = children(first.pid)
        before = listing(work)
        out = ranks_train(config, work, 2, ok=False)
        sentence = f'another run (host {os.uname().nodename}, process '
        assert sentence in ended(out) and f') trains in {work}' in ended(out)
        assert '[rank' not in out  # a traceback
        out = tool('train.py', config, '--work-dir', work, ok=False)
        assert out.splitlines()[-1].startswith(f'error: {sentence}')
        assert listing(work) == before
        tool('test.py', config, work / 'epoch_1.pth', '--work-dir', work)
        assert first.poll() is None
    finally:
        for process in [first.pid, *children(first.pid)]:
            os.kill(process, signal.SIGKILL)
        first.wait()
    assert len(ranks) == 2
    ranks_train(config, work, 2, '--resume')
    assert_same_run(whole, work)


@pytest.mark.slow
@pytest.mark.parametrize('rank', ['0', '1'])
def test_a_rank_without_a_clock(ranks_config, whole, tmp_path, rank):
    config = faulty(ranks_config, tmp_path / 'c.py',
                    fault('kill', 1, at=12), **THREE)
    work = tmp_path / 'work'
    log = ranks_train(config, work, 2, ok=False, NO_CLOCK=rank)
    assert 'Signal 9 (SIGKILL)' in ended(log)
    os.utime(work / 'iter_5.pth', (2**31, 2**31))
    log = ranks_train(config, work, 2, '--resume', NO_CLOCK=rank)
    assert 'resumed epoch: 1, iter: 10' in log
    a, b = (torch.load(path, weights_only=False)['state_dict'] for path in (
        whole / 'epoch_2.pth', work / 'iter_20.pth'))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    folders = [path for path in work.iterdir() if path.is_dir()]
    assert len(folders) == 2  # logs of the two starts, not of each rank
