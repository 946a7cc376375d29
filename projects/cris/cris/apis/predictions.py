# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""From the logits of a picture to what a user wants to know of it.

Shapes: a picture of h x w pixels with K expressions.
"""
from collections.abc import Sequence
from numbers import Real

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from cris.evaluation.confidence import confidence
from cris.visualization.draw import cut, draw_masks, draw_tile, join_tiles

_MOST_TILES, _COLUMNS = 100, 4  # of a sheet
_LONGEST = 120  # characters of an expression on it


def make_prediction(model: nn.Module,
                    logits: Tensor,
                    shape: tuple[int, int],
                    expressions: Sequence[str],
                    threshold: float | None = None,
                    return_masks: bool = True,
                    return_probs: bool = False) -> dict:
    """Masks at the original size and what follows from them.

    The model does not run: another threshold costs only this.

    Args:
        model (nn.Module): A :class:`cris.models.CRIS`.
        logits (Tensor): Its answers, ``(K, 1, H/4, W/4)``.
        shape (tuple[int, int]): Height and width of the picture.
        expressions (Sequence[str]): K of them.
        threshold (float, optional): A pixel belongs to the mask if its
            probability is higher. None takes the model's.
        return_masks (bool): False leaves only the RLEs, which a thousand
            expressions of a large picture want. Defaults to True.
        return_probs (bool): Defaults to False.

    Returns:
        dict: ``expressions``, K strings; ``scores``, float32 ``(K,)``, see
        :func:`cris.evaluation.confidence`; ``boxes``, float32 ``(K, 4)`` of
        x0, y0, x1, y1 in pixels, zeros where the mask is empty; ``rles``, K
        compressed COCO RLEs that JSON can hold; ``height``, ``width``,
        ``threshold``; on request ``masks``, bool ``(K, h, w)``, and
        ``probs``, float32 ``(K, h, w)``, which overshoot [0, 1] at sharp
        edges, for they are interpolated as in the official code (bicubic).

    Raises:
        ValueError: If threshold is not in [0, 1], or a logit is no number.
    """
    if threshold is None:
        threshold = model.decode_head.threshold
    if not isinstance(threshold, Real):
        raise ValueError(f'threshold={threshold!r} must be a number')
    if not 0 <= threshold <= 1:
        raise ValueError(f'threshold={threshold} must be in [0, 1]')
    scores, rles, masks, probs = [], [], [], []
    for k in range(len(expressions)):  # one map at a time: they may be large
        prob = model.original_size(logits[k:k + 1], shape)[0]
        mask = (prob > threshold).numpy()
        prob = prob.numpy()
        scores.append(confidence(prob, mask))
        rles.append(coco_mask.encode(np.asfortranarray(mask, np.uint8)))
        if return_masks:
            masks.append(mask)
        if return_probs:
            probs.append(prob)
    boxes = coco_mask.toBbox(rles).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    prediction = dict(
        expressions=list(expressions),
        scores=np.array(scores, np.float32),
        boxes=boxes,
        rles=[dict(rle, counts=rle['counts'].decode()) for rle in rles],
        height=shape[0],
        width=shape[1],
        threshold=float(threshold))
    if return_masks:
        prediction['masks'] = np.stack(masks)
    if return_probs:
        prediction['probs'] = np.stack(probs)
    return prediction


def draw_prediction(image: np.ndarray, prediction: dict) -> np.ndarray:
    """A sheet with a tile for every expression.

    Args:
        image (np.ndarray): RGB, uint8 ``(h, w, 3)``, or smaller.
        prediction (dict): By :func:`make_prediction`.

    Returns:
        np.ndarray: RGB, uint8: the mask of an expression in cyan, and below
        it the expression and its score. With several expressions the plain
        picture comes first, and only the first hundred are drawn.
    """
    expressions, scores, rles = (
        prediction[key][:_MOST_TILES]
        for key in ('expressions', 'scores', 'rles'))
    one = len(expressions) == 1
    width = min(max(image.shape[1], 320), 1000 if one else 400)
    # Outlines are of the size that is shown, and large pictures take long.
    scale = min(1, width / image.shape[1])
    image = cv2.resize(
        image, (max(1, round(scale * image.shape[1])),
                max(1, round(scale * image.shape[0]))),
        interpolation=cv2.INTER_AREA)
    tiles = [] if one else [draw_tile(image, 'picture', width)]
    for expression, score, rle in zip(expressions, scores, rles, strict=True):
        mask = cv2.resize(
            coco_mask.decode(rle), (image.shape[1], image.shape[0]),
            interpolation=cv2.INTER_NEAREST).astype(bool)
        caption = f'"{cut(expression, _LONGEST)}"  {score:.2f}'
        if not coco_mask.area(rle):
            caption += '  (nothing found)'
        tiles.append(draw_tile(draw_masks(image, pred=mask), caption, width))
    return join_tiles(tiles, _COLUMNS)
