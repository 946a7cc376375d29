# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def conv_bn_relu(in_channels: int,
                 out_channels: int,
                 kernel_size: int = 1) -> nn.Sequential:
    """Size-preserving convolution without bias, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def in_autocast(device: torch.device) -> bool:
    """Whether operations on a device run in mixed precision."""
    # Before torch 2.4 is_autocast_enabled takes no device.
    return (torch.is_autocast_cpu_enabled()
            if device.type == 'cpu' else torch.is_autocast_enabled())


@torch.compiler.disable  # It cannot trace context_fn.
def recomputed(function: Callable, module: nn.Module, x: Tensor) -> Tensor:
    """``function(x)``, computed again in the backward pass.

    Args:
        function (Callable): A module, or a method of one.
        module (nn.Module): What ``function`` uses. Its buffers, such as batch
            normalisation's running statistics, are updated once only.
        x (Tensor): Its input.
    """
    return checkpoint(
        function,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _buffers_unchanged(module)))


@contextmanager
def _buffers_unchanged(module: nn.Module) -> Iterator[None]:
    """What updates buffers updates copies."""
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


class Dropout(nn.Dropout):
    """Like ``torch.nn.Dropout``, which on a CPU draws a float per element.

    Here it takes a quarter of 64 random bits, in a seventh of the time: the
    probability is rounded to a multiple of 2 ** -16.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != 'cpu':
            return super().forward(x)
        return dropout_on_cpu(x, self.p)


def dropout_on_cpu(x: Tensor, p: float) -> Tensor:
    """What :class:`Dropout` does in training, with probability ``p``."""
    dropped = round(p * 2**16)
    if dropped == 2**16:
        return x * 0
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
    bits = bits.random_(-2**63, None).view(torch.int16)  # the whole range
    keep = (bits[:x.numel()] >= dropped - 2**15).view(x.shape)
    return _Masked.apply(x, keep, 2**16 / (2**16 - dropped))


class _Masked(torch.autograd.Function):
    """``x * keep * scale``: torch.where takes three times as long."""

    @staticmethod
    def forward(ctx, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        # The scale last, or bfloat16 would round it.
        return keep.to(x.dtype).mul_(x).mul_(scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (keep, ) = ctx.saved_tensors
        return keep.to(grad.dtype).mul_(grad).mul_(ctx.scale), None, None


def project_heads(attention: nn.MultiheadAttention,
                  inputs: tuple[Tensor, ...],
                  linear: Callable = F.linear) -> list[Tensor]:
    """Query, key and value of every head, ``(N, E, C)`` to ``(E, h, N, c)``.

    Args:
        attention (nn.MultiheadAttention): Sequence first.
        inputs (tuple[Tensor]): Query, key and value.
        linear (Callable): Multiplies. Defaults to PyTorch's.
    """
    if attention.in_proj_weight is not None:
        weights = attention.in_proj_weight.chunk(3)
    else:
        weights = (attention.q_proj_weight, attention.k_proj_weight,
                   attention.v_proj_weight)
    return [
        linear(x, weight, bias).unflatten(
            -1, (attention.num_heads, -1)).permute(1, 2, 0, 3)
        for x, weight, bias in zip(
            inputs, weights, attention.in_proj_bias.chunk(3), strict=True)
    ]


def conv_of_upsampled(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """``conv`` of ``x`` upsampled twofold (bilinear), without that map.

    Both are linear, so every tap of the kernel is applied at the low
    resolution, to a quarter of the pixels, and what it gives is upsampled and
    shifted, columns and rows apart: the same sum with a quarter of the
    convolution's FLOPs, and none of the upsampled map's memory in training.

    Args:
        x (Tensor): ``(B, C, h, w)``.
        conv (nn.Conv2d): A k x k convolution that preserves the size.

    Returns:
        Tensor: ``(B, C_out, 2h, 2w)``, channels last in memory.
    """
    size, _, height, width = x.shape
    k = conv.kernel_size[0]
    rows = _shifted_upsampling(height, k).to(x)  # (k, 2h, h)
    columns = _shifted_upsampling(width, k).to(x)
    columns = columns.permute(1, 2, 0).flatten(1)  # (2w, w * k)
    out = None
    # One row of the kernel at a time, and sums in place: large maps are slow
    # to make and fill the memory.
    for taps, row in zip(conv.weight.unbind(2), rows, strict=True):
        taps = taps.permute(2, 0, 1).flatten(0, 1)[..., None, None]
        part = F.conv2d(x, taps).permute(0, 2, 3, 1)  # (B, h, w, k * C_out)
        part = part.reshape(size * height, width * k, -1)
        part = (columns @ part).view(size, height, -1)
        row = row.to(part).expand(size, -1, -1)
        out = row @ part if out is None else out.baddbmm_(row, part)
    out = out.unflatten(2, (2 * width, -1))  # (B, 2h, 2w, C_out)
    if conv.bias is not None:
        out += conv.bias
    return out.permute(0, 3, 1, 2)


def _shifted_upsampling(length: int, kernel_size: int) -> Tensor:
    """For every tap, the matrix that upsamples twofold and shifts.

    Returns:
        Tensor: ``(kernel_size, 2 * length, length)``; zeros where a shift
        reaches beyond the ends, as a convolution pads.
    """
    upsampling = F.interpolate(
        torch.eye(length)[None], scale_factor=2, mode='linear')[0].T
    pad = kernel_size // 2
    padded = F.pad(upsampling, (0, 0, pad, pad))
    return padded.unfold(0, 2 * length, 1).transpose(1, 2)
