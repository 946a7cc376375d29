# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Several nodes, all on this machine: Slurm by fakes, torchrun by itself."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import test_ranks
import torch
from conftest import CONFIG, REPO, probed, start_tool
from mmengine.config import Config

from cris.engine.ranks import init_ranks

config, alone = test_ranks.config, test_ranks.alone

SCONTROL = '''#!/bin/sh
case "$1 $2 $3" in
    "show hostname node0") echo 127.0.0.1 ;;
    "show hostname node[0-1]") echo 127.0.0.1; echo elsewhere ;;
    "requeue "*) echo "$2" >> "$FAKE_NODES/requeued" ;;
    *) exit 1 ;;
esac
'''


@pytest.fixture
def slurm(tmp_path):
    """Environment with srun and scontrol; its nodes are FAKE_NODES."""
    nodes, commands = tmp_path / 'nodes', tmp_path / 'bin'
    nodes.mkdir()
    commands.mkdir()
    srun = Path(__file__).with_name('fake_srun.py')
    (commands / 'srun').write_text(
        f'#!/bin/sh\nexec {sys.executable} -S -E {srun} "$@"\n')
    (commands / 'scontrol').write_text(SCONTROL)
    for command in commands.iterdir():
        command.chmod(0o755)
    path = [commands, Path(sys.executable).parent, os.environ['PATH']]
    return dict(
        os.environ, FAKE_NODES=str(nodes), PYTHON=sys.executable,
        PATH=os.pathsep.join(map(str, path)), OMP_NUM_THREADS='1',
        PYTHONPATH=os.pathsep.join(filter(None, sys.path)))


def start(*command, **kwargs):
    return subprocess.Popen(
        [str(c) for c in command], cwd=REPO, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True, **kwargs)


def end(process, status=0, timeout=300):
    """What it printed."""
    try:
        out = process.communicate(timeout=timeout)[0]
    finally:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == status, out[-3000:]
    return out


def with_program(slurm, folder, lines):
    """An environment in which tasks run a shell script in Python's place."""
    program = folder / 'program'
    program.write_text(f'#!/bin/sh\n{lines}\n')
    program.chmod(0o755)
    return dict(slurm, PYTHON=str(program), GPUS='4', GPUS_PER_NODE='2')


@pytest.mark.parametrize('script, args, expected', [
    ('train', ['config.py', 'work'],
     'train.py config.py --work-dir=work --launcher=slurm'),
    ('test', ['config.py', 'a.pth'],
     'test.py config.py a.pth --launcher=slurm')])
def test_slurm_scripts_start_their_tasks(
        slurm, tmp_path, script, args, expected):
    environment = with_program(
        slurm, tmp_path,
        'echo "$SLURM_PROCID $SLURM_NODEID $SLURM_LOCALID of $SLURM_NTASKS: '
        '$# $*"')
    out = end(start(
        'bash', f'tools/slurm_{script}.sh', 'part', 'job', *args,
        '--cfg-options', 'a=[1, 2]',
        env=dict(environment, SRUN_ARGS='--cpus-per-task=1 -p other')))
    count = 2 + len(expected.split()) + 1
    assert sorted(out.splitlines())[:4] == [
        f'{rank} {rank // 2} {rank % 2} of 4: {count} -u tools/{expected} '
        '--cfg-options a=[1, 2]' for rank in range(4)]


@pytest.mark.parametrize('script', ['train', 'test'])
def test_a_slurm_task_that_fails_ends_all(slurm, tmp_path, script):
    environment = with_program(
        slurm, tmp_path,
        '[ $SLURM_PROCID = 2 ] && exit 7; exec sleep 60')
    began = time.monotonic()
    end(start('bash', f'tools/slurm_{script}.sh', 'part', 'job', 'config.py',
              'x', env=environment), status=143)
    assert time.monotonic() - began < 30


def take_environment(monkeypatch, slurm, launcher='slurm', **variables):
    """The environment after a rank was initialised on a GPU."""
    environment = dict(PATH=slurm['PATH'], LOCAL_RANK='0', **{
        f'SLURM_{key}': value for key, value in dict(
            PROCID='5', NTASKS='8', LOCALID='1', NODELIST='node[0-1]',
            JOB_ID='71').items()})
    environment.update(variables)
    monkeypatch.setattr(os, 'environ', environment)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    init_ranks(Config(dict(launcher=launcher)))
    return environment


