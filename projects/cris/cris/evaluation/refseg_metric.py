# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Scores of referring image segmentation.

Shapes: a sample of h x w pixels with K expressions; N expressions in all.
"""
from collections.abc import Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmseg.registry import METRICS

from .matching import expression_keys
from .results import (
    DEFAULTS,
    check_results_file,
    make_records,
    write_results_file,
)

COUNTS = ('intersection', 'union', 'pred_area', 'gt_area')
PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)
_OF_KINDS = ('gIoU', 'N-acc', 'T-acc', 'n_expressions')
_OF_GENERALIZED = ('mIoU', 'cIoU', 'N-acc', 'T-acc')


def compute_iou(counts: dict[str, np.ndarray],
                empty_union: float) -> np.ndarray:
    """IoU as the official code computes it, float64 ``(N, )`` in [0, 1]."""
    intersection, union = counts['intersection'], counts['union']
    return np.where(union == 0, empty_union, intersection / (union + 1e-6))


def compute_scores(counts: dict[str, np.ndarray], *,
                   inclusive: bool = False, empty_union: float = 0.0,
                   generalized: bool = False) -> dict[str, float]:
    """Scores of N expressions; the one place of the formulas.

    Args:
        counts (dict[str, np.ndarray]): Pixels by the names in ``COUNTS``,
            int64 ``(N, )`` each.
        inclusive, empty_union, generalized: As of :class:`RefSegMetric`.

    Returns:
        dict[str, float]: In percent: mIoU, oIoU, Pr@50 ... Pr@90 and, if
        generalized, gIoU, cIoU, N-acc and T-acc.
    """
    intersection, union = counts['intersection'], counts['union']
    iou = compute_iou(counts, empty_union)
    exact = np.where(
        union == 0, empty_union, intersection / np.maximum(union, 1))
    answered, target = counts['pred_area'] > 0, counts['gt_area'] > 0
    counted = target if generalized else np.ones_like(target)
    scores = {}
    if union.any() or not generalized:
        scores['oIoU'] = 100 * intersection.sum() / max(union.sum(), 1)
    if counted.any():
        scores = dict(mIoU=100 * iou[counted].mean(), **scores)
        for level in PRECISION_AT:
            reached = (
                exact >= level if inclusive or generalized else iou > level)
            scores[f'Pr@{level * 100:.0f}'] = 100 * reached[counted].mean()
    if generalized:
        scores['gIoU'] = 100 * np.where(target, exact, ~answered).mean()
        if 'oIoU' in scores:
            scores['cIoU'] = scores['oIoU']
        if not target.all():
            scores['N-acc'] = 100 * (~answered[~target]).mean()
        if target.any():
            scores['T-acc'] = 100 * answered[target].mean()
    return {name: float(score) for name, score in scores.items()}


@METRICS.register_module()
class RefSegMetric(BaseMetric):
    """mIoU, oIoU and Pr@X of referring image segmentation, in percent.

    Pixels are counted at the image's original resolution. With I and U the
    pixels of intersection and union of one expression, IoU = I / (U + 1e-6),
    so an empty union scores 0. mIoU is the mean IoU over all expressions
    ("IoU" in the paper), oIoU = sum I / sum U, and Pr@X is the share of
    expressions with IoU > X. Every sentence counts.

    These are the rules of the official code's test. The options are those of
    other papers; :mod:`cris.evaluation.conventions` compares them.

    Args:
        collect_device (str): How the results of several processes come
            together, as of mmengine's BaseMetric. ``'gpu'`` sends them
            through the process group, without a GPU, too. ``'cpu'`` writes
            files below the working directory, which all machines must share.
            Defaults to 'gpu'.
        prefix (str, optional): Of the names of the scores. Defaults to None.
        threshold (float, optional): Predict the pixels whose probability in
            ``seg_logits`` is above it. None uses ``pred_sem_seg``, which the
            model cut at its own threshold. Defaults to None.
        inclusive (bool): Pr@X counts IoU >= X, as LAVT and its successors
            do, with IoU = I / U: the 1e-6 would put an exact X below X.
            Defaults to False.
        sentences (str): Which sentences of a ref count: ``'all'``, or the
            ``'first'`` or ``'last'`` of those with the same value in the
            sample's ``ref_ids``. Defaults to 'all'.
        gt_size (tuple[int, int], optional): Height and width at which pixels
            are counted; LAVT's code scores at (480, 480). Prediction, cut at
            the original size, and ground truth are resized without keeping
            the aspect ratio: pixel i of n takes the value of pixel
            floor((i + 1/2) * N / n) of N, on which its centre falls. None
            counts at the original size. Defaults to None.
        empty_union (float): IoU if neither prediction nor ground truth has a
            pixel: 0 in the official code, 1 in others. Defaults to 0.0.
        generalized (bool): Also report the scores of gRefCOCO, in percent. An
            expression has no target if its ground truth is empty. gIoU is
            the mean of I / U, where an expression without target scores 1 if
            nothing is predicted, else 0; cIoU is oIoU; N-acc is the share of
            expressions without target for which nothing is predicted, T-acc
            the share of the others for which something is. As in ReLA's
            evaluator, mIoU and Pr@X are then over expressions with a target,
            and Pr@X counts IoU >= X. A score over no expressions, or over no
            pixels, is left out, and the log says so. If all samples have
            ``kinds``, such as 'none', 'one' and 'many', also gIoU, N-acc,
            T-acc and n_expressions of each, as ``<kind>/<score>``. Defaults
            to False.
        out_file (str, optional): ``.json`` or ``.parquet`` (needs
            pyarrow). One record per counted expression, in the order of the
            dataset: img_path, img_id, ref_id, sent_id and expression (None
            if the metainfo lacks them); original height and width; the
            pixels intersection, union, pred_area and gt_area; iou in [0, 1];
            score, the confidence in [0, 1]: the mean probability of the
            predicted pixels at the original size, or the maximum if nothing
            is predicted, None without ``seg_logits``; pred_rle and gt_rle,
            the masks at the original size as ``counts`` of COCO's compressed
            RLE; kind, if samples have ``kinds``; existence, the probability
            of a referent, if the model tells it, and then existence_threshold,
            below which the mask is empty, and confidence, the probability
            that the answer is right
            (:func:`cris.evaluation.confidence.answer_confidence`). Each
            option above that differs from its default is a further key, the
            same in every record. Defaults to None.

    Raises:
        ValueError: If an option has an invalid value.
        ImportError: If out_file is ``.parquet`` and pyarrow is missing.
    """

    def __init__(self, collect_device: str = 'gpu', prefix: str | None = None,
                 *, threshold: float | None = None, inclusive: bool = False,
                 sentences: str = 'all',
                 gt_size: tuple[int, int] | None = None,
                 empty_union: float = 0.0, generalized: bool = False,
                 out_file: str | None = None):
        super().__init__(collect_device=collect_device, prefix=prefix)
        if threshold is not None:
            _check_fraction('threshold', threshold)
        _check_fraction('empty_union', empty_union)
        if sentences not in ('all', 'first', 'last'):
            raise ValueError(f"sentences={sentences!r} must be 'all', "
                             "'first' or 'last'")
        if gt_size is not None and not (
                isinstance(gt_size, (tuple, list)) and len(gt_size) == 2
                and all(isinstance(n, int) and n > 0 for n in gt_size)):
            raise ValueError(f'gt_size={gt_size!r} must be (height, width), '
                             'two positive integers')
        if out_file is not None:
            check_results_file(out_file)
        self.threshold = threshold
        self.sentences = sentences
        self.gt_size = gt_size
        self.scoring = dict(inclusive=inclusive, empty_union=empty_union,
                            generalized=generalized)
        self.out_file = out_file
        self.left_out: set[tuple] | None = None

    def leave_out(self, keys: set[tuple]) -> None:
        """Also report the scores without some expressions.

        Their names begin with ``reviewed/``; out_file stays as it is.

        Args:
            keys (set[tuple]): As of matching.expression_keys.
        """
        self.left_out = keys

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch.

        One entry is kept per sample, however many expressions it has:
        mmengine drops the padding of the last batch by number of entries.

        Args:
            data_batch (dict): Not used.
            data_samples (Sequence[dict]): With ``gt_sem_seg`` and
                ``pred_sem_seg`` or, for the option threshold, the
                probabilities ``seg_logits``; all (K, h, w). Pixels in
                ``gt_ignore`` count neither way.

        Raises:
            ValueError: If prediction and ground truth differ in shape, or
                a sample lacks what an option needs.
        """
        for sample in data_samples:
            pred = self._predicted(sample)
            target = sample['gt_sem_seg']['data'].cpu().numpy() > 0.5
            if pred.shape != target.shape:
                raise ValueError(
                    f'prediction {pred.shape} and ground truth '
                    f'{target.shape} of {sample.get("img_path")} differ in '
                    'shape: load the masks after the letterbox, so that they '
                    'keep the original size')
            if 'gt_ignore' in sample:
                counted = ~sample['gt_ignore']['data'].cpu().numpy()
                pred, target = pred & counted, target & counted
            chosen = self._chosen(sample, len(pred))
            pred, target = pred[chosen], target[chosen]
            if self.gt_size is None:
                counts = _count(pred, target)
            else:
                counts = _count(*(
                    _resize(mask, self.gt_size) for mask in (pred, target)))
            if self.out_file is not None:
                iou = compute_iou(counts, self.scoring['empty_union'])
                counts['records'] = make_records(
                    sample, chosen, pred, target, counts, iou)
            if self.scoring['generalized'] and 'kinds' in sample:
                counts['kinds'] = np.array(sample['kinds'], object)[chosen]
            if self.left_out is not None:
                keys = expression_keys(sample)
                counts['kept'] = np.array(
                    [keys[k] not in self.left_out for k in chosen], bool)
            self.results.append(counts)

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Scores of :func:`compute_scores`, and n_expressions.

        Writes out_file. See also :meth:`leave_out`.
        """
        if self.out_file is not None:
            options = dict(self.scoring, threshold=self.threshold,
                           sentences=self.sentences, gt_size=self.gt_size)
            unusual = {key: value for key, value in options.items()
                       if value != DEFAULTS[key]}
            write_results_file([{**record, **unusual} for result in results
                                for record in result['records']],
                               self.out_file)
        counts = {name: np.concatenate([result[name] for result in results])
                  for name in COUNTS}
        scores = self._scores(counts)
        undefined = [name for name in _OF_GENERALIZED if name not in scores]
        if self.scoring['generalized'] and undefined:
            print_log('undefined, as there is nothing that they count: '
                      f'{", ".join(undefined)}', 'current')
        if results and all('kinds' in result for result in results):
            kinds = np.concatenate([result['kinds'] for result in results])
            scores.update(self._scores_by_kind(counts, kinds))
        if self.left_out is not None:
            kept = np.concatenate([result['kept'] for result in results])
            reviewed = self._scores({k: n[kept] for k, n in counts.items()})
            scores.update({f'reviewed/{k}': s for k, s in reviewed.items()})
        return scores

    def _scores(self, counts: dict[str, np.ndarray]) -> dict[str, float]:
        return dict(compute_scores(counts, **self.scoring),
                    n_expressions=len(counts['union']))

    def _scores_by_kind(self, counts: dict[str, np.ndarray],
                        kinds: np.ndarray) -> dict[str, float]:
        out = {}
        for kind in sorted(set(kinds)):
            scores = self._scores(
                {name: n[kinds == kind] for name, n in counts.items()})
            out.update({f'{kind}/{name}': scores[name]
                        for name in _OF_KINDS if name in scores})
        return out

    def _predicted(self, sample: dict) -> np.ndarray:
        """Predicted pixels, bool (K, h, w)."""
        if self.threshold is None:
            return sample['pred_sem_seg']['data'].cpu().numpy() > 0
        if 'seg_logits' not in sample:
            raise ValueError(
                f'threshold={self.threshold} needs the probabilities, but the '
                f'prediction of {sample.get("img_path")} has no seg_logits: '
                'use threshold=None to score pred_sem_seg')
        # In torch, as the head does it, for the same rounding.
        pred = sample['seg_logits']['data'] > self.threshold
        if 'existence' in sample:  # as CRIS.predict abstains
            pred[sample['existence'] < sample['existence_threshold']] = False
        return pred.cpu().numpy()

    def _chosen(self, sample: dict, count: int) -> list[int]:
        """Positions of the expressions that count."""
        if self.sentences == 'all':
            return list(range(count))
        ref_ids = sample.get('ref_ids')
        if ref_ids is None or len(ref_ids) != count:
            raise ValueError(
                f'sentences={self.sentences!r} needs one of ref_ids for each '
                f'of the {count} expressions of {sample.get("img_path")}, '
                f'but they are {ref_ids}: load the data with '
                'PackReferInputs, which keeps them')
        first = self.sentences == 'first'
        order = reversed(range(count)) if first else range(count)
        return sorted({ref_ids[k]: k for k in order}.values())


def _check_fraction(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f'{name}={value!r} must be a number in [0, 1]')


def _count(pred: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """Pixels by the names in COUNTS, int64 (K, ) each."""
    masks = (pred & target, pred | target, pred, target)
    return {name: mask.sum(axis=(1, 2))
            for name, mask in zip(COUNTS, masks, strict=True)}


def _resize(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # In integers: a centre may fall exactly between two pixels.
    rows, columns = ((2 * np.arange(n) + 1) * length // (2 * n)
                     for n, length in zip(size, masks.shape[1:], strict=True))
    return masks[:, rows[:, None], columns]
