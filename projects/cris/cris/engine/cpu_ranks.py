# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Several processes without a GPU, which mmengine's launcher refuses."""
import os
import subprocess

import torch
import torch.distributed as dist
from mmengine.config import Config

_ENVIRONMENT = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
_LAUNCHERS = {
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE',
            'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def init_cpu_process_group(cfg: Config) -> None:
    """Let the ranks of a launcher train and test without a GPU.

    mmengine's launcher calls ``torch.cuda.set_device`` with any backend, and
    wraps the model with ``device_ids``. An existing process group is kept.

    Args:
        cfg (Config): Of the run, with ``launcher``; ``model_wrapper_cfg`` is
            set.

    Raises:
        ValueError: If the launcher has not set the environment variables of
            the ranks.
    """
    if not dist.is_initialized():
        _take_environment(cfg.launcher)
        # After a restart by torchrun the store still holds the addresses of
        # the dead processes, so each attempt uses its own prefix.
        attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
        store, rank, world_size = next(dist.rendezvous('env://'))
        dist.init_process_group(
            'gloo',
            store=dist.PrefixStore(f'attempt_{attempt}', store),
            rank=rank,
            world_size=world_size)
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
        device_ids=None)
    cfg.sync_bn = None  # SyncBatchNorm has no CPU kernel
    if 'strategy' in cfg:  # FlexibleRunner wraps the model itself
        cfg.strategy.model_wrapper.device_id = torch.device('cpu')


def _take_environment(launcher: str) -> None:
    """Set what torchrun sets, from the variables of another launcher."""
    for name, source in zip(
            _ENVIRONMENT, _LAUNCHERS.get(launcher, ()), strict=False):
        if source not in os.environ:
            raise ValueError(f'--launcher {launcher}, but {source} is not '
                             f'set: start the processes with {launcher} or '
                             'torchrun')
        os.environ[name] = os.environ[source]
    os.environ.setdefault('MASTER_PORT', '29500')
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        hosts = subprocess.run(
            ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']],
            stdout=subprocess.PIPE,
            text=True,
            check=True).stdout
        os.environ['MASTER_ADDR'] = hosts.split()[0]