def test_jobs_and_steps_on_a_node_have_their_own_ports(monkeypatch, slurm):
    ports = [
        take_environment(
            monkeypatch, slurm, SLURM_JOB_ID=str(job), SLURM_PROCID=str(rank),
            SLURM_STEP_ID=str(step))['MASTER_PORT']
        for job in (71, 10_000_072) for step in (0, 1) for rank in (0, 1)]
    assert ports[::2] == ports[1::2]
    assert len(set(ports)) == 4
    assert all(10000 <= int(port) < 30000 for port in ports)
    given = take_environment(monkeypatch, slurm, MASTER_PORT='29500')
    assert given['MASTER_PORT'] == '29500'


def test_the_first_node_is_that_of_the_step(monkeypatch, slurm):
    environment = take_environment(
        monkeypatch, slurm, SLURM_NODELIST='node[5-6]',
        SLURM_STEP_NODELIST='node[0-1]')
    assert environment['MASTER_ADDR'] == '127.0.0.1'
    environment = take_environment(
        monkeypatch, slurm, PATH='/nowhere', MASTER_ADDR='node5')
    assert environment['MASTER_ADDR'] == 'node5'


@pytest.mark.parametrize('launcher, variables, said', [
    ('slurm', dict(SLURM_NTASKS=''),
     'SLURM_NTASKS is not set: start the processes with srun'),
    ('mpi', {}, 'OMPI_COMM_WORLD_RANK is not set: .* with mpirun'),
    ('slurm', dict(PATH='/nowhere'), r'nodes node\[0-1\] .*set MASTER_ADDR'),
    ('slurm', dict(SLURM_NODELIST='faulty'), 'nodes faulty .*MASTER_ADDR'),
    ('slurm', dict(SLURM_LOCALID='4'),
     'process 5 of this node needs a GPU of its own, but 4 can be seen'),
    ('pytorch', dict(LOCAL_RANK='7'), 'process 8 of this node needs a GPU')])
def test_what_is_wrong_with_the_environment(
        monkeypatch, slurm, launcher, variables, said):
    with pytest.raises(ValueError, match=said):
        take_environment(monkeypatch, slurm, launcher, **variables)


