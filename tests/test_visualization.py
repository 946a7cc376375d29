# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from cris.visualization import ReferLocalVisualizer, draw_expressions
from cris.visualization.draw import GROUND_TRUTH, draw_masks


def masks():
    gt, pred = np.zeros((2, 2, 60, 80), bool)
    gt[:, 10:40, 10:40] = True
    pred[:, 10:40, 25:55] = True
    return gt, pred


def test_prediction_is_tinted_and_ground_truth_outlined():
    image = np.full((60, 80, 3), 128, np.uint8)
    gt, pred = masks()
    drawn = draw_masks(image, gt[0], pred[0])
    assert (image == 128).all()
    assert tuple(drawn[10, 15]) == GROUND_TRUTH
    assert (drawn[25, 15] == 128).all()
    assert drawn[25, 50, 2] > 180 > drawn[25, 50, 0]
    assert (drawn[50, 70] == 128).all()


def test_sheet_has_a_tile_for_the_image_and_each_expression():
    image = np.full((60, 80, 3), 128, np.uint8)
    sheet = draw_expressions(image, ['a', 'b'], *masks(), tile_width=100)
    assert sheet.shape[1] == 300
    one = draw_expressions(image, ['a'], tile_width=100)
    assert one.shape[1] == 200
    many = draw_expressions(image, ['a'] * 9, tile_width=100, columns=4)
    assert many.shape == (3 * one.shape[0], 400, 3)


@pytest.mark.parametrize('text', ['', 'слева, 左, é', 'word ' * 60])
@pytest.mark.parametrize('shape', [(1, 40), (40, 1), (300, 20)])
def test_any_text_and_shape(text, shape):
    sheet = draw_expressions(np.zeros((*shape, 3), np.uint8), [text])
    assert sheet.shape[0] < 2500


def test_visualizer_writes_a_file_per_sample(tmp_path):
    visualizer = ReferLocalVisualizer(show_dir=str(tmp_path / 'show'))
    sample = SegDataSample(metainfo=dict(expressions=['a', 'b']))
    gt, pred = masks()
    sample.gt_sem_seg = PixelData(data=torch.from_numpy(gt).float())
    sample.pred_sem_seg = PixelData(data=torch.from_numpy(pred))
    image = np.full((60, 80, 3), 128, np.uint8)
    visualizer.add_datasample('test_x.jpg', image, sample, step=1)
    sample.set_metainfo(dict(img_id=77))
    visualizer.add_datasample('test_x.jpg', image, sample, step=1)
    files = sorted(f.name for f in (tmp_path / 'show').iterdir())
    assert files == ['test_x_1.jpg', 'test_x_77.jpg']
    drawn = cv2.imread(str(tmp_path / 'show' / files[0]))[..., ::-1]
    expected = draw_expressions(image, ['a', 'b'], gt, pred)
    assert np.abs(drawn.astype(int) - expected).mean() < 4
