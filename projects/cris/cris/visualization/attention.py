# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The attention of the decoder's pixels to words (paper section 3.2).

Shapes: E expressions of L tokens; N pixels of the decoder; W words of
one expression on an image of h x w pixels.
"""
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from mmengine.dataset import pseudo_collate
from mmseg.registry import TRANSFORMS
from torch import Tensor, nn

from cris.datasets.tokenizer import split_words
from cris.datasets.transforms import without_loading
from cris.geometry import unletterbox

from .draw import draw_masks, draw_sheet


class WordAttention(NamedTuple):
    """Attention of an image's pixels to the words of one expression."""
    words: list[str]  #: W words, with ``<start>`` and ``<end>``
    maps: np.ndarray  #: attention to each word, float32 (W, h, w) in [0, 1]
    pred: np.ndarray  #: prediction, bool (h, w)


@torch.no_grad()
def word_attention(model: nn.Module, image: np.ndarray, expression: str,
                   layer: int = -1) -> WordAttention:
    """Attention of pixels to words at the image's size, averaged over heads.

    The tokens of a word are added up. With ``<start>`` and ``<end>``, where
    much of the attention goes, the maps add up to 1 at each pixel, up to
    interpolation.

    Args:
        model (nn.Module): From :func:`cris.init_model`.
        image (np.ndarray): RGB, uint8 ``(h, w, 3)``.
        expression (str): Words beyond the context length have no map.
        layer (int): Index of the decoder layer; negative ones count from the
            last. Defaults to -1.

    Raises:
        ValueError: If the model has no such decoder layer.
    """
    sample = dict(img=np.ascontiguousarray(image[..., ::-1]),
                  ori_shape=image.shape[:2], img_shape=image.shape[:2],
                  expressions=[expression])
    for transform in without_loading(
            model.cfg.test_dataloader.dataset.pipeline):
        sample = TRANSFORMS.build(transform)(sample)
    batch = model.data_preprocessor(pseudo_collate([sample]), False)
    with record_attention(model, layer) as recorded:
        (answer, ) = model.predict(batch['inputs'], batch['data_samples'])
    words = split_words(answer.tokens[0].tolist())
    maps = torch.stack([recorded[0][0, :, own].sum(dim=1) for _, own in words])
    maps = _to_image(maps, batch['inputs'].shape[-2:], image.shape[:2])
    return WordAttention([word for word, _ in words], maps,
                         answer.pred_sem_seg.data[0].cpu().numpy())


@contextmanager
def record_attention(model: nn.Module,
                     layer: int = -1) -> Iterator[list[Tensor]]:
    """Record the attention of a decoder layer to tokens while it runs.

    Yields:
        list[Tensor]: One ``(E, N, L)``, averaged over heads, for each pass of
        the decoder without gradients; a pass decodes a few expressions. It
        adds up to 1 over L; padding has 0.

    Raises:
        ValueError: If the model has no such decoder layer.
    """
    decoder = model.decode_head.decoder
    count = 0 if decoder is None else len(decoder.layers)
    if not -count <= layer < count:
        raise ValueError(
            f'layer {layer} of a decoder with {count} layers: ' +
            (f'choose one from {-count} to {count - 1}' if count else
             'the model has no attention to words'))
    attention = decoder.layers[layer].cross_attn
    recorded = []

    def request(module, args, kwargs):
        return args, dict(kwargs, need_weights=True, average_attn_weights=True)

    def keep(module, args, output):
        recorded.append(output[1].detach().float().cpu())

    with (attention.register_forward_pre_hook(request, with_kwargs=True),
          attention.register_forward_hook(keep)):
        yield recorded


def _to_image(maps: Tensor, size: Sequence[int],
              ori_shape: Sequence[int]) -> np.ndarray:
    """Maps (W, N) of an input of this size at the size of the image."""
    # The decoder's pixels are square: N = H / stride * W / stride.
    stride = math.isqrt(math.prod(size) // maps.shape[1])
    height, width = (side // stride for side in size)
    maps = F.interpolate(maps.unflatten(1, (height, width))[None], size,
                         mode='bilinear', align_corners=False)[0]
    # Interpolation at the edge mixes in zeros from outside the image.
    total = unletterbox(np.ones(size, np.float32), *ori_shape)
    return np.clip(unletterbox(maps.numpy(), *ori_shape) / total, 0, 1)


def draw_attention(image: np.ndarray, expression: str,
                   attention: WordAttention) -> np.ndarray:
    """A sheet with the image, the prediction and a heat map for each word.

    Each map has its own colour scale, from its minimum, dark, to its maximum,
    bright; the caption gives both.

    Args:
        image (np.ndarray): RGB, uint8 ``(h, w, 3)``; so is the sheet.
        expression (str): For the caption.
        attention (WordAttention): From :func:`word_attention`.
    """
    tiles = [(image, 'image'), (draw_masks(image, pred=attention.pred),
                                f'"{expression}": prediction')]
    grey = cv2.cvtColor(
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    for word, share in zip(attention.words, attention.maps, strict=True):
        low, high = share.min(), share.max()
        heat = colormaps['inferno']((share - low) / max(high - low, 1e-6))
        drawn = (0.35 * grey + 0.65 * 255 * heat[..., :3]).astype(np.uint8)
        tiles.append((drawn, f'{word}  {100 * low:.1f} to {100 * high:.1f} %'))
    return draw_sheet(tiles)