def test_it_is_said_in_a_sentence(slurm, tmp_path):
    with socket.socket() as taken:
        taken.bind(('', 0))
        port = taken.getsockname()[1]
        output = tmp_path / 'output'
        process = start_tool(
            'train.py', CONFIG, '--launcher', 'slurm', output=output,
            SLURM_PROCID='0', SLURM_NTASKS='2', SLURM_LOCALID='0',
            MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
        process.join()
    out = output.read_text()
    assert process.exitcode == 1
    assert re.search(f'error: .*{port}.* address already in use', out), out
    assert 'Traceback' not in out


def losses(paths):
    return np.mean([json.loads(path.read_text()) for path in paths],
                   axis=0)[:, 0]


@pytest.mark.slow
def test_two_slurm_jobs_at_once_have_the_losses_of_one_process(
        slurm, config, alone, tmp_path):
    """Of four tasks on two nodes, and of two tasks. Each node has its own
    disk, and only that of the first task gets a checkpoint.
    """
    nodes = {}
    jobs = []
    for job, tasks in (('71', 4), ('72', 2)):
        nodes[job] = tmp_path / job
        nodes[job].mkdir()
        jobs.append(start(
            'bash', REPO / 'tools/slurm_train.sh', 'part', 'job', config,
            'work', '--cfg-options',
            f'train_dataloader.batch_size={8 // tasks}', env=dict(
                slurm, GPUS=str(tasks), GPUS_PER_NODE=str(tasks // 2),
                FAKE_NODES=str(nodes[job]), FAKE_DISKS='own',
                SLURM_JOB_ID=job)))
    for job in jobs:
        end(job)
    one = losses([alone / 'probe_rank0.json'])
    for job, tasks in (('71', 4), ('72', 2)):
        folders = [nodes[job] / f'node{node}/disk/work' for node in (0, 1)]
        several = losses([
            folders[rank // (tasks // 2)] / f'probe_rank{rank}.json'
            for rank in range(tasks)])
        np.testing.assert_allclose(several, one, rtol=0, atol=1e-4)
        assert (folders[0] / 'epoch_1.pth').is_file()
        assert all('probe' in path.name for path in folders[1].rglob('*')
                   if path.is_file())


@pytest.mark.slow
def test_two_nodes_by_torchrun_have_the_losses_of_one_process(
        config, alone, tmp_path):
    """The data of the second node is elsewhere."""
    elsewhere = tmp_path / 'elsewhere'
    shutil.copytree(config.parent / 'refer', elsewhere)
    environment = dict(
        os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', NNODES='2',
        MASTER_PORT=str(20000 + (os.getpid() + 2000) % 9000),
        PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    own = [[], [f'{part}_dataloader.dataset.data_root={elsewhere}'
                for part in ('train', 'val', 'test')]]
    nodes = [
        start('bash', 'tools/dist_train.sh', config, 2, '--work-dir',
              tmp_path / f'node{rank}', '--cfg-options',
              'train_dataloader.batch_size=2', *own[rank],
              env=dict(environment, NODE_RANK=str(rank)))
        for rank in (0, 1)]
    for node in nodes:
        end(node)
    np.testing.assert_allclose(
        losses([tmp_path / f'node{rank // 2}/probe_rank{rank}.json'
                for rank in range(4)]),
        losses([alone / 'probe_rank0.json']), rtol=0, atol=1e-4)


def requeued(slurm, *options):
    """The commands of docs/en/robust_training.md, for two tasks."""
    page = (REPO / 'docs/en/robust_training.md').read_text()
    (command, ) = re.findall('^srun .*scontrol requeue.*$', page, re.M)
    command = command.replace(
        'srun ', 'srun --ntasks=2 --ntasks-per-node=1 ')
    command = command.replace('tools/', f'{REPO}/tools/').replace(
        'CONFIG', ' '.join(map(str, options)))
    return start('bash', '-c', command, env=dict(slurm, SLURM_JOB_ID='71'))


@pytest.mark.slow
def test_a_preempted_job_is_requeued_and_goes_on(
        slurm, config, alone, tmp_path):
    nodes, work = Path(slurm['FAKE_NODES']), tmp_path / 'work'
    options = [config, '--work-dir', work, '--cfg-options',
               'train_dataloader.batch_size=4',
               'default_hooks.logger.interval=1']
    job = requeued(slurm, *options)
    for line in job.stdout:
        if 'Epoch(train) [1][ 2/10]' in line:
            os.kill(int((nodes / 'srun.pid').read_text()), signal.SIGTERM)
    end(job)
    assert (nodes / 'requeued').read_text() == '71\n'
    assert (work / 'preempted.pth').is_file()
    log = end(requeued(slurm, *options))
    assert 'resumed epoch: 0' in log
    assert (nodes / 'requeued').read_text() == '71\n'
    rest = losses(work / f'probe_rank{rank}.json' for rank in (0, 1))
    assert 0 < len(rest) <= 8
    np.testing.assert_allclose(
        rest, losses([alone / 'probe_rank0.json'])[-len(rest):], rtol=0,
        atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('fault, said', [
    ('no data', 'error: .*instances.json does not exist'),
    ('lost disk', 'error: the disk of rank 1 is lost'),
    ('no checkpoint', 'error: the processes resumed at different')])
def test_a_fault_of_one_node_ends_the_job(
        slurm, config, alone, tmp_path, fault, said):
    """And it is not requeued, as it would fail again."""
    nodes = Path(slurm['FAKE_NODES'])
    options = ['train_dataloader.batch_size=4', 'train_cfg.max_epochs=2']
    if fault == 'no data':
        shutil.copytree(config.parent / 'refer', nodes / 'node0/disk/refer')
        options.append('train_dataloader.dataset.data_root=refer')
    elif fault == 'lost disk':
        config = probed(tmp_path / 'config.py',
                        "custom_hooks = [dict(type='LostDisk')]", config)
    else:
        work = nodes / 'node0/disk/work'
        work.mkdir(parents=True)
        shutil.copy(alone / 'epoch_1.pth', work)
    job = requeued(dict(slurm, FAKE_DISKS='own'), config, '--work-dir work',
                   '--cfg-options', *options)
    assert re.search(said, end(job, status=1))
    assert not (nodes / 'requeued').exists()
