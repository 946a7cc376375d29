# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""fp32 products on CPUs by oneDNN.

PyTorch leaves them to MKL, which uses AVX-512 on Intel's processors alone,
but convolutions to oneDNN, which uses it on all: there a linear layer runs at
twice the speed as a 1 x 1 convolution.
"""
import ctypes
import platform
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import project_heads

# With fewer rows the convolution's overhead is more than it saves.
_MIN_ROWS = 64


def use_onednn(model: nn.Module) -> None:
    """Let linear layers and attention of a model multiply by convolutions.

    Args:
        model (nn.Module): In fp32, on a CPU; only its forward pass changes.
    """
    if not torch.backends.mkldnn.is_available():  # oneDNN's former name
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = partial(
                linear, weight=module.weight, bias=module.bias)
        elif type(module) is nn.MultiheadAttention:
            module.forward = partial(_attend, module)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Like ``torch.nn.functional.linear``, ``(..., C_in)`` to ``(..., C)``."""
    rows = x.numel() // x.shape[-1]
    if rows < _MIN_ROWS:
        return F.linear(x, weight, bias)
    columns = x.reshape(1, rows, 1, -1).permute(0, 3, 1, 2)  # channels last
    out = F.conv2d(columns, weight[..., None, None], bias)
    return out.permute(0, 2, 3, 1).view(*x.shape[:-1], -1)


def _attend(attention: nn.MultiheadAttention,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            key_padding_mask: Tensor | None = None,
            need_weights: bool = True,
            attn_mask: Tensor | None = None,
            **kwargs) -> tuple[Tensor, Tensor | None]:
    """``attention.forward``, sequence first: ``(N, E, C)`` to the same."""
    both = key_padding_mask is not None and attn_mask is not None
    if need_weights or both or attention.batch_first:
        return nn.MultiheadAttention.forward(
            attention,
            query,
            key,
            value,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            **kwargs)
    q, k, v = project_heads(attention, (query, key, value), linear)
    mask = attn_mask
    if key_padding_mask is not None:
        mask = ~key_padding_mask[:, None, None]  # True takes part
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    out = out.permute(2, 0, 1, 3).flatten(2)
    projection = attention.out_proj
    return linear(out, projection.weight, projection.bias), None


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
