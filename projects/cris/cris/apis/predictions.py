# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""From the logits of an image to masks, boxes and scores.

Shapes: an image of h x w pixels with K expressions.
"""
from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from cris.evaluation.confidence import confidence


def make_prediction(model: nn.Module, logits: Tensor, shape: tuple[int, int],
                    expressions: Sequence[str],
                    threshold: float | None = None, return_masks: bool = True,
                    return_probs: bool = False) -> dict:
    """Masks at the original size, with their boxes and scores.

    The model does not run, so that another threshold is cheap.

    Args:
        model (CRIS): The model.
        logits (Tensor): Its output, ``(K, 1, H/4, W/4)``.
        shape (tuple[int, int]): Height and width of the image.
        expressions (Sequence[str]): K expressions.
        threshold (float, optional): A pixel belongs to the mask if its
            probability is higher. None means the model's.
        return_masks (bool): False returns the RLEs only, which saves memory
            with many expressions on a large image.
        return_probs (bool): Return the probabilities, too.

    Returns:
        dict: ``expressions``, K strings; ``scores``, float32 ``(K,)``, see
        :func:`cris.evaluation.confidence`; ``boxes``, float32 ``(K, 4)`` of
        x0, y0, x1, y1 in pixels, zeros where the mask is empty; ``rles``, K
        compressed COCO RLEs, ready for JSON; ``height``, ``width``,
        ``threshold``; on request ``masks``, bool ``(K, h, w)``, and
        ``probs``, float32 ``(K, h, w)``. The latter overshoot [0, 1] at sharp
        edges because of the bicubic interpolation of the official code.

    Raises:
        ValueError: If threshold is not in [0, 1], or a logit is not finite.
    """
    if threshold is None:
        threshold = model.decode_head.threshold
    if not isinstance(threshold, Real):
        raise ValueError(f'threshold={threshold!r} must be a number')
    if not 0 <= threshold <= 1:
        raise ValueError(f'threshold={threshold} must be in [0, 1]')
    scores, rles, masks, probs = [], [], [], []
    for k in range(len(expressions)):  # maps may be large: one at a time
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
        expressions=list(expressions), scores=np.array(scores, np.float32),
        boxes=boxes,
        rles=[dict(rle, counts=rle['counts'].decode()) for rle in rles],
        height=shape[0], width=shape[1], threshold=float(threshold))
    if return_masks:
        prediction['masks'] = np.stack(masks)
    if return_probs:
        prediction['probs'] = np.stack(probs)
    return prediction


def to_data_sample(prediction: dict) -> SegDataSample:
    """A prediction with masks as a sample like those of CRIS.predict."""
    sample = SegDataSample(metainfo=dict(
        img_path=prediction['img_path'],
        ori_shape=(prediction['height'], prediction['width']),
        expressions=prediction['expressions'], scores=prediction['scores']))
    masks, probs = prediction['masks'], prediction.get('probs')
    sample.pred_sem_seg = PixelData(data=torch.from_numpy(masks))
    if probs is not None:
        sample.seg_logits = PixelData(data=torch.from_numpy(probs))
    return sample
