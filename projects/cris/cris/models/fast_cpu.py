# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Drop-in replacements that are faster on a CPU.

:func:`optimize_for_cpu_training` and :func:`optimize_for_cpu_inference` swap
them in. They share the parameters of the modules they replace, under the same
names, so checkpoints do not change. A GPU runs the plain modules.

Gain: extra run time of R50 without the module, in fp32 / bf16, at 416 x 416
pixels and 7 expressions (training: batch 4), on an Intel Xeon with AVX-512
and AMX, 2 threads, torch 2.14.

Shapes: E expressions; N pixels or L words; h heads; C channels.
"""
import ctypes
import math
import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cris import CRIS, in_autocast
from .projector import TextToPixelProjector

# With fewer rows a convolution's overhead is more than it saves.
_MIN_ROWS = 64


def optimize_for_cpu_training(model: CRIS) -> None:
    """Swap the modules that are faster in training into a model on a CPU."""
    _swap(model, {
        nn.Dropout: FastDropout,
        nn.MultiheadAttention: ProductAttention,
        TextToPixelProjector: FoldedProjector
    })
    model.expressions_at_once = 4  # in validation; training has no chunks


def optimize_for_cpu_inference(model: CRIS, dtype: torch.dtype) -> None:
    """Swap the modules that are faster in inference into a model on a CPU.

    Args:
        model (CRIS): Changed in place.
        dtype (torch.dtype): Of the products, fp32 or bf16.
    """
    table: dict[type, type] = {
        nn.MultiheadAttention: FusedAttention,
        TextToPixelProjector: FoldedProjector
    }
    # PyTorch leaves fp32 products to MKL, which uses AVX-512 only on Intel's
    # processors, but convolutions to oneDNN, which uses it on all. On other
    # processors a linear layer then takes half the time; on Intel's nothing
    # changes.
    if dtype == torch.float32 and torch.backends.mkldnn.is_available():
        table[nn.Linear] = ConvLinear
        table[nn.MultiheadAttention] = ConvAttention
    _swap(model, table)
    # Larger chunks no longer fit in the CPU cache: gain 6 / 0 %. A chunk
    # takes the same number of bytes in every type: 4 expressions in fp32
    # (4 bytes per element), 8 in bf16.
    model.expressions_at_once = 16 // dtype.itemsize


def _swap(module: nn.Module, table: dict[type, type]) -> None:
    for name, child in module.named_children():
        if type(child) in table:
            setattr(module, name, table[type(child)](child))
        else:
            _swap(child, table)


class _Replacement(nn.Module):
    """Takes over the settings, parameters and submodules of a module."""

    def __init__(self, plain: nn.Module):
        nn.Module.__init__(self)
        vars(self).update(vars(plain))


class FoldedProjector(_Replacement, TextToPixelProjector):
    """The projector without its largest maps; gain 43 / 42 %, training 24 /
    31 %.

    The last projection of the pixels is linear, so it is applied to the
    kernel instead of the map. The grouped convolution becomes one matrix
    product per expression whose k * k responses are added at their offsets.
    But for training in bf16, the upsampled maps are never made
    (:func:`conv_of_upsampled`: 32 / 4 % of the gain in inference, 8 % in
    training in fp32).
    """

    def forward(self, decoded: Tensor, sentence: Tensor) -> Tensor:
        """See :meth:`TextToPixelProjector.forward`."""
        if torch.is_grad_enabled() and in_autocast(decoded.device):
            pixels = self.upsample(decoded)  # as fast for R50, faster if small
        else:
            pixels = decoded
            for block in (self.upsample[1], self.upsample[3]):
                pixels = block[1:](conv_of_upsampled(pixels, block[0]))
        size, k = pixels.shape[-2:], self.kernel_size
        with torch.autocast(pixels.device.type, enabled=False):
            weight, bias = self.make_kernel(sentence.float())
            kernel = weight.flatten(2).transpose(1, 2)  # (E, k*k, C/2)
            offset = kernel @ self.pixel_proj.bias[:, None]  # (E, k*k, 1)
            kernel = kernel @ self.pixel_proj.weight.flatten(1)
            # Keep channels last, as in memory, so that the gradients are too.
            pixels = pixels.float().flatten(2).transpose(1, 2)  # (E, HW, C/2)
            responses = (pixels @ kernel.transpose(1, 2)).transpose(1, 2)
            responses = responses + offset  # (E, k*k, H*W)
            # F.fold scatters where a convolution gathers, so flip the taps.
            logits = F.fold(responses.flip(1), size, k, padding=k // 2)
            return logits + bias[:, None, None, None]


def conv_of_upsampled(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """``conv`` of ``x`` upsampled twofold (bilinear), without that map.

    Both are linear, so every tap of the kernel is applied at the low
    resolution, to a quarter of the pixels, and its output is upsampled and
    shifted, columns and rows apart: the same sum with a quarter of the
    convolution's FLOPs and less memory in training.

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
    # One row of the kernel at a time, summed in place: large maps are slow to
    # allocate and fill the memory.
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
    """For every tap, the matrix that upsamples twofold and shifts,
    ``(kernel_size, 2 * length, length)``; zeros where a shift reaches beyond
    the ends, as a convolution pads.
    """
    upsampling = F.interpolate(
        torch.eye(length)[None], scale_factor=2, mode='linear')[0].T
    pad = kernel_size // 2
    padded = F.pad(upsampling, (0, 0, pad, pad))
    return padded.unfold(0, 2 * length, 1).transpose(1, 2)


