# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""FLOPs of each stage of a model; a multiply-add counts as two."""
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cris.engine import optimize_for_inference

STAGES = ('image', 'text', 'neck', 'decoder', 'head')


@torch.no_grad()
def count_flops(model: nn.Module, height: int, width: int,
                length: int) -> dict[str, int]:
    """FLOPs of every stage for one image and one expression.

    Args:
        model (nn.Module): CRIS; it is moved to the CPU and optimized there.
        height (int): Height of the input in pixels, a multiple of 32.
        width (int): Likewise.
        length (int): Tokens of the expression.

    Returns:
        dict[str, int]: By the names of ``STAGES``; ``official head``, the
        head's in the official code, and ``official``, the sum of the stages
        with that head.
    """
    model = optimize_for_inference(model.cpu())
    head = model.decode_head
    images = torch.zeros(1, 3, height, width)
    tokens = torch.ones(1, length, dtype=torch.long)
    _, flops_image = _count(model.backbone.encode_image, images)
    features, flops_project = _count(model.encode_image, images)
    (words, sentence), flops_text = _count(model.encode_text, tokens)
    x, flops_fuse = _count(model.neck.fuse, *features, sentence=sentence)
    flops_decoder = 0
    if head.decoder is not None:
        x, flops_decoder = _count(
            head.decoder, x, words=words, padding_mask=tokens == 0)
    _, flops_head = _count(head.projector, x, sentence)
    _, official_head = _count(_official_head, head.projector, x)
    # model.encode_image includes the neck's projections of the image.
    flops = dict(
        zip(STAGES, (flops_image, flops_text, flops_project - flops_image +
                     flops_fuse, flops_decoder, flops_head), strict=True))
    official = sum(flops.values()) - flops_head + official_head
    return {**flops, 'official head': official_head, 'official': official}


def _count(function: Callable, *args, **kwargs) -> tuple:
    with FlopCounterMode(display=False) as counter, _plain_attention():
        out = function(*args, **kwargs)
    return out, counter.get_total_flops()


def _plain_attention() -> AbstractContextManager:
    """Attention as matrix products: not every torch counts the other kinds."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # before torch 2.3, which counts all
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


def _official_head(projector: nn.Module, x: Tensor) -> None:
    """The head's work on the maps in the official code's order."""
    pixels = projector.pixel_proj(projector.upsample(x))
    k = projector.kernel_size
    kernel = pixels.new_zeros(1, pixels.shape[1], k, k)
    F.conv2d(pixels, kernel, padding=k // 2)
    if hasattr(projector, 'kernel_proj'):
        linear = projector.kernel_proj
        linear(x.new_zeros(1, linear.in_features))
