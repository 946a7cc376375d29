# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Mixed precision on a CPU, which mmengine lacks."""
import logging
from contextlib import contextmanager

import torch
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

    Before torch 2.4 CPU autocast leaves the attention mask in fp32, and
    attention then fails.
    """
    return (not before_torch_2_4() and torch.backends.mkldnn.is_available()
            and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def before_torch_2_4() -> bool:
    """Whether torch lacks mixed precision and fused Adam on CPUs."""
    return digit_version(torch.__version__) < digit_version('2.4')


def avoid_fused(cfg: Config) -> None:
    """Drop the optimizer's ``fused=True`` for CPUs before torch 2.4."""
    if before_torch_2_4():
        cfg.optim_wrapper.optimizer.pop('fused', None)


def use_bfloat16(cfg: Config) -> None:
    """Train in bfloat16, or in fp32 where it would only be emulated."""
    wrapper = cfg.optim_wrapper
    wrapper.type = 'BFloat16OptimWrapper'
    if not has_bfloat16():
        wrapper.type = 'OptimWrapper'
        cause = f'torch {torch.__version__} has no bfloat16 attention on CPUs'
        if not before_torch_2_4():
            cause = 'this processor would only emulate bfloat16'
        print_log(f'Training uses fp32: {cause}.', level=logging.WARNING)
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        wrapper.pop(key, None)
