# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import cv2
import numpy as np
import pytest
from mmseg.registry import TRANSFORMS

from cris.datasets.transforms import LoadReferMasks, without_loading


def build(name, **kwargs):
    return TRANSFORMS.build(dict(type=name, **kwargs))


def picture(height, width, channels=3):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (6, 6, channels), np.uint8)
    return cv2.resize(coarse, (width, height))


def load(path, **annotated):
    return build('LoadReferImage')(dict(img_path=str(path), **annotated))


@pytest.fixture
def jpeg(tmp_path):
    path = tmp_path / 'a.jpg'
    cv2.imwrite(str(path), picture(40, 60))
    return path


def test_image_is_bgr_of_the_annotated_size(jpeg):
    out = load(jpeg, height=40, width=60)
    assert np.array_equal(out['img'], cv2.imread(str(jpeg)))
    assert out['ori_shape'] == (40, 60)


@pytest.mark.parametrize('keep', [0, 10, 300, 0.5, 0.98])
def test_truncated_jpeg_is_refused(jpeg, keep):
    content = jpeg.read_bytes()
    keep = int(keep if keep > 1 else keep * len(content))
    jpeg.write_bytes(content[:keep])
    with pytest.raises(ValueError, match='a.jpg cannot be decoded'):
        load(jpeg)


def test_trailing_bytes_do_no_harm(jpeg):
    expected = load(jpeg)['img']
    jpeg.write_bytes(jpeg.read_bytes() + b'\0' * 500)
    assert np.array_equal(load(jpeg)['img'], expected)


def test_what_is_no_image_is_refused(tmp_path):
    path = tmp_path / 'a.jpg'
    path.write_text('<html>not found</html>')
    with pytest.raises(ValueError, match=r'a.jpg cannot be decoded.*22 bytes'):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / 'missing.jpg')


def test_another_size_than_annotated_is_refused(jpeg):
    with pytest.raises(ValueError, match=r'\(40, 60\).*\(40, 61\)'):
        load(jpeg, height=40, width=61)
    with pytest.raises(ValueError, match='EXIF'):
        load(jpeg, height=60, width=40)


@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_any_channels_become_three(tmp_path, channels, dtype):
    path = tmp_path / 'a.png'
    image = picture(20, 30, channels).reshape(20, 30, channels)
    scale = 257 if dtype is np.uint16 else 1
    cv2.imwrite(str(path), image.astype(dtype) * scale)
    img = load(path)['img']
    assert img.shape == (20, 30, 3) and img.dtype == np.uint8
    expected = np.repeat(image, 3, 2) if channels == 1 else image[..., :3]
    assert np.abs(img.astype(int) - expected).max() <= 1


@pytest.mark.parametrize('height, width', [(50, 1), (1, 50), (1, 1)])
def test_one_pixel_wide_images_go_through(tmp_path, height, width):
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), np.full((height, width, 3), 200, np.uint8))
    rle = dict(size=[height, width], counts=[0, height * width])
    ref = dict(ref_id=1, ann_id=1, segmentation=rle, sentences=['it'],
               sent_ids=[1])
    results = dict(img_path=str(path), refs=[ref])
    for name, kwargs in [('LoadReferImage', {}), ('ChooseExpressions', {}),
                         ('LoadReferMasks', {}), ('Letterbox', dict(size=32)),
                         ('TokenizeExpressions', dict(context_length=9)),
                         ('PackReferInputs', {})]:
        results = build(name, **kwargs)(results)
    assert results['inputs'].shape == (3, 32, 32)
    assert results['data_samples'].gt_sem_seg.data.max() > 0


def test_letterbox_warps_image_and_masks_alike():
    img = np.zeros((30, 60, 3), np.uint8)
    img[10:20, 20:40] = 255
    out = build('Letterbox', size=96)(
        dict(img=img, gt_masks=img[None, ..., 0].copy()))
    assert out['img'].shape == (96, 96, 3) and out['img_shape'] == (96, 96)
    image, mask = out['img'][..., 0] > 127, out['gt_masks'][0] > 127
    assert mask.sum() == pytest.approx(16 * 32, rel=0.1)
    assert (image ^ mask).sum() <= 0.05 * mask.sum()


def test_empty_mask_is_named():
    rle = dict(size=[4, 4], counts=[16])
    with pytest.raises(ValueError, match=r'ref 7 \(ann_id 8\) in x.jpg'):
        build('LoadReferMasks')(dict(
            img_path='x.jpg', ori_shape=(4, 4),
            refs=[dict(ref_id=7, ann_id=8, segmentation=rle)]))


def test_a_pipeline_without_its_loaders():
    loaders = ('mmseg.LoadReferImage', 'ChooseExpressions', LoadReferMasks)
    others = [dict(type='Letterbox', size=64), dict(type='UserTransform'),
              dict(type='PackReferInputs')]
    assert without_loading(
        [*(dict(type=loader) for loader in loaders), *others]) == others


@pytest.mark.parametrize('name, option', [
    ('LoadReferImage', dict(backend_args=dict(backend='petrel'))),
    ('LoadReferImage', dict(imdecode_backend='pillow')),
    ('PackReferInputs', dict(meta_keys=('img_path', )))])
def test_unknown_arguments_are_refused(name, option):
    with pytest.raises(TypeError, match=f'{name}.* no arguments'):
        build(name, **option)
