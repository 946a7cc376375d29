# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from io import BytesIO

import cv2
import numpy as np
import pytest
import torch
from conftest import CONFIG, ReferSet, options, tool
from PIL import Image
from pycocotools import mask as coco_mask
from samples import make_sample

from cris.engine.hooks.visualization_hook import ReferVisualizationHook
from cris.visualization import ReferLocalVisualizer, draw_expressions
from cris.visualization.draw import (
    GROUND_TRUTH,
    PREDICTION,
    draw_answer,
    draw_prediction,
    expression_tile,
    verdict,
)

GREY = np.full((60, 80, 3), 128, np.uint8)


def masks():
    gt, pred = np.zeros((2, 2, 60, 80), bool)
    gt[:, 10:40, 10:40] = True
    pred[:, 10:40, 25:55] = True
    return gt, pred


def test_prediction_is_tinted_and_ground_truth_outlined():
    image = GREY.copy()
    gt, pred = masks()
    drawn, caption = expression_tile(image, 'a', gt[0], pred[0])
    assert 'IoU 33.3' in caption  # 30 x 15 of 30 x 45 pixels
    assert (image == 128).all()
    assert tuple(drawn[10, 15]) == GROUND_TRUTH
    assert (drawn[25, 15] == 128).all()
    assert drawn[25, 50, 2] > 150 > 100 > drawn[25, 50, 0]
    assert (drawn[50, 70] == 128).all()
    assert tuple(drawn[25, 54]) == PREDICTION  # its edge
    large, _ = expression_tile(
        image.repeat(40, 0).repeat(40, 1), 'a',
        pred=pred[0].repeat(40, 0).repeat(40, 1))
    assert (large[1000, 2196:2200] == PREDICTION).all()


def test_sheet_has_a_tile_for_the_image_and_each_expression():
    sheet = draw_expressions(GREY, ['a', 'b'], *masks())
    assert sheet.shape[1] == 900
    one = draw_expressions(GREY, ['a'])
    assert one.shape[1] == 600
    many = draw_expressions(GREY, ['a'] * 9)
    assert many.shape == (3 * one.shape[0], 1200, 3)


def test_predictions_are_drawn_small_and_a_hundred_at_most():
    mask = np.zeros((600, 800), np.uint8, order='F')
    mask[100:400, 250:550] = 1
    rles = [coco_mask.encode(mask), coco_mask.encode(0 * mask)] * 75

    def draw(count, image):
        return draw_prediction(image, dict(
            expressions=['a'] * count, scores=[.5] * count, rles=rles[:count],
            exists=[True, False] * 75, existence=None))

    image = np.full((600, 800, 3), 128, np.uint8)
    one, two = draw(1, image), draw(2, image)
    assert one.shape[1] == 800
    assert one[250, 400, 2] > 150 and (one[500, 700] == 128).all()
    assert two.shape[1] == 3 * 400
    # A smaller image gives the same sheet, but for its resolution.
    small = draw(2, image[::2, ::2])
    assert small.shape == two.shape
    assert np.abs(small.astype(int) - two).mean() < 2
    np.testing.assert_array_equal(draw(150, image), draw(100, image))
    large = np.full((3000, 4000, 3), 128, np.uint8)
    assert draw(1, large).shape[1] == 1000


def test_answers_of_nothing_and_of_parts_are_drawn():
    mask = np.zeros((60, 80), np.uint8, order='F')
    mask[10:40, 20:30] = mask[30:40, 20:60] = 1  # an L
    rles = [coco_mask.encode(0 * mask), coco_mask.encode(mask)]
    part = dict(box=[20., 10., 60., 40.])
    prediction = dict(scores=[.9, .8], exists=[False, True], rles=rles,
                      existence=[.07, .6], existence_threshold=.5)
    (drawn, plain) = (draw_answer(GREY, prediction, k) for k in range(2))
    assert (drawn == GREY).all()
    assert tuple(plain[35, 59]) == PREDICTION
    assert (plain[10, 35:] == 128).all()
    assert verdict(prediction, 0) == ('', 'nothing found (0.90 sure)')
    assert verdict(prediction, 1) == ('0.80', '')
    prediction['parts'] = [[], [part]]
    boxed = draw_answer(GREY, prediction, 1)
    rows, columns = np.nonzero((boxed != plain).any(2))
    assert (rows.min(), columns.max()) == (10, 59)
    assert (boxed[10, 20:60] == PREDICTION).all()
    assert (boxed[11:30, 31:59] == 128).all()
    assert verdict(prediction, 1) == ('0.80', '1 part')
    # On a smaller copy.
    half = draw_answer(GREY[::2, ::2], prediction, 1)
    assert (half[5, 10:30] == PREDICTION).all()
    assert (half[:5] == 128).all() and (half[:, 30:] == 128).all()


