# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Count parameters and FLOPs of a model (a multiply-add is two).

One image, one expression. The head takes the same sums in an order of its own
(cris.models.decode_head), so those of the official code are printed, too.
"""
import argparse
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from mmengine.config import DictAction
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cris.engine import load_config

STAGES = ('image', 'text', 'neck', 'decoder', 'head')


def _plain_attention() -> AbstractContextManager:
    """Attention as products of matrices: not every torch counts the other."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # before torch 2.3, which counts both
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


@torch.no_grad()
def count_flops(model: nn.Module, height: int, width: int,
                length: int) -> dict[str, int]:
    """FLOPs of every stage for one image and one expression.

    Args:
        model (nn.Module): CRIS, in eval mode.
        height (int): Of the input, in pixels, a multiple of 32.
        width (int): Likewise.
        length (int): Tokens of the expression.

    Returns:
        dict[str, int]: By the names of ``STAGES``; ``official head`` and,
        with it in the place of ``head``, ``official``, the sum of the stages
        in the official code.
    """
    head = model.decode_head
    flops = {}

    def counted(stage, function, *args, **kwargs):
        with FlopCounterMode(display=False) as counter, _plain_attention():
            out = function(*args, **kwargs)
        flops[stage] = counter.get_total_flops()
        return out

    images = torch.zeros(1, 3, height, width)
    tokens = torch.ones(1, length, dtype=torch.long)
    c3, c4, c5 = counted('image', model.backbone.encode_image, images)
    words, sentence = counted('text', model.backbone.encode_text, tokens)
    x = counted(
        'neck',
        model.neck,
        c3,
        c4,
        c5,
        sentence=sentence,
        image_index=torch.zeros(1, dtype=torch.long))
    flops['decoder'] = 0
    if head.decoder is not None:
        x = counted(
            'decoder', head.decoder, x, words=words, padding_mask=tokens == 0)
    counted('head', head.projector, x, sentence)
    counted('official head', _official_head, head.projector, x)
    flops['official'] = flops['official head'] + sum(
        flops[stage] for stage in STAGES[:-1])
    return flops


def _official_head(projector: nn.Module, x: Tensor) -> None:
    """The head's work on the maps as the official code orders it."""
    pixels = projector.pixel_proj(projector.upsample(x))
    k = projector.kernel_size
    kernel = pixels.new_zeros(1, pixels.shape[1], k, k)
    F.conv2d(pixels, kernel, padding=k // 2)
    if hasattr(projector, 'kernel_proj'):
        linear = projector.kernel_proj
        linear(x.new_zeros(1, linear.in_features))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="size of the input in pixels (default: the config's)")
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    cfg = load_config(args.config, args.cfg_options)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).eval()
    shape = args.shape or cfg.image_size
    height, width = (shape, shape) if isinstance(shape, int) else shape

    flops = count_flops(model, height, width, cfg.context_length)
    parameters = sum(p.numel() for p in model.parameters())
    print(f'input {height}x{width}, {cfg.context_length} tokens, one image, '
          'one expression')
    print(f'parameters     {parameters / 1e6:8.2f} M')
    for stage in STAGES:
        print(f'{stage:14} {flops[stage] / 1e9:8.1f} GFLOPs')
    total = sum(flops[stage] for stage in STAGES)
    print(f'total          {total / 1e9:8.1f} GFLOPs')
    print(f'official code  {flops["official"] / 1e9:8.1f} GFLOPs (head '
          f'{flops["official head"] / 1e9:.2f})')


if __name__ == '__main__':
    main()
