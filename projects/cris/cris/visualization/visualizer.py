# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import os.path as osp
from collections.abc import Sequence

import mmcv
import numpy as np
from mmengine.visualization import Visualizer
from mmseg.registry import VISUALIZERS
from mmseg.structures import SegDataSample

from .draw import draw_expressions


@VISUALIZERS.register_module()
class ReferLocalVisualizer(Visualizer):
    """Draws the image, each expression, its ground truth and prediction.

    For mmseg's SegVisualizationHook and :class:`ReferVisualizationHook`.

    Args:
        name (str): Name of the instance. Defaults to 'visualizer'.
        show_dir (str, optional): Folder for the drawings. None passes them to
            the visualization backends. Defaults to None.
        vis_backends (Sequence[dict | str], optional): As in mmengine, or the
            types only, for ``--cfg-options``:
            ``"[LocalVisBackend,TensorboardVisBackend]"``. Defaults to None.
        **kwargs: See :class:`mmengine.visualization.Visualizer`.
    """

    def __init__(self, name: str = 'visualizer', show_dir: str | None = None,
                 vis_backends: Sequence[dict | str] | None = None, **kwargs):
        backends = [dict(type=backend) if isinstance(backend, str) else backend
                    for backend in vis_backends or ()]
        super().__init__(name=name, vis_backends=backends, **kwargs)
        self.show_dir = show_dir

    def add_datasample(self, name: str, image: np.ndarray,
                       data_sample: SegDataSample, show: bool = False,
                       wait_time: float = 0, step: int = 0, **kwargs) -> None:
        """Draw a sample; with show_dir, every rank writes its own samples.

        Args:
            name (str): Name of the drawing.
            image (np.ndarray): RGB, uint8 ``(h, w, 3)``, of the masks' size.
            data_sample (SegDataSample): With ``expressions`` and, if there,
                ``gt_sem_seg`` and ``pred_sem_seg``, (K, h, w).
            show (bool): Open a window. Defaults to False.
            wait_time (float): Seconds to show it; 0 waits for a key.
            step (int): Of the backends; in show_dir, the number of a sample
                without ``img_id``.
        """
        masks = (data_sample.get(key).data.cpu().numpy() > 0.5
                 if key in data_sample else None
                 for key in ('gt_sem_seg', 'pred_sem_seg'))
        drawn = draw_expressions(image, data_sample.expressions, *masks)
        if show:
            self.show(drawn, win_name=name, wait_time=wait_time)
        if self.show_dir is None:
            self.add_image(name, drawn, step)
        else:
            number = data_sample.get('img_id', step)
            file = f'{osp.splitext(name)[0]}_{number}.jpg'
            mmcv.imwrite(drawn[..., ::-1], osp.join(self.show_dir, file))
