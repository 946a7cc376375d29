# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from collections.abc import Sequence

import mmcv
import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample

from cris.io.files import read_bytes

_EXPRESSIONS = 7  # on a picture: with the image itself, two rows of tiles


@HOOKS.register_module()
class ReferVisualizationHook(Hook):
    """Draws the same few images at every validation, to compare them.

    mmseg's SegVisualizationHook draws different ones, and more in a longer
    split. Here they are spread evenly over the split (with several ranks, over
    the share of the first) and passed to the visualizer and its backends.

    Args:
        num_images (int): Images at most; 0 draws none.

    Raises:
        ValueError: If num_images is negative.
    """

    def __init__(self, num_images: int = 0):
        if num_images < 0:
            raise ValueError(f'num_images={num_images} must not be negative')
        self.num_images = num_images
        self._chosen = frozenset()
        self._seen = 0

    def before_val_epoch(self, runner: Runner) -> None:
        last = len(runner.val_dataloader.sampler) - 1
        self._chosen = frozenset(
            np.linspace(0, last, self.num_images).round().astype(int).tolist())
        self._seen = 0

    def after_val_iter(self, runner: Runner, batch_idx: int,
                       data_batch: dict | None = None,
                       outputs: Sequence[SegDataSample] = ()) -> None:
        for sample in outputs:
            if self._seen in self._chosen:
                content = read_bytes(sample.img_path)
                runner.visualizer.add_datasample(
                    f'val_{self._seen}',
                    mmcv.imfrombytes(content, channel_order='rgb'),
                    _shorten(sample),
                    step=runner.iter)
            self._seen += 1


def _shorten(sample: SegDataSample) -> SegDataSample:
    short = SegDataSample(
        metainfo=dict(expressions=sample.expressions[:_EXPRESSIONS]))
    for key in ('gt_sem_seg', 'pred_sem_seg'):
        if key in sample:
            masks = sample.get(key).data[:_EXPRESSIONS]
            short.set_field(PixelData(data=masks), key)
    return short
