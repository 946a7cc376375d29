# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""tools/gpu_check.sh, on machines with and without GPUs."""
import json
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from benchmarking import train
from conftest import REPO, run

sys.path.append(str(REPO / 'tools/misc'))
import gpu_check  # noqa: E402
from gpu_machine import Unusable, judge  # noqa: E402
from gpu_runs import Check, Failed  # noqa: E402

GB = 10**9


def machine(**changes):
    gpu = dict(name='NVIDIA H100', total=80 * GB, free=79.5 * GB,
               capability='9.0')
    for key in ('name', 'free', 'error'):
        if key in changes:
            gpu[key] = changes.pop(key)
    return dict(dict(
        torch='2.14.1', cuda='13.0', gpus=[gpu], nccl=True, warnings=[],
        driver='535.54', listed=['NVIDIA H100'], cores=16, cpu='EPYC',
        visible=None), **changes)


def test_a_gpu_that_is_free_needs_no_remark():
    assert judge(machine()) == []


@pytest.mark.parametrize('changes, sentence', [
    (dict(free=50 * GB), r'in use by others: 30 of 80 GB are taken'),
    (dict(name='NVIDIA H100 MIG 1g.10gb'), 'is an MIG slice'),
    (dict(nccl=False), 'has no NCCL: several GPUs and sharding are not tried'),
    (dict(gpus=[], listed=[]), 'No GPU was found: a short run on the CPU'),
    (dict(gpus=[], visible=''), 'CUDA_VISIBLE_DEVICES hides all GPUs'),
    (dict(warnings=['GPU0 is too old']), 'GPU0 is too old')])
def test_remarks(changes, sentence):
    (remark, ) = judge(machine(**changes))
    assert sentence in remark


@pytest.mark.parametrize('changes, sentence', [
    (dict(gpus=[], warnings=['CUDA initialization: The NVIDIA driver on your '
                             'system is too old (found version 11040).']),
     'the driver 535.54 is too old for PyTorch 2.14.1, which is built for '
     'CUDA 13.0: update the driver'),
    (dict(gpus=[], listed=[], warnings=[
        'CUDA initialization: The NVIDIA driver on your system is too old']),
     'is too old for PyTorch 2.14.1'),  # in a container without nvidia-smi
    (dict(gpus=[], visible='7'), r'(CUDA_VISIBLE_DEVICES=7), but PyTorch'),
    (dict(gpus=[], cuda=None), 'is built without CUDA: install one'),
    (dict(gpus=[]), 'lists NVIDIA H100, but PyTorch 2.14.1 finds none'),
    (dict(error='CUDA error: out of memory'),
     'cannot be used: CUDA error: out of memory. Choose others')])
def test_gpus_that_cannot_be_used(changes, sentence):
    with pytest.raises(Unusable) as error:
        judge(machine(**changes))
    assert sentence in str(error.value)


@pytest.mark.parametrize('fits, tried', [
    (64, [8, 16, 32, 64]), (20, [8, 16, 32]), (3, [8, 4, 2]),
    (1, [8, 4, 2])])
def test_batches_that_do_not_fit(fits, tried, monkeypatch):
    """Smaller ones are tried if none of those asked for fits."""

    def measure(args, precision, flops, batch, *rest):
        if batch > fits:
            raise torch.cuda.OutOfMemoryError
        return {'images/s': 1., 'ratio': 2., 'peak memory, GB': 1.}

    monkeypatch.setattr(train, 'measure_training', measure)
    rows = train.largest_batches(
        Namespace(batch=[64, 8, 16, 32], name='r50'), 'bf16', 1, 'default')
    assert [row['batch'] for row in rows] == tried
    for row in rows:
        assert (row['images/s'] == 'does not fit') == (row['batch'] > fits)


@pytest.fixture
def check(tmp_path):
    return Check(tmp_path, 1, machine(
        gpus=[], remarks=['No GPU.'], minutes=1, commit='abc', date='today'),
        gpu_check.CPU)


