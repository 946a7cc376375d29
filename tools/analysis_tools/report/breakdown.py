# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Where a model is right and where it is wrong, from a results file.

Records are those of :func:`.results_file.read_results_file`, N of them.
"""
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cris.datasets.masks import mask_area
from cris.evaluation.refseg_metric import PRECISION_AT

_WORST_WORDS = 20
_AREAS = (0, .5, 1, 2, 5, 10, 20, 50, 100)  # percent of the image
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


class Bin(NamedTuple):
    """A point of a curve: expressions of like length or size."""
    label: str
    count: int
    mean: float  #: IoU in percent; NaN without expressions
    margin: float  #: half of the mean's 95 % interval, percent


def score(records: Sequence[dict]) -> dict[str, float]:
    """mIoU, oIoU and Pr@X (IoU > X) of records, in percent."""
    iou = np.array([record['iou'] for record in records])
    intersection, union = (
        sum(record[key] for record in records)
        for key in ('intersection', 'union'))
    scores = dict(mIoU=100 * iou.mean(), oIoU=100 * intersection /
                  max(union, 1))
    for level in PRECISION_AT:
        scores[f'Pr@{100 * level:.0f}'] = 100 * (iou > level).mean()
    return {name: float(value) for name, value in scores.items()}


def choose_samples(records: Sequence[dict],
                   count: int) -> dict[str, list[int]]:
    """Positions of the best, median and worst, one per image at most.

    Among the worst the most confident come first: of many that miss, those
    tell the most.

    Args:
        records (Sequence[dict]): N of them.
        count (int): Samples of each kind, at most.

    Returns:
        dict[str, list[int]]: By kind; the samples of a kind are of different
        images.
    """
    middle = np.median([record['iou'] for record in records])
    orders = dict(
        best=lambda r: -r['iou'],
        median=lambda r: abs(r['iou'] - middle),
        worst=lambda r: (r['iou'], -(r.get('score') or 0)))
    chosen = {}
    for kind, order in orders.items():
        images = {}
        for i in sorted(range(len(records)), key=lambda i: order(records[i])):
            if len(images) == count:
                break
            images.setdefault(records[i]['img_path'], i)
        chosen[kind] = list(images.values())
    return chosen


def words_of(sentence: str) -> list[str]:
    """Its words, in lower case, without punctuation."""
    return _WORD.findall(sentence.lower())


def worst_words(records: Sequence[dict]) -> list[dict]:
    """Words of enough sentences, those of the lowest mean IoU first.

    Args:
        records (Sequence[dict]): N of them. A word counts from 5 sentences
            on, or from a thousandth of all.

    Returns:
        list[dict]: word, count (sentences), mean (of their IoU, percent) and
        difference (from the mean of all, percent).
    """
    iou = np.array([record['iou'] for record in records])
    sentences = defaultdict(list)
    for i, record in enumerate(records):
        for word in set(words_of(record['expression'])):
            sentences[word].append(i)
    enough = max(5, len(records) / 1000)
    rows = [
        dict(
            word=word,
            count=len(found),
            mean=100 * iou[found].mean(),
            difference=100 * (iou[found].mean() - iou.mean()))
        for word, found in sentences.items() if len(found) >= enough
    ]
    return sorted(rows, key=lambda r: (r['mean'], r['word']))[:_WORST_WORDS]


def by_length(records: Sequence[dict], longest: int = 12) -> list[Bin]:
    """Mean IoU by the number of words; longer ones share the last bin."""
    counts = [len(words_of(record['expression'])) for record in records]
    counts = np.minimum(counts, longest)
    labels = [str(n) for n in range(longest)] + [f'≥ {longest}']
    first, last = counts.min(), counts.max()
    return _bins(records, counts - first, labels[first:last + 1])


def by_area(records: Sequence[dict]) -> list[Bin]:
    """Mean IoU by the ground truth's share of the image."""
    shares = np.array([target_share(record) for record in records])
    bins = np.digitize(shares, _AREAS[1:-1])
    labels = [
        f'{low:g}–{high:g}'
        for low, high in zip(_AREAS, _AREAS[1:], strict=False)
    ]
    if (shares == 0).any():
        labels.append('no target')
        bins[shares == 0] = len(labels) - 1
    return _bins(records, bins, labels)


def target_share(record: dict) -> float:
    """Percent of the image that the ground truth covers.

    Raises:
        ValueError: If its mask is broken.
    """
    height, width = int(record['height']), int(record['width'])
    area = record['gt_area']
    if record.get('gt_rle'):  # exact, whatever size was scored at
        area = mask_area(
            dict(size=[height, width], counts=record['gt_rle']), height,
            width)
    return 100 * min(max(area / (height * width), 0), 1)


def _bins(records: Sequence[dict], bins: np.ndarray,
          labels: Sequence[str]) -> list[Bin]:
    iou = 100 * np.array([record['iou'] for record in records])
    out = []
    for k, label in enumerate(labels):
        own = iou[bins == k]
        mean = own.mean() if len(own) else np.nan
        margin = 1.96 * own.std(ddof=1) / len(own)**.5 if len(own) > 1 else 0
        out.append(Bin(label, len(own), mean, margin))
    return out
