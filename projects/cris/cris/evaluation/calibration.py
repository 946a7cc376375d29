# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Whether a model is right as often as it says, and how to make it so.

Shapes: N expressions. Counts are pixels by name, int64 ``(N, )`` each, as of
:mod:`cris.evaluation.refseg_metric`.
"""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .confidence import logit
from .refseg_metric import COUNTS, compute_scores

Counts = dict[str, np.ndarray]
#: Number of bins of equal width in [0, 1].
NUM_BINS = 15
# Thresholds that are tried: 0 and this many quantiles.
_NUM_QUANTILES = 400


class Reliability(NamedTuple):
    """Expressions by confidence, in the bins that have any.

    Args:
        count (np.ndarray): Number of expressions.
        confidence (np.ndarray): Their mean confidence, in [0, 1].
        accuracy (np.ndarray): The share of right answers, in [0, 1].
    """
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]: the mean difference of
        accuracy and confidence, weighted by count (Guo et al., arXiv
        1706.04599, equation 3).
        """
        difference = np.abs(self.accuracy - self.confidence)
        return float(np.average(difference, weights=self.count))


def counts_of(records: Sequence[dict]) -> Counts:
    """Of the records of a results file."""
    return {name: np.array([r[name] for r in records]) for name in COUNTS}


def is_right(counts: Counts) -> np.ndarray:
    """Whether each answer is right, bool ``(N, )``.

    With a target: IoU >= 0.5. Without: nothing is predicted.
    """
    return np.where(counts['gt_area'] > 0,
                    2 * counts['intersection'] >= counts['union'],
                    counts['pred_area'] == 0)


def reliability(confidence: np.ndarray, right: np.ndarray) -> Reliability:
    """Accuracy by confidence in NUM_BINS bins ``(low, high]``.

    Args:
        confidence (np.ndarray): In [0, 1], ``(N, )``.
        right (np.ndarray): bool ``(N, )``.
    """
    edges = np.linspace(0, 1, NUM_BINS + 1)[1:-1]
    bins = np.digitize(confidence, edges, right=True)
    count, *sums = (
        np.bincount(bins, weights) for weights in (None, confidence, right))
    filled = count > 0
    return Reliability(count[filled], *(
        total[filled] / count[filled] for total in sums))


def risk_coverage(confidence: np.ndarray,
                  right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often answers are wrong if the least confident are withheld.

    Args:
        confidence (np.ndarray): ``(N, )``.
        right (np.ndarray): bool ``(N, )``.

    Returns:
        tuple: Coverage, the share of expressions whose confidence reaches
        each value that occurs, from the highest to the lowest; and risk, the
        share of wrong answers among them; both in [0, 1].
    """
    order = np.argsort(-confidence, kind='stable')
    # Equal confidences are kept or withheld together.
    last = np.append(np.diff(confidence[order]) != 0, True)
    kept = np.arange(1, len(order) + 1)
    risk = np.cumsum(~right[order]) / kept
    return kept[last] / len(order), risk[last]


def abstain(counts: Counts, abstains: np.ndarray) -> Counts:
    """Counts with empty predictions where ``abstains``, bool ``(N, )``."""
    empty = dict(counts, intersection=0, pred_area=0, union=counts['gt_area'])
    return {name: np.where(abstains, empty[name], counts[name])
            for name in COUNTS}


def choose_threshold(counts: Counts, existence: np.ndarray,
                     min_t_acc: float = 95.0) -> float:
    """The threshold of existence with the highest gIoU, if T-acc allows it.

    Of the thresholds at which T-acc is at least ``min_t_acc``, that with the
    highest gIoU, the lowest of several. 0, where only empty masks abstain,
    and 400 quantiles of the probabilities are tried.

    Args:
        counts (Counts): Of answers that never abstained.
        existence (np.ndarray): Probability of a referent, ``(N, )``.
        min_t_acc (float): In percent.

    Raises:
        ValueError: If all expressions have a target, or none, or T-acc is
            too low at every threshold.
    """
    target = counts['gt_area'] > 0
    if target.all() or not target.any():
        raise ValueError(
            f'{"all" if target.all() else "none"} of the {len(target)} '
            'expressions have a target: the threshold and the calibration '
            'need expressions with and without')
    quantiles = np.quantile(existence, np.linspace(0, 1, _NUM_QUANTILES))
    scores = {
        threshold: compute_scores(
            abstain(counts, existence < threshold), generalized=True)
        for threshold in [0.0, *quantiles.tolist()]}
    allowed = [t for t in scores if scores[t]['T-acc'] >= min_t_acc]
    if not allowed:
        raise ValueError(
            f'T-acc is {scores[0.0]["T-acc"]:.2f} if only empty masks '
            f'abstain: no threshold reaches {min_t_acc:g}')
    return max(allowed, key=lambda t: (scores[t]['gIoU'], -t))


def fit_calibration(records: Sequence[dict],
                    min_t_acc: float = 95.0) -> dict:
    """Threshold and calibration from results without abstaining.

    Args:
        records (Sequence[dict]): Of a results file.
        min_t_acc (float): As of :func:`choose_threshold`.

    Returns:
        dict: As of :func:`cris.io.calibration.check_calibration`.

    Raises:
        ValueError: As of :func:`choose_threshold`; also if the records lack
            what is needed, the model abstained in them, or the masks of
            expressions with a target are all right or all wrong.
        ImportError: If scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError(f'calibrating needs scikit-learn ({error}): pip '
                          'install scikit-learn') from error

    def fit(prob: np.ndarray, labels: np.ndarray) -> list[float]:
        model = LogisticRegression().fit(logit(prob)[:, None], labels)
        return [float(model.coef_[0, 0]), float(model.intercept_[0])]

    for key in ('existence', 'score'):
        if any(record.get(key) is None for record in records):
            raise ValueError(f'the results have no {key} of every expression: '
                             'they need a model with decode_head.existence')
    if any(record.get('existence_threshold') != 0 for record in records):
        raise ValueError(
            'the model abstained in these results: write them again with '
            '--cfg-options model.decode_head.existence_threshold=0')
    counts = counts_of(records)
    existence, score = (
        np.array([r[key] for r in records]) for key in ('existence', 'score'))
    threshold = choose_threshold(counts, existence, min_t_acc)
    target = counts['gt_area'] > 0
    masks = target & (counts['pred_area'] > 0)
    right = is_right(counts)[masks]
    if right.all() or not right.any():
        raise ValueError(
            f'{"all" if right.all() else "none"} of the {len(right)} masks '
            'of expressions with a target are right: the calibration needs '
            'right and wrong ones')
    return dict(
        existence_threshold=threshold, existence=fit(existence, target),
        mask=fit(score[masks], right))