class ConvLinear(_Replacement, nn.Linear):
    """A linear layer as a 1 x 1 convolution, for oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        return conv_linear(x, self.weight, self.bias)


def conv_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Like ``torch.nn.functional.linear``, by a 1 x 1 convolution."""
    rows = x.numel() // x.shape[-1]
    if rows < _MIN_ROWS:
        return F.linear(x, weight, bias)
    columns = x.reshape(1, rows, 1, -1).permute(0, 3, 1, 2)  # channels last
    out = F.conv2d(columns, weight[..., None, None], bias)
    return out.permute(0, 2, 3, 1).view(*x.shape[:-1], -1)


class FusedAttention(_Replacement, nn.MultiheadAttention):
    """Batch-first attention by PyTorch's fused kernel; gain 5 / 2 %.

    nn.MultiheadAttention itself multiplies transposed views.
    """
    linear = staticmethod(F.linear)

    def forward(self, query: Tensor, key: Tensor, value: Tensor,
                key_padding_mask: Tensor | None = None,
                need_weights: bool = True, attn_mask: Tensor | None = None,
                **kwargs) -> tuple[Tensor, Tensor | None]:
        """See ``torch.nn.MultiheadAttention.forward``."""
        both = key_padding_mask is not None and attn_mask is not None
        if need_weights or both:
            return super().forward(query, key, value, key_padding_mask,
                                   need_weights, attn_mask, **kwargs)
        if key_padding_mask is not None:
            attn_mask = ~key_padding_mask[:, None, None]  # True attends
        weights = (
            self.in_proj_weight.chunk(3) if self.in_proj_weight is not None
            else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight))
        heads = [
            self.linear(x, weight, bias).unflatten(
                -1, (self.num_heads, -1)).transpose(1, 2)  # (E, h, N, C/h)
            for x, weight, bias in zip((query, key, value), weights,
                                       self.in_proj_bias.chunk(3), strict=True)
        ]
        out = self.attend(*heads, attn_mask).transpose(1, 2).flatten(2)
        return self.linear(out, self.out_proj.weight, self.out_proj.bias), None

    def attend(self, query: Tensor, key: Tensor, value: Tensor,
               mask: Tensor | None) -> Tensor:
        """Output of every head, ``(E, h, N, C/h)``."""
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask)


class ConvAttention(FusedAttention):
    """:class:`FusedAttention` whose projections are :func:`conv_linear`."""
    linear = staticmethod(conv_linear)


class ProductAttention(FusedAttention):
    """Attention by plain products, for training; gain 3 / 53 %.

    The fused kernel has no dropout on a CPU, and its bf16 backward pass takes
    several times as long.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor,
               mask: Tensor | None) -> Tensor:
        """See :meth:`FusedAttention.attend`."""
        if not torch.is_grad_enabled():
            return super().attend(query, key, value, mask)
        weights = query * query.shape[-1]**-0.5 @ key.transpose(2, 3)
        if mask is not None and mask.dtype == torch.bool:
            weights = weights.masked_fill(~mask, -math.inf)
        elif mask is not None:
            weights = weights + mask
        weights = weights.softmax(dim=3)  # (E, h, N, L)
        if self.training and self.dropout > 0:
            weights = fast_dropout(weights, self.dropout)
        return weights @ value


class FastDropout(_Replacement, nn.Dropout):
    """Dropout from 16 random bits per element; gain 5 / 9 % with that of
    :class:`ProductAttention`.

    PyTorch draws a float per element on a CPU. The probability is rounded to a
    multiple of 2 ** -16.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return fast_dropout(x, self.p)


def fast_dropout(x: Tensor, p: float) -> Tensor:
    """Drop elements with probability ``p`` and scale the others."""
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
        # Scale last: in bf16 the scale itself would be rounded.
        return keep.to(x.dtype).mul_(x).mul_(scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (keep, ) = ctx.saved_tensors
        return keep.to(grad.dtype).mul_(grad).mul_(ctx.scale), None, None


def reuse_memory() -> None:
    """Let this process keep the memory it frees, for the next tensors.

    By default glibc returns most of it to the system, which clears every page
    again: a tenth of a training step. Blocks of more than 30 MB are still
    returned, to limit fragmentation. Without glibc nothing changes.
    """
    if platform.libc_ver()[0] == 'glibc':
        trim_threshold, mmap_threshold = -1, -3  # of malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 30 * 2**20)
        libc.mallopt(trim_threshold, 2**31 - 1)
