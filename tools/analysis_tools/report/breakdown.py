# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Where a model is right and where it is wrong.

Records are those of :func:`cris.evaluation.results.read_results_file`, N of
them.
"""
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from cris.datasets.masks import mask_area

_WORST_WORDS = 20
_AREAS = (0, .5, 1, 2, 5, 10, 20, 50, 100)  # percent of the image
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


class Bin(NamedTuple):
    """A point of a curve: expressions of similar length or size."""
    label: str
    count: int
    mean: float  #: IoU in percent; NaN without expressions
    margin: float  #: half of the mean's 95 % interval, percent


def choose_samples(records: Sequence[dict],
                   count: int) -> dict[str, list[int]]:
    """Positions of the best, median and worst samples, all of other images.

    Of equally bad ones, the most confident come first: they tell the most.
    """
    middle = np.median([record['iou'] for record in records])
    orders = dict(
        best=lambda i: -records[i]['iou'],
        median=lambda i: abs(records[i]['iou'] - middle),
        worst=lambda i: (records[i]['iou'], -(records[i].get('score') or 0)))
    chosen = {}
    for kind, order in orders.items():
        images = {}
        for i in sorted(range(len(records)), key=order):
            images.setdefault(records[i]['img_path'], i)
        chosen[kind] = list(images.values())[:count]
    return chosen


def words_of(sentence: str) -> list[str]:
    """The words in lower case, without punctuation."""
    return _WORD.findall(sentence.lower())


def worst_words(records: Sequence[dict]) -> list[dict]:
    """Frequent words, lowest mean IoU first.

    Args:
        records (Sequence[dict]): N of them. A word is frequent in 5 or more
            sentences that are also a thousandth of all.

    Returns:
        list[dict]: word, count (sentences), mean (IoU, percent) and
        difference (from the mean of all records, percent).
    """
    iou = 100 * np.array([record['iou'] for record in records])
    sentences = defaultdict(list)
    for i, record in enumerate(records):
        for word in set(words_of(record['expression'])):
            sentences[word].append(i)
    enough = max(5, len(records) / 1000)
    rows = [
        dict(word=word, count=len(found), mean=iou[found].mean(),
             difference=iou[found].mean() - iou.mean())
        for word, found in sentences.items() if len(found) >= enough]
    return sorted(rows, key=lambda r: (r['mean'], r['word']))[:_WORST_WORDS]


def by_length(records: Sequence[dict], longest: int = 12) -> list[Bin]:
    """Mean IoU by number of words; the last bin holds all longer ones."""
    counts = np.minimum(
        [len(words_of(record['expression'])) for record in records], longest)
    labels = [str(n) for n in range(longest)] + [f'≥ {longest}']
    first, last = counts.min(), counts.max()
    return _bins(records, counts - first, labels[first:last + 1])


def by_area(records: Sequence[dict]) -> list[Bin]:
    """Mean IoU by the ground truth's share of the image."""
    shares = np.array([target_share(record) for record in records])
    bins = np.digitize(shares, _AREAS[1:-1])
    labels = [f'{low:g}–{high:g}' for low, high in pairwise(_AREAS)]
    if (shares == 0).any():
        labels.append('no target')
        bins[shares == 0] = len(labels) - 1
    return _bins(records, bins, labels)


def by_kind(records: Sequence[dict]) -> list[Bin]:
    """Mean IoU by kind, such as none, one and many; [] without kinds."""
    kinds = [record.get('kind') or 'other' for record in records]
    if set(kinds) == {'other'}:
        return []
    labels = sorted(set(kinds))
    return _bins(records, np.array([labels.index(k) for k in kinds]), labels)


def target_share(record: dict) -> float:
    """Percent of the image that the ground truth covers.

    Raises:
        ValueError: If its mask is broken.
    """
    height, width = int(record['height']), int(record['width'])
    area = record['gt_area']
    if record.get('gt_rle'):  # exact at any gt_size
        rle = dict(size=[height, width], counts=record['gt_rle'])
        area = mask_area(rle, height, width)
    return 100 * min(max(area / (height * width), 0), 1)


def _bins(records: Sequence[dict], bins: np.ndarray,
          labels: Sequence[str]) -> list[Bin]:
    iou = 100 * np.array([record['iou'] for record in records])
    out = []
    for k, label in enumerate(labels):
        part = iou[bins == k]
        mean, margin = part.mean() if len(part) else np.nan, 0
        if len(part) > 1:
            margin = 1.96 * part.std(ddof=1) / len(part)**.5
        out.append(Bin(label, len(part), mean, margin))
    return out
