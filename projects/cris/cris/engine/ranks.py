# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The processes of a launcher: their start on CPUs, their end."""
import atexit
import faulthandler
import gc
import multiprocessing
import os
import signal
import subprocess
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn  # noqa: F401  later its defaults keep the group
from mmengine.config import Config

_ENVIRONMENT = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
_LAUNCHERS = {
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE',
            'OMPI_COMM_WORLD_LOCAL_RANK'),
}
_STARTERS = dict(slurm='srun (tools/slurm_train.sh does)', mpi='mpirun')
_PATIENCE = 30  # seconds that a process waits for the others at its end


def init_ranks(cfg: Config) -> None:
    """Let the ranks of a launcher train and test, without a GPU, too.

    LOCAL_RANK and the other variables of torchrun are set from those of the
    launcher: the runner takes the GPU of the inputs from LOCAL_RANK, which
    mmengine does not set for mpi. On GPUs the runner initialises the process
    group. On CPUs it is done here:
    mmengine's launcher calls ``torch.cuda.set_device`` with any backend, and
    wraps the model with ``device_ids``. An existing group is kept. At the
    exit of the process, after errors were printed, the group is destroyed.

    Args:
        cfg (Config): Of the run, with ``launcher``; ``model_wrapper_cfg`` is
            set, unless it is given.

    Raises:
        ValueError: If the launcher has not set the environment variables of
            the ranks, the first node is unknown, or there are fewer GPUs than
            ranks on this machine.
    """
    if cfg.launcher == 'none':
        return
    atexit.register(_leave_group)
    if not dist.is_initialized():
        _take_environment(cfg.launcher)
    if not cfg.get('model_wrapper_cfg'):
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
            gradient_as_bucket_view=True)  # else all are in memory twice
    if torch.cuda.is_available():
        _check_gpu()
        return
    if not dist.is_initialized():
        # After a restart by torchrun the store still holds the addresses of
        # the dead processes, so each attempt uses its own prefix.
        attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
        store, rank, world_size = next(dist.rendezvous('env://'))
        dist.init_process_group(
            'gloo', store=dist.PrefixStore(f'attempt_{attempt}', store),
            rank=rank, world_size=world_size,
            timeout=timedelta(seconds=_timeout(cfg)))
    cfg.model_wrapper_cfg.device_ids = None
    cfg.sync_bn = None  # SyncBatchNorm has no CPU kernel
    if 'strategy' in cfg:  # FlexibleRunner wraps the model itself
        cfg.strategy.model_wrapper.device_id = torch.device('cpu')
        cfg.strategy.pop('sync_bn', None)


def _timeout(cfg: Config) -> float:
    """The longest wait for another process, in seconds."""
    dist_cfg = cfg.get('env_cfg', {}).get('dist_cfg', {})
    return dist_cfg.get('timeout', 1800)


def _leave_group() -> None:
    """Or PyTorch's threads run on while Python ends, which may abort."""
    # Launchers end the others after a fault: keep the exit status.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if dist.is_initialized():
        # After an error the others may never come.
        faulthandler.dump_traceback_later(_PATIENCE, exit=True)
        dist.destroy_process_group()
        end_workers()  # or their loaders wait 5 seconds for each of them
        gc.collect()  # of the model, which holds it, too: the threads end now
        faulthandler.cancel_dump_traceback_later()


def end_workers() -> None:
    """Kill the data workers; Python would send SIGTERM, which they ignore."""
    # PyTorch's handler would report them as killed.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _check_gpu() -> None:
    rank = int(os.environ.get('LOCAL_RANK', 0))
    count = torch.cuda.device_count()
    if rank >= count:
        raise ValueError(
            f'process {rank + 1} of this node needs a GPU of its own, but '
            f'{count} can be seen: start at most as many processes per node '
            'as it has GPUs (tools/slurm_*.sh: GPUS_PER_NODE), and let each '
            'see all of them (srun --gres, not --gpus-per-task)')


def _take_environment(launcher: str) -> None:
    """Set what torchrun sets, from the variables of another launcher."""
    for name, source in zip(
            _ENVIRONMENT, _LAUNCHERS.get(launcher, ()), strict=False):
        if not os.environ.get(source):
            raise ValueError(f'--launcher {launcher}, but {source} is not '
                             f'set: start the processes with '
                             f'{_STARTERS[launcher]}, or with torchrun and '
                             '--launcher pytorch')
        os.environ[name] = os.environ[source]
    if launcher == 'slurm':
        os.environ.setdefault('MASTER_PORT', _slurm_port())
        if 'MASTER_ADDR' not in os.environ:
            os.environ['MASTER_ADDR'] = _first_slurm_node()
    os.environ.setdefault('MASTER_PORT', '29500')


def _slurm_port() -> str:
    """Jobs that share a node, and steps of a job, have ports of their own."""
    job, step = (int(os.environ.get(name, 0))
                 for name in ('SLURM_JOB_ID', 'SLURM_STEP_ID'))
    return str(10000 + (10 * job + step) % 20000)


def _first_slurm_node() -> str:
    # A step may use only some nodes of its job.
    nodes = os.environ.get('SLURM_STEP_NODELIST',
                           os.environ.get('SLURM_NODELIST'))
    try:
        hosts = subprocess.run(
            ['scontrol', 'show', 'hostname', nodes or ''],
            stdout=subprocess.PIPE, text=True, check=True).stdout
        return hosts.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise ValueError(
            f'scontrol could not name the first of the nodes {nodes} '
            f'({error}): set MASTER_ADDR to its host name') from error
