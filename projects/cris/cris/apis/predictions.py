# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""From the logits of an image to masks, boxes and scores.

Shapes: an image of h x w pixels with K expressions.
"""
from collections.abc import Sequence
from numbers import Real

import cv2
import numpy as np
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from pycocotools import mask as coco_mask
from torch import nn

from cris.evaluation.confidence import answer_confidence, confidence
from cris.geometry import letterbox_matrix
from cris.models.head import Answer


def make_prediction(model: nn.Module, answer: Answer, shape: tuple[int, int],
                    expressions: Sequence[str],
                    threshold: float | None = None,
                    existence_threshold: float | None = None,
                    instances: bool = False, return_masks: bool = True,
                    return_probs: bool = False) -> dict:
    """Masks at the original size, with their boxes and scores.

    The model does not run, so that another threshold is cheap.

    Args:
        model (CRIS): The model.
        answer (Answer): Its output for K expressions.
        shape (tuple[int, int]): Height and width of the image.
        expressions (Sequence[str]): K expressions.
        threshold (float, optional): A pixel belongs to the mask if its
            probability is higher. None means the model's.
        existence_threshold (float, optional): An expression whose probability
            of having a referent is below it gets an empty mask. None means
            the model's.
        instances (bool): Return the connected parts of the masks, too.
        return_masks (bool): False returns the RLEs only, which saves memory
            with many expressions on a large image.
        return_probs (bool): Return the probabilities, too.

    Returns:
        dict: ``expressions``, K strings; ``scores``, float32 ``(K,)``, as of
        :func:`cris.evaluation.confidence.confidence` or, if the model tells
        existence, of :func:`~cris.evaluation.confidence.answer_confidence`;
        ``boxes``, float32 ``(K, 4)`` of x0, y0, x1, y1 in pixels, zeros where
        the mask is empty; ``rles``, K compressed COCO RLEs, ready for JSON;
        ``exists``, bool ``(K,)``, whether the mask has a pixel; ``existence``,
        float32 ``(K,)``, probabilities of there being a referent, None if the
        model does not tell; ``height``, ``width``, ``threshold``,
        ``existence_threshold``; on request ``parts``, K lists as of
        :func:`connected_parts`, without those smaller than 2 x 2 logits;
        ``masks``, bool ``(K, h, w)``; ``probs``, float32 ``(K, h, w)``. The
        latter overshoot [0, 1] at sharp edges because of the bicubic
        interpolation of the official code.

    Raises:
        ValueError: If a threshold is not in [0, 1], existence_threshold is
            given for a model without existence, or a logit is not finite.
    """
    if threshold is None:
        threshold = model.decode_head.threshold
    _check_probability('threshold', threshold)
    existence_threshold = find_existence_threshold(model, existence_threshold)
    existence, absent = None, [False] * len(expressions)
    if answer.existence is not None:
        existence = answer.existence.detach().sigmoid().cpu().numpy()
        if np.isnan(existence).any():
            raise ValueError('the model returned NaN for existence: its '
                             'weights are broken')
        absent = existence < existence_threshold
    scale = letterbox_matrix(*shape, answer.logits.shape[-2:])[0, 0]
    min_area = (2 / scale)**2  # of 2 x 2 logits
    scores, rles, parts, masks, probs = [], [], [], [], []
    for k in range(len(expressions)):  # maps may be large: one at a time
        prob = model.original_size(answer.logits[k:k + 1], shape)[0].numpy()
        mask = (prob > threshold) & ~np.bool_(absent[k])
        scores.append(confidence(prob, mask))
        rles.append(_encode(mask))
        if instances:
            parts.append(connected_parts(mask, min_area))
        if return_masks:
            masks.append(mask)
        if return_probs:
            probs.append(prob)
    boxes = coco_mask.toBbox(rles).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    exists = boxes.any(1)
    if existence is not None:
        scores = answer_confidence(existence, scores, exists,
                                   model.decode_head.calibration)
    prediction = dict(
        expressions=list(expressions), scores=np.array(scores, np.float32),
        boxes=boxes, rles=rles, exists=exists, existence=existence,
        height=shape[0], width=shape[1], threshold=float(threshold),
        existence_threshold=existence_threshold)
    if instances:
        prediction['parts'] = parts
    if return_masks:
        prediction['masks'] = np.stack(masks)
    if return_probs:
        prediction['probs'] = np.stack(probs)
    return prediction


def find_existence_threshold(model: nn.Module,
                             given: float | None = None) -> float | None:
    """The one given, or the model's; None if the model has none.

    Raises:
        ValueError: If it is not in [0, 1], or the model cannot use it.
    """
    head = model.decode_head
    if given is None:
        return None if head.existence is None else head.existence_threshold
    if head.existence is None:
        raise ValueError(
            f'existence_threshold={given} is given, but this model does not '
            'tell whether there is a referent: leave it out, or use a model '
            'trained with decode_head.existence=True (if exported, export it '
            'again)')
    _check_probability('existence_threshold', given)
    return float(given)


def _check_probability(name: str, value: float) -> None:
    if not isinstance(value, Real):
        raise ValueError(f'{name}={value!r} must be a number')
    if not 0 <= value <= 1:
        raise ValueError(f'{name}={value} must be in [0, 1]')


def connected_parts(mask: np.ndarray, min_area: float) -> list[dict]:
    """Connected parts of a mask, the largest first.

    Pixels are connected to their 8 neighbours: objects that touch are one
    part, and an object that is partly hidden may be several.

    Args:
        mask (np.ndarray): bool ``(h, w)``.
        min_area (float): Smaller parts are left out, but never the largest.

    Returns:
        list[dict]: ``box``, x0, y0, x1, y1 in pixels; ``area`` in pixels;
        ``rle``, a compressed COCO RLE. Ready for JSON.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]  # 0 is the background
    parts = []
    for label in 1 + np.argsort(-areas, kind='stable'):
        x, y, width, height, area = stats[label].tolist()
        if parts and area < min_area:
            break
        parts.append(dict(
            box=[float(side) for side in (x, y, x + width, y + height)],
            area=area, rle=_encode(labels == label)))
    return parts


def _encode(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return dict(rle, counts=rle['counts'].decode())


def to_data_sample(prediction: dict) -> SegDataSample:
    """A prediction with masks as a sample like those of CRIS.predict."""
    sample = SegDataSample(metainfo=dict(
        img_path=prediction['img_path'],
        ori_shape=(prediction['height'], prediction['width']),
        expressions=prediction['expressions'], scores=prediction['scores']))
    masks, probs = prediction['masks'], prediction.get('probs')
    sample.pred_sem_seg = PixelData(data=torch.from_numpy(masks))
    if prediction['existence'] is not None:
        sample.existence = torch.from_numpy(prediction['existence'])
        sample.set_metainfo(dict(
            existence_threshold=prediction['existence_threshold']))
    if probs is not None:
        sample.seg_logits = PixelData(data=torch.from_numpy(probs))
    return sample
