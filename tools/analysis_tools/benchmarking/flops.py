# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The stages of a prediction, and the FLOPs of each."""
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cris.engine import optimize_for_inference

from .measuring import make_inputs, random_model

STAGES = ('image', 'text', 'neck', 'decoder', 'head')


def make_stages(model: nn.Module, images: Tensor, tokens: Tensor,
                index: Tensor) -> dict[str, Callable]:
    """Each part of a prediction, as a function of the results before it."""
    head, dtype = model.decode_head, model.inference_dtype
    autocast = nullcontext()
    if dtype is not None:
        autocast = torch.autocast(images.device.type, dtype)
    stages = {}

    def stage(name: str, function: Callable, *args, **kwargs):
        def call():
            with autocast:
                return function(*args, **kwargs)

        stages[name] = call
        return call()

    features = stage('image', model.encode_image, images)
    words, sentence = stage('text', model.encode_text, tokens)
    x = stage('neck', model.neck.fuse, *(f[index] for f in features),
              sentence=sentence)
    decoder = head.decoder or (lambda x, **kwargs: x)
    x = stage('decoder', decoder, x, words=words, padding_mask=tokens == 0)
    stage('head', head.projector, x, sentence)
    return stages


@torch.no_grad()
def count_flops(cfg: Config) -> dict[str, int]:
    """FLOPs of every stage for one image and one expression.

    A multiply-add counts as two.

    Args:
        cfg (Config): Config of the model and of the size of its input.

    Returns:
        dict[str, int]: By the names of ``STAGES``; ``official head``, the
        head's in the official code; ``official``, the sum of the stages with
        that head; and ``parameters``, their number.
    """
    model = random_model(cfg, 'cpu')
    parameters = sum(p.numel() for p in model.parameters())
    optimize_for_inference(model)
    images, tokens, index = (x.cpu() for x in make_inputs(cfg, 1, 1))
    stages = make_stages(model, images, tokens, index)
    flops = {name: _count(stage) for name, stage in stages.items()}
    # model.encode_image includes the neck's projections of the image.
    backbone = _count(model.backbone.encode_image, images)
    flops['neck'] += flops['image'] - backbone
    flops['image'] = backbone
    official_head = _count(_official_head, model.decode_head.projector,
                           stages['decoder']())
    official = sum(flops.values()) - flops['head'] + official_head
    return {**flops, 'official head': official_head, 'official': official,
            'parameters': parameters}


def _count(function: Callable, *args) -> int:
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
        # As matrix products: not every torch counts other kinds of attention.
        attention = sdpa_kernel(SDPBackend.MATH)
    except ImportError:  # before torch 2.3, which counts all
        attention = nullcontext()
    with FlopCounterMode(display=False) as counter, attention:
        function(*args)
    return counter.get_total_flops()


def _official_head(projector: nn.Module, x: Tensor) -> None:
    """The head's work on the maps in the official code's order."""
    pixels = projector.pixel_proj(projector.upsample(x))
    k = projector.kernel_size
    kernel = pixels.new_zeros(1, pixels.shape[1], k, k)
    F.conv2d(pixels, kernel, padding=k // 2)
    if hasattr(projector, 'kernel_proj'):
        linear = projector.kernel_proj
        linear(x.new_zeros(1, linear.in_features))
