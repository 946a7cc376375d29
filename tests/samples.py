# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Predictions with their ground truth, and their scores."""
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample

from cris.evaluation import RefSegMetric


def make_sample(pred, target, prob=None, **metainfo):
    sample = SegDataSample(metainfo=dict(dict(img_path='x.jpg'), **metainfo))
    sample.gt_sem_seg = PixelData(data=torch.as_tensor(target).float())
    sample.pred_sem_seg = PixelData(data=torch.as_tensor(pred))
    if prob is not None:
        sample.seg_logits = PixelData(data=torch.as_tensor(prob).float())
    return sample


def from_prob(prob, target, ref_ids):
    """A sample cut at the head's threshold."""
    prob = torch.as_tensor(prob).float()
    return make_sample(prob > 0.35, target, prob, ref_ids=ref_ids)


def evaluate(samples, metrics=(), **options):
    """Scores of metrics, or of one with these options."""
    metrics = [METRICS.build(metric) for metric in metrics]
    evaluator = Evaluator(metrics or [RefSegMetric(**options)])
    evaluator.process(samples)
    return evaluator.evaluate(len(samples))
