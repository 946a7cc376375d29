# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from typing import Dict, List, Optional, Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)


@METRICS.register_module()
class RefSegMetric(BaseMetric):
    """mIoU, oIoU and Pr@X of referring segmentation, in percent.

    Counts are taken at the image's original resolution. With I and U the
    pixels of intersection and union of one expression, IoU = I / (U + 1e-6),
    so an empty union scores 0; mIoU is the mean of IoU over the expressions
    ("IoU" in the paper), oIoU = sum I / sum U, and Pr@X the share of
    expressions with IoU > X. All sentences count.

    Args:
        collect_device (str): Where results of several ranks are gathered.
            Defaults to 'cpu'.
        prefix (str, optional): Put before the names of the scores, with a
            slash. Defaults to None.
    """

    def __init__(self,
                 collect_device: str = 'cpu',
                 prefix: Optional[str] = None):
        super().__init__(collect_device=collect_device, prefix=prefix)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch.

        One entry is kept per sample, however many expressions it has:
        mmengine drops the padding of the last batch by the number of entries.

        Args:
            data_batch (dict): Not used.
            data_samples (Sequence[dict]): With ``pred_sem_seg`` and
                ``gt_sem_seg``, both (K, h, w).

        Raises:
            ValueError: If prediction and ground truth differ in shape.
        """
        for sample in data_samples:
            pred = sample['pred_sem_seg']['data'].cpu().numpy() > 0
            target = sample['gt_sem_seg']['data'].cpu().numpy() > 0.5
            if pred.shape != target.shape:
                raise ValueError(
                    f'prediction {pred.shape} and ground truth '
                    f'{target.shape} of {sample.get("img_path")} differ in '
                    'shape: load the masks after the letterbox, so that they '
                    'stay at the original size')
            self.results.append(
                dict(
                    intersection=(pred & target).sum(axis=(1, 2)),
                    union=(pred | target).sum(axis=(1, 2))))

    def compute_metrics(self, results: List[dict]) -> Dict[str, float]:
        """Scores of the whole set.

        Args:
            results (list[dict]): Counts of every sample.

        Returns:
            dict[str, float]: mIoU, oIoU, Pr@50 ... Pr@90 and n_expressions.
        """
        intersection = np.concatenate([r['intersection'] for r in results])
        union = np.concatenate([r['union'] for r in results])
        iou = intersection / (union + 1e-6)
        scores = dict(
            mIoU=100 * iou.mean(),
            oIoU=100 * intersection.sum() / max(union.sum(), 1))
        for level in PRECISION_AT:
            scores[f'Pr@{level * 100:.0f}'] = 100 * (iou > level).mean()
        scores = {name: float(score) for name, score in scores.items()}
        return dict(scores, n_expressions=len(iou))
