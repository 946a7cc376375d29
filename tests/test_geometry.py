# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from cris.datasets.transforms import Letterbox
from cris.geometry import letterbox, letterbox_matrix, unletterbox

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
# The goldens were made with OpenCV 5. OpenCV 4 warps with positions rounded
# to 1/32 pixel: pictures differ by one grey level, masks by three,
# probabilities by 0.005.
OPENCV_5 = cv2.__version__ >= '5'


def test_input_and_way_back_of_the_official_code():
    meta = json.loads((GOLDEN / 'prepost.json').read_text())
    arrays = np.load(GOLDEN / 'prepost.npz')
    size = meta['input_size']
    transform = Letterbox(size, border_value=MEAN * 255)
    for i, sample in enumerate(meta['samples']):
        image, gt = arrays[f'{i}_image_rgb'], arrays[f'{i}_gt'] > 0
        matrix = letterbox_matrix(*image.shape[:2], size)
        assert np.array_equal(matrix, arrays[f'{i}_mat'])
        boxed = transform(
            dict(img=image, gt_masks=gt.astype(np.uint8)[None] * 255))
        normalised = (boxed['img'] / 255 - MEAN) / STD
        expected = arrays[f'{i}_input']
        if expected.shape[0] == 3:
            expected = expected.transpose(1, 2, 0)
        tolerance = 1e-5 if OPENCV_5 else 1.01 / 255 / STD.min()
        assert np.abs(normalised - expected).max() < tolerance
        mask = boxed['gt_masks'][0] / 255
        tolerance = (1.01 if OPENCV_5 else 3.01) / 255
        assert np.abs(mask - arrays[f'{i}_train_mask']).max() < tolerance

        height, width = sample['height'], sample['width']
        logits = torch.from_numpy(arrays[f'{i}_logits']).float()
        prob = F.interpolate(
            logits.reshape(1, 1, *logits.shape[-2:]).sigmoid(), (size, size),
            mode='bicubic', align_corners=True)[0, 0].numpy()
        back = unletterbox(prob, height, width)
        assert back.dtype == np.float32
        tolerance = 1e-5 if OPENCV_5 else 0.01
        assert np.abs(back - arrays[f'{i}_prob_original']).max() < tolerance
        pred = back > meta['threshold']
        expected = np.unpackbits(arrays[f'{i}_pred'])[:height * width]
        different = (pred.ravel() != expected.astype(bool)).mean()
        assert different <= (0 if OPENCV_5 else 0.002)
        if not different:
            assert (pred & gt).sum() == sample['intersection']
            assert (pred | gt).sum() == sample['union']


SIDE = st.integers(32, 160)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300),
       size=SIDE | st.tuples(SIDE, SIDE))
def test_matrix_centres_and_keeps_the_ratio(height, width, size):
    matrix = letterbox_matrix(height, width, size)
    to_height, to_width = (size, size) if isinstance(size, int) else size
    corners = matrix @ np.array([[0, width], [0, height], [1, 1]])
    (left, right), (top, bottom) = corners
    assert left == pytest.approx(to_width - right, abs=1e-2)
    assert top == pytest.approx(to_height - bottom, abs=1e-2)
    assert min(left, top) == pytest.approx(0, abs=1e-2)
    assert matrix[0, 0] == pytest.approx(matrix[1, 1], rel=1e-4)
    assert matrix[0, 1] == pytest.approx(0, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(40, 200), width=st.integers(40, 200),
       seed=st.integers(0, 9))
def test_there_and_back(height, width, seed):
    """Smooth maps survive; out of place by a pixel, they would not."""
    coarse = np.random.default_rng(seed).random((2, 5, 5)).astype(np.float32)
    maps = [cv2.resize(m, (width, height), interpolation=cv2.INTER_CUBIC)
            for m in coarse]
    boxed = np.stack([letterbox(m, (256, 320)) for m in maps])
    back = unletterbox(boxed, height, width)
    assert back.shape == (2, height, width)
    assert np.abs(back - maps)[:, 4:-4, 4:-4].max() < 0.02


@pytest.mark.parametrize('shape', [(160, 160, 3), (37, 53)])
@pytest.mark.parametrize('interpolation', [cv2.INTER_CUBIC, cv2.INTER_LINEAR])
def test_an_image_of_the_size_is_as_opencv_warps_it(shape, interpolation):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    boxed = letterbox(image, shape[:2], interpolation)
    warped = cv2.warpAffine(image, letterbox_matrix(*shape[:2], shape[:2]),
                            shape[1::-1], flags=interpolation)
    assert np.array_equal(boxed, warped) and boxed is not image