@pytest.mark.parametrize('text', ['', 'слева, 左, é', 'word ' * 60])
@pytest.mark.parametrize('shape', [(1, 40), (40, 1), (300, 20)])
def test_any_text_and_shape(text, shape):
    sheet = draw_expressions(np.zeros((*shape, 3), np.uint8), [text])
    assert sheet.shape[0] < 2500


def test_visualizer_writes_a_file_per_sample(tmp_path):
    visualizer = ReferLocalVisualizer(show_dir=str(tmp_path / 'show'))
    gt, pred = masks()
    sample = make_sample(pred, gt, expressions=['a', 'b'])
    visualizer.add_datasample('test_x.jpg', GREY, sample, step=1)
    sample.set_metainfo(dict(img_id=77))
    visualizer.add_datasample('test_x.jpg', GREY, sample, step=1)
    files = sorted(f.name for f in (tmp_path / 'show').iterdir())
    assert files == ['test_x_1.jpg', 'test_x_77.jpg']
    drawn = cv2.imread(str(tmp_path / 'show' / files[0]))[..., ::-1]
    expected = draw_expressions(GREY, ['a', 'b'], gt, pred)
    assert np.abs(drawn.astype(int) - expected).mean() < 4


def test_validations_are_drawn_to_files_and_tensorboard(tmp_path):
    """Each validation draws the same images."""
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )
    data = ReferSet(tmp_path / 'refer').write()
    tool('train.py', CONFIG, '--work-dir', tmp_path / 'work', *options(data),
         'val_dataloader.dataset.split=train', 'val_dataloader.batch_size=1',
         'train_cfg.val_interval=1',
         'default_hooks.visualization.num_images=1',
         'visualizer.vis_backends=[LocalVisBackend,TensorboardVisBackend]')
    (log, ) = (tmp_path / 'work').glob('*/vis_data')
    # Two images in batches of two make an iteration; epochs 1 and 2.
    files = sorted((log / 'vis_image').iterdir())
    assert [f.name for f in files] == ['val_0_1.png', 'val_0_2.png']
    (path, ) = log.glob('events.out.tfevents.*')
    events = EventAccumulator(str(path), {'images': 0}).Reload()
    assert events.Tags()['images'] == ['val_0']
    assert 'mIoU' in events.Tags()['scalars']
    for file, event in zip(files, events.Images('val_0'), strict=True):
        assert file.stem == f'val_0_{event.step}'
        logged = Image.open(BytesIO(event.encoded_image_string))
        drawn = cv2.imread(str(file))[..., ::-1]
        np.testing.assert_array_equal(np.asarray(logged), drawn)
        # The image and 7 of the 8 expressions: two rows of four tiles.
        assert drawn.shape[1] == 4 * 300


class _Runner:
    iter = 5

    def __init__(self, length):
        self.val_dataloader = torch.utils.data.DataLoader(range(length))
        self.drawn = []
        self.visualizer = self

    def add_datasample(self, name, image, sample, step):
        self.drawn.append((name, image.shape, len(sample.expressions), step))


@pytest.mark.parametrize('num_images, length, drawn', [
    (0, 5, []), (1, 5, [0]), (3, 5, [0, 2, 4]), (9, 3, [0, 1, 2])])
def test_images_are_spread_over_the_split(tmp_path, num_images, length,
                                          drawn):
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), np.zeros((6, 9, 3), np.uint8))
    ones = torch.ones(20, 6, 9).bool()
    sample = make_sample(
        ones, ones, expressions=['a'] * 20, img_path=str(path))
    del sample.gt_sem_seg
    hook, runner = ReferVisualizationHook(num_images), _Runner(length)
    for _ in range(2):
        runner.drawn.clear()
        hook.before_val_epoch(runner)
        for start in range(0, length, 2):
            batch = [sample] * len(range(length)[start:start + 2])
            hook.after_val_iter(runner, start // 2, outputs=batch)
        assert runner.drawn == [(f'val_{i}', (6, 9, 3), 7, 5) for i in drawn]
