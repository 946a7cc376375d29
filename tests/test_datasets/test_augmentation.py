# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Augmentations leave expressions true, and arrays where they belong."""
import numpy as np
import pytest
from mmseg.registry import TRANSFORMS

from cris.datasets.augmentation import mirrored


@pytest.mark.parametrize('sentence, other', [
    ('the woman in red on the left', 'the woman in red on the right'),
    ('leftmost guy', 'rightmost guy'), ('Right one', 'Left one'),
    ('lefty', 'righty'), ('far l', 'far r'), ('RIGHT', 'LEFT'),
    ('2nd from left', '2nd from right'),
    ('right-hand side of the left dog', 'left-hand side of the right dog'),
    ('bright upright car', 'bright upright car'),
    ('the sky', 'the sky'),
    # Here right is no side.
    ('man right behind her', 'man right behind her'),
    ('man on the right behind her', 'man on the left behind her')])
def test_mirrored_sentences(sentence, other):
    assert mirrored(sentence) == other
    assert mirrored(other) == sentence


@pytest.mark.parametrize('sentence', [
    'shirt that says left', 'number 23', "bus at 3 o'clock",
    'the letter E', 'east of the river'])
def test_sentences_without_a_mirror_image(sentence):
    assert mirrored(sentence) is None


def sample(*sentences, seed=0):
    """An image whose first two channels hold the masks of two referents."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((2, 40, 60), np.uint8)
    for mask in masks:
        y, x = rng.integers(0, (28, 44))
        mask[y:y + 12, x:x + 16] = 255
    img = np.stack([*masks, rng.integers(0, 255, (40, 60))], -1)
    return dict(img=img.astype(np.uint8), gt_masks=masks,
                gt_ignore=masks[::-1].copy(), img_shape=(40, 60),
                expressions=list(sentences), ref_index=[0, 1][:len(sentences)])


def build(name, **kwargs):
    return TRANSFORMS.build(dict(type=name, **kwargs))


def aligned(out):
    return (np.array_equal(out['img'][..., :2].transpose(2, 0, 1),
                           out['gt_masks'])
            and np.array_equal(out['gt_ignore'], out['gt_masks'][::-1]))


def test_flip():
    flip = build('RandomReferFlip', prob=1.0)
    before = sample('left car', 'the sky')
    after = flip(before)
    assert aligned(after) and after['expressions'] == ['right car', 'the sky']
    assert np.array_equal(after['img'], before['img'][:, ::-1])
    again = flip(after)
    assert np.array_equal(again['img'], before['img'])
    assert again['expressions'] == before['expressions']
    fixed = sample('left car', 'number 7')
    assert flip(fixed) is fixed
    assert build('RandomReferFlip', prob=0.0)(before) is before


def test_crop_keeps_the_referents():
    crop = build('RandomReferCrop', min_scale=0.4, min_kept=0.6, min_true=1.0,
                 prob=1.0)
    np.random.seed(0)
    cropped = 0
    for seed in range(300):
        before = sample('the car', 'the left car', seed=seed)
        after = crop(before)
        assert aligned(after)
        height, width = after['img_shape']
        assert after['img'].shape == (height, width, 3)
        assert abs(height / width - 40 / 60) < 0.02
        # It is a window of the image.
        starts = [(y, x) for y in range(41 - height) for x in range(61 - width)
                  if np.array_equal(before['img'][y:y + height, x:x + width],
                                    after['img'])]
        assert starts
        kept = (after['gt_masks'] > 0).sum((1, 2)) / (12 * 16)
        assert (kept >= 0.6).all()
        place = [thirds(s['gt_masks'][1]) for s in (before, after)]
        assert place[0] == place[1]
        cropped += height < 40
    assert cropped > 100


def test_crop_replaces_what_is_no_longer_true():
    crop = build('RandomReferCrop', min_scale=0.4, min_kept=0.9, min_true=0.5,
                 prob=1.0)
    np.random.seed(0)
    replaced = 0
    for seed in range(300):
        before = sample('the left car', 'the sky', seed=seed)
        before.update(sent_ids=[5, 6], ref_ids=[7, 8], kinds=['one', 'none'])
        after = crop(before)
        kept = (after['gt_masks'] > 0).sum((1, 2)) / (12 * 16)
        each = list(zip(*(after[key] for key in (
            'ref_index', 'expressions', 'sent_ids', 'ref_ids', 'kinds')),
            strict=True))
        assert len(each) == 2
        assert set(each) <= {(0, 'the left car', 5, 7, 'one'),
                             (1, 'the sky', 6, 8, 'none')}
        assert (kept[after['ref_index']] >= 0.9).all()
        replaced += each[0] == each[1]
    assert 30 < replaced < 270


def thirds(mask):
    centre = np.argwhere(mask).mean(0) / mask.shape
    return tuple((3 * centre).astype(int))


def test_crop_of_what_has_no_referent():
    crop = build('RandomReferCrop', prob=1.0)
    nothing = sample('the bus')
    nothing['gt_masks'][:] = 0
    np.random.seed(0)
    assert crop(nothing)['img_shape'] != (40, 60)
