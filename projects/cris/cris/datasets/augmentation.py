# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Random changes of a training sample that keep its expressions true.

For the little data that one has of one's own; the paper trains without.
They come after LoadReferMasks and before Letterbox and TokenizeExpressions.
All draw from numpy, which the dataset seeds.
"""
import re

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS

# Also "right-hand", "left-most", "righty"; not "bright" or "leftover".
_SIDE = re.compile(
    r'\b(?P<side>left|right|lft|rt|l|r)(?P<rest>most|est|y|er|hand|side|'
    r'wards?|s)?\b', re.IGNORECASE)
_OTHER = dict(left='right', right='left', lft='rt', rt='lft', l='r', r='l')
# "right behind her": right is no side, unless it is "on the right behind her".
_ADVERB = re.compile(
    r'(?<!\bthe )(?<!\bon )(?<!\bto )(?<!\bat )(?<!\bfar )(?<!\btop )'
    r'(?<!\bbottom )(?<!\bupper )(?<!\blower )(?<!\bfrom )'
    r'\bright (?=(?:next|behind|above|below|beneath|under|underneath|beside|'
    r'before|after|by|at|near|there|here|on top|in front|in the middle)\b)',
    re.IGNORECASE)
# What a mirror changes that no word can be swapped for.
_FIXED = re.compile(
    r"\b(?:clock|o'?clock|(?:counter)?clockwise|letters?|numbers?|words?|"
    r'says|saying|reads|written|east|west|\d+)\b', re.IGNORECASE)


def mirrored(sentence: str) -> str | None:
    """What refers to the same object in the mirrored image, or None where
    that cannot be said: ``'the left car'`` becomes ``'the right car'``; for
    ``'the man whose shirt says 7'`` it is None.
    """
    if _FIXED.search(sentence):
        return None

    def swap(match: re.Match) -> str:
        side = match['side']
        if _ADVERB.match(sentence, match.start()):
            return match[0]
        other = _OTHER[side.lower()]
        if side[0].isupper():
            other = other.upper() if side.isupper() else other.capitalize()
        return other + (match['rest'] or '')

    return _SIDE.sub(swap, sentence)


@TRANSFORMS.register_module()
class RandomReferFlip(BaseTransform):
    """Mirror the image, and left and right in the expressions.

    A sample with an expression that has no mirror image
    (:func:`mirrored`) stays as it is.

    Required: img, expressions; gt_masks, gt_ignore (optional). Modified:
    these.

    Args:
        prob (float): Probability.
    """

    def __init__(self, prob: float = 0.5):
        self.prob = prob

    def transform(self, results: dict) -> dict:
        if np.random.random() >= self.prob:
            return results
        sentences = [mirrored(s) for s in results['expressions']]
        if None in sentences:
            return results
        arrays = {key: np.ascontiguousarray(results[key][..., ::-1])
                  for key in ('gt_masks', 'gt_ignore') if key in results}
        return dict(results, **arrays, expressions=sentences,
                    img=np.ascontiguousarray(results['img'][:, ::-1]))


# What says where in the picture a referent is, or where among others.
_PLACE = re.compile(
    r'\b(?:(?:left|right|top|bottom|upper|lower|front|back|far|near|clos)'
    r'(?:e|most|est|er|y|thest)?|lft|rt|l|r|middle|mid|cent(?:er|re|ral)|'
    r'corner|edge|side|furthest|first|second|third|fourth|last|'
    r'\d+(?:st|nd|rd|th))\b', re.IGNORECASE)
# What a sample has one of for every expression.
_PER_EXPRESSION = ('expressions', 'sent_ids', 'ref_ids', 'ref_index', 'kinds')


@TRANSFORMS.register_module()
class RandomReferCrop(BaseTransform):
    """Cut out a part of the image in which expressions are still true.

    An expression is true if a share of ``min_kept`` of its referent's pixels
    remains; one that says where it is (``'the left car'``) also needs it in
    the same third of the image, across and down. The others are replaced by
    repetitions of these. If in no window of ten a share of ``min_true`` is
    true, the image stays as it is.

    Required: img, gt_masks, expressions, ref_index; gt_ignore, sent_ids,
    ref_ids, kinds (optional). Modified: these, img_shape.

    Args:
        min_scale (float): Smallest side of the window, as a share of the
            image's.
        min_kept (float): Smallest share of a referent.
        min_true (float): Smallest share of the expressions.
        prob (float): Probability.
    """

    def __init__(self, min_scale: float = 0.4, min_kept: float = 0.5,
                 min_true: float = 0.5, prob: float = 0.7):
        self.min_scale = min_scale
        self.min_kept = min_kept
        self.min_true = min_true
        self.prob = prob

    def transform(self, results: dict) -> dict:
        if np.random.random() >= self.prob:
            return results
        masks = results['gt_masks']
        whole = np.array(masks.shape[1:])
        pairs = list(zip(results['ref_index'], results['expressions'],
                         strict=True))
        referents = {index: np.argwhere(masks[index] > 127)
                     for index in set(results['ref_index'])}
        for _ in range(10):
            scale = np.random.uniform(self.min_scale, 1)
            size = np.round(scale * whole).astype(int)
            start = np.random.randint(whole - size + 1)
            true = [k for k, (index, sentence) in enumerate(pairs)
                    if self._holds(referents[index], start, size,
                                   whole if _PLACE.search(sentence) else None)]
            if true and len(true) >= self.min_true * len(pairs):
                break
        else:
            return results
        chosen = [k if k in true else np.random.choice(true)
                  for k in range(len(pairs))]
        window = (slice(start[0], start[0] + size[0]),
                  slice(start[1], start[1] + size[1]))
        arrays = {key: results[key][(slice(None), *window)]
                  for key in ('gt_masks', 'gt_ignore') if key in results}
        lists = {key: [results[key][k] for k in chosen]
                 for key in _PER_EXPRESSION if key in results}
        return dict(results, **arrays, **lists, img=results['img'][window],
                    img_shape=tuple(size.tolist()))

    def _holds(self, points: np.ndarray, start: np.ndarray, size: np.ndarray,
               whole: np.ndarray | None) -> bool:
        """Whether a window suits a referent's pixels; ``whole``, the size of
        the image, is given if it must stay in its place.
        """
        if not len(points):  # nothing is referred to
            return True
        inside = ((points >= start) & (points < start + size)).all(1)
        if inside.mean() < self.min_kept:
            return False
        if whole is None:
            return True
        before = points.mean(0) / whole
        after = (points[inside].mean(0) - start) / size
        return bool((np.floor(3 * before) == np.floor(3 * after)).all())