def test_no_process_is_left(check, tmp_path):
    """Not those of a session of its own, as torchrun makes, either."""
    beat = tmp_path / 'beat'
    ignores = ('import signal, time; from pathlib import Path\n'
               'signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
               f'while True: Path({str(beat)!r}).touch(); time.sleep(.01)')
    with pytest.raises(TimeoutError, match='ended after 2 s'):
        check.run(sys.executable, '-c', f'''
import subprocess, sys, time
subprocess.Popen([sys.executable, '-c', {ignores!r}], start_new_session=True)
time.sleep(600)
''', limit=2)
    beat.unlink()
    time.sleep(.5)
    assert not beat.exists()


def test_what_failed_is_said(check):
    with pytest.raises(Failed, match=r'^error: no such set \(status 3\)$'):
        check.run(sys.executable, '-c', 'print("error: no such set"); '
                  'print("bye"); raise SystemExit(3)', limit=60)
    assert 'error: no such set' in check.log.read_text()

    def broken(check, limit, rows):
        rows.append({'sums': 1.25})
        raise Failed('it is broken')

    check.try_part(broken, 1)
    assert '**broken**: failed: it is broken\n\n| sums |\n|---|\n| 1.25 |' in (
        check.out / 'table.md').read_text()


def test_without_time_all_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, 'LEAST', 0)
    monkeypatch.setattr(sys, 'argv', [
        'gpu_check.py', '--minutes', '0', '--out', str(tmp_path)])
    assert gpu_check.main() == 0
    found = json.loads((tmp_path / 'check.json').read_text())
    assert found['machine']['torch'] == torch.__version__
    assert len(found['machine']['gpus']) == torch.cuda.device_count()
    assert {part['status'] for part in found['parts'].values()} == {
        'left out: there was no time left'}
    assert {path.name for path in tmp_path.iterdir()} == {
        'check.json', 'check.log', 'table.md'}


@pytest.mark.parametrize('gpus, precision, ranks', [
    ([('H100', '9.0')] * 8, 'bf16', 8), ([('T4', '7.5')], 'fp16', 1),
    ([('H100 MIG 1g.10gb', '9.0')] * 2, 'bf16', 1), ([], 'fp32', 2)])
def test_the_plan_fits_the_machine(gpus, precision, ranks):
    plan = gpu_check.plan_for(dict(gpus=[
        dict(name=name, capability=capability) for name, capability in gpus]))
    assert (plan.precision, plan.ranks) == (precision, ranks)


def test_speed_goes_on_after_a_failure(check, monkeypatch):
    def figures(command, config, *args, limit):
        if 'default' in args:
            raise Failed('out of order')
        return dict(training=[{'mode': args[1]}])

    monkeypatch.setattr(check, 'figures', figures)
    check.end += 600
    check.try_part(gpu_check.speed, 1)
    part = check.parts['speed']
    assert part['status'] == 'failed: tiny, default'
    assert part['rows'] == [{'mode': 'recompute'}]


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / 'file').touch()
    monkeypatch.setattr(sys, 'argv', [
        'gpu_check.py', '--out', str(tmp_path / 'file')])
    assert gpu_check.main() == 1
    assert capsys.readouterr().err.startswith('error: [Errno 17]')


@pytest.mark.slow
def test_on_this_machine(tmp_path):
    """Everything, as small as it is without a GPU."""
    out = run('bash', REPO / 'tools/gpu_check.sh', '--out', tmp_path)
    parts = json.loads((tmp_path / 'check.json').read_text())['parts']
    assert {name for name, part in parts.items()
            if part['status'] != 'passed'} <= {'losses'}
    assert parts['training']['rows'][0]['steps'] > 0
    modes = [row['mode'] for row in parts['speed']['rows']]
    assert modes == ['default', 'default', 'recompute', 'recompute']
    assert (tmp_path / 'table.md').read_text() in out
    for process in Path('/proc').glob('[0-9]*/cmdline'):
        assert str(tmp_path).encode() not in process.read_bytes()
