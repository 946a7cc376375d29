# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def conv_bn_relu(in_channels: int,
                 out_channels: int,
                 kernel_size: int = 1) -> nn.Sequential:
    """Size-preserving convolution without bias, batch norm, ReLU."""
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=padding,
            bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


@torch.compiler.disable  # It cannot trace context_fn.
def recompute(function: Callable, module: nn.Module, x: Tensor) -> Tensor:
    """``function(x)``, computed again in the backward pass.

    Unlike plain checkpointing, this updates the running statistics of batch
    norm once.

    Args:
        function (Callable): A method of ``module``.
        module (nn.Module): The module whose buffers ``function`` updates.
        x (Tensor): The input.
    """
    return checkpoint(
        function,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _buffers_unchanged(module)))


@contextmanager
def _buffers_unchanged(module: nn.Module) -> Iterator[None]:
    """Restore the module's buffers on exit."""
    kept = [(m._buffers, dict(m._buffers)) for m in module.modules()]
    for current, buffers in kept:
        current.update((name, buffer.clone())
                       for name, buffer in buffers.items()
                       if buffer is not None)
    try:
        yield
    finally:
        for current, buffers in kept:
            current.update(buffers)
