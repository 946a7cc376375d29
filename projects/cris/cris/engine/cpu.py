# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What mmengine leaves out for machines without a GPU."""
import logging
from contextlib import contextmanager

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.utils import digit_version
from mmseg.registry import OPTIM_WRAPPERS
from torch import nn


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
    return (not _before_torch_2_4()
            and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _before_torch_2_4() -> bool:
    return digit_version(torch.__version__) < digit_version('2.4')


def avoid_fused(cfg: Config) -> None:
    """Drop ``fused=True`` of the optimizer, unknown to CPUs before torch 2.4.

    Args:
        cfg (Config): Of the run; ``optim_wrapper`` is changed.
    """
    if _before_torch_2_4():
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


def init_cpu_process_group(cfg: Config) -> None:
    """Let torchrun's ranks train and test without a GPU.

    mmengine's launcher calls ``torch.cuda.set_device`` whatever the backend,
    and wraps the model with ``device_ids``. A process group that is already
    there is left alone.

    Args:
        cfg (Config): Of the run; ``model_wrapper_cfg`` is set.
    """
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
        device_ids=None)
    cfg.sync_bn = None  # SyncBatchNorm has no CPU kernel
