# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What mmengine leaves out for machines without a GPU."""
import ctypes
import logging
import os
import platform
import subprocess
from contextlib import contextmanager

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.utils import digit_version
from mmseg.registry import OPTIM_WRAPPERS
from torch import nn

_ENVIRONMENT = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')
_LAUNCHERS = {
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE',
            'OMPI_COMM_WORLD_LOCAL_RANK'),
}


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16, on any device.

    mmengine's AmpOptimWrapper refuses a CPU. Bfloat16 has the range of fp32,
    so no loss scaling is needed.
    """

    @contextmanager
    def optim_context(self, model: nn.Module):
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(
                device, torch.bfloat16):
            yield


def has_bfloat16() -> bool:
    """Whether this processor is faster in bfloat16 than in fp32.

    Before torch 2.4 CPU autocast leaves the mask of attention in fp32, which
    attention refuses.
    """
    return (not before_torch_2_4() and torch.backends.mkldnn.is_available()
            and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def before_torch_2_4() -> bool:
    """Whether mixed precision and fused Adam do not fit CPUs yet."""
    return digit_version(torch.__version__) < digit_version('2.4')


def avoid_fused(cfg: Config) -> None:
    """Drop ``fused=True`` of the optimizer, unknown to CPUs before torch 2.4.

    Args:
        cfg (Config): Of the run; ``optim_wrapper`` is changed.
    """
    if before_torch_2_4():
        cfg.optim_wrapper.optimizer.pop('fused', None)


def use_bfloat16(cfg: Config) -> None:
    """Replace mmengine's AmpOptimWrapper, which refuses a CPU.

    Args:
        cfg (Config): Of the run; ``optim_wrapper`` is changed to bfloat16,
            or to fp32 where the processor would only emulate it.
    """
    wrapper = cfg.optim_wrapper
    wrapper.type = 'BFloat16OptimWrapper'
    if not has_bfloat16():
        wrapper.type = 'OptimWrapper'
        print_log(
            'This processor has no bfloat16: training goes on in fp32.',
            level=logging.WARNING)
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        wrapper.pop(key, None)


def reuse_memory() -> None:
    """Let this process keep what it frees, for the next tensors.

    By default glibc gives most of it back to the system, which clears every
    page anew: a tenth of a training step. Blocks of more than 30 MB are still
    given back, or the heap would have holes of their size. Without glibc
    nothing is changed.
    """
    if platform.libc_ver()[0] == 'glibc':
        trim_threshold, mmap_threshold = -1, -3  # of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 30 * 2**20)
        libc.mallopt(trim_threshold, 2**31 - 1)


def init_cpu_process_group(cfg: Config) -> None:
    """Let the ranks of a launcher train and test without a GPU.

    mmengine's launcher calls ``torch.cuda.set_device`` whatever the backend,
    and wraps the model with ``device_ids``. A process group that is already
    there is left alone.

    Args:
        cfg (Config): Of the run, with ``launcher``; ``model_wrapper_cfg`` is
            set.

    Raises:
        KeyError: If the launcher has not set the variables that name a rank.
    """
    if not dist.is_initialized():
        _take_environment(cfg.launcher)
        # After a restart by torchrun the store still holds the addresses of
        # the processes that died: each attempt has its own names in it.
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
    if 'strategy' in cfg:  # of a FlexibleRunner, which wraps by itself
        cfg.strategy.model_wrapper.device_id = torch.device('cpu')


def _take_environment(launcher: str) -> None:
    """What torchrun sets, from the variables of another launcher."""
    for name, own in zip(
            _ENVIRONMENT, _LAUNCHERS.get(launcher, ()), strict=False):
        if own not in os.environ:
            raise KeyError(f'--launcher {launcher}, but {own} is not set: '
                           'start the processes with it, or with torchrun')
        os.environ[name] = os.environ[own]
    os.environ.setdefault('MASTER_PORT', '29500')
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        hosts = subprocess.run(
            ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']],
            stdout=subprocess.PIPE,
            text=True,
            check=True).stdout
        os.environ['MASTER_ADDR'] = hosts.split()[0]
