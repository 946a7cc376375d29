# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def conv_bn_relu(in_channels: int, out_channels: int,
                 kernel_size: int = 1) -> nn.Sequential:
    """Size-preserving convolution without bias, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size,
                  padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


@torch.compiler.disable  # It cannot trace context_fn.
def recompute(function: Callable, module: nn.Module, x: Tensor) -> Tensor:
    """``function(x)``, computed again in the backward pass.

    Unlike plain checkpointing, this updates the running statistics of batch
    norm, the buffers of ``module``, once.
    """
    return checkpoint(
        function, x, use_reentrant=False, preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _buffers_unchanged(module)))


@contextmanager
def _buffers_unchanged(module: nn.Module) -> Iterator[None]:
    # .data: the backward pass would refuse buffers that are known to change.
    kept = [(buffer.data, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)
