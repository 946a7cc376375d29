# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The inferencer with the default model on RefShapes."""
import copy
import io
import json
import pickle
import sys
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest
import torch
from conftest import REPO, options, tool
from hostile import animation, encoded, large_png
from PIL import Image
from pycocotools import mask as coco_mask

import cris
from cris.apis.model_zoo import DEFAULT_MODEL
from cris.engine.precision import before_torch_2_4

TINY = REPO / 'configs/cris' / f'{DEFAULT_MODEL}.py'
(WEIGHTS, ) = (REPO / 'checkpoints').glob('cris_tiny_*.safetensors')


def iou(one, other):
    return (one & other).sum() / max((one | other).sum(), 1)


@pytest.fixture(scope='module')
def asked(questions, inferencer):
    """An image, an expression with a high score, and the mask."""
    for path, texts in questions.items():
        (prediction, ) = inferencer(path, texts)['predictions']
        best = int(prediction['scores'].argmax())
        mask = prediction['masks'][best]
        if prediction['scores'][best] > 0.8 and mask.sum() > 300:
            return path, texts[best], mask
    raise AssertionError('no expression has a high score')


class TestAgainstTheTools:

    @pytest.fixture(scope='class')
    def tested(self, shapes, tmp_path_factory):
        """Predictions of tools/test.py, by path."""
        root = tmp_path_factory.mktemp('tested')
        tool('test.py', TINY, WEIGHTS, '--work-dir', root, *options(shapes),
             'test_evaluator.type=DumpResults',
             f'test_evaluator.out_file_path={root / "all.pkl"}')
        samples = pickle.loads((root / 'all.pkl').read_bytes())
        return {sample['img_path']: sample for sample in samples}

    def test_masks_are_equal_pixel_by_pixel(self, tested, questions,
                                            inferencer):
        result = inferencer(
            list(questions), list(questions.values()),
            batch_size=inferencer.cfg.test_dataloader.batch_size,
            return_probs=True)
        assert len(result['predictions']) == len(tested) == 12
        total, ious = 0, []
        for prediction in result['predictions']:
            sample = tested[prediction['img_path']]
            assert prediction['expressions'] == sample['expressions']
            wanted = sample['pred_sem_seg']['data'].numpy()
            np.testing.assert_array_equal(prediction['masks'], wanted)
            np.testing.assert_allclose(
                prediction['probs'], sample['seg_logits']['data'].numpy(),
                atol=1e-5)
            total += wanted.any((1, 2)).sum()
            ious += map(iou, wanted, sample['gt_sem_seg']['data'].numpy() > 0)
        assert total > 100  # most masks are not empty
        assert np.mean(ious) > 0.55  # new images of its dataset

    def test_single_images_and_views_are_equal_too(self, tested, questions,
                                              inferencer):
        for path, texts in questions.items():
            wanted = tested[path]['pred_sem_seg']['data'].numpy()
            with inferencer.open(path) as view:
                np.testing.assert_array_equal(view(texts)['masks'], wanted)
                one = view(texts[-1])
            np.testing.assert_array_equal(one['masks'], wanted[-1:])
            assert one['expressions'] == texts[-1:]


class TestPrediction:

    def test_parts_agree(self, asked, inferencer):
        path, text, mask = asked
        (prediction, ) = inferencer(
            path, [text, 'zebra'], return_probs=True)['predictions']
        assert prediction['masks'].dtype == bool
        assert prediction['masks'].shape == (2, *mask.shape)
        assert prediction['img_path'] == path
        assert prediction['name'] == Path(path).stem
        prob = prediction['probs'][0]
        assert prob.dtype == np.float32
        assert ((prob > prediction['threshold']) == mask).all()
        assert prediction['scores'][0] == pytest.approx(prob[mask].mean())
        rows, columns = np.nonzero(mask)
        assert prediction['boxes'][0].tolist() == [
            columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        rle = json.loads(json.dumps(prediction['rles'][0]))
        assert (coco_mask.decode(rle) == mask).all()

    def test_threshold(self, asked, inferencer):
        path, text, mask = asked
        with inferencer.open(path) as view:
            higher = view(text, threshold=0.7)
            nothing = view(text, threshold=1, return_probs=True)
        assert 0 < higher['masks'].sum() < mask.sum()
        assert not (higher['masks'][0] & ~mask).any()
        if nothing['masks'].any():  # cubic interpolation overshoots
            assert nothing['probs'].max() > 1
        else:
            assert nothing['boxes'].tolist() == [[0, 0, 0, 0]]
            assert nothing['scores'][0] == pytest.approx(
                min(nothing['probs'].max(), 1))

    def test_an_image_is_encoded_once(self, questions, inferencer):
        (path, texts), *_ = questions.items()
        model = inferencer.model
        with (patch.object(model, 'encode_image',
                           wraps=model.encode_image) as encode,
              patch.object(model, 'decode', wraps=model.decode) as decode):
            with inferencer.open(path) as view:
                one = view(texts[:2])['masks'][0]
                view(texts[2])
                many = view([f'thing {i}' for i in range(999)] + texts[:1],
                            return_masks=False)
            chunks = [len(call.args[1]) for call in decode.call_args_list]
            inferencer(list(questions)[:5], 'a circle', batch_size=2)
        encoded = [len(call.args[0]) for call in encode.call_args_list]
        assert encoded == [1, 2, 2, 1]
        assert sum(chunks) == 1003 and max(chunks) == 4
        assert len(many['rles']) == 1000 and 'masks' not in many
        assert iou(coco_mask.decode(many['rles'][-1]) > 0, one) > 0.99
        with pytest.raises(ValueError, match='view of .* is closed'):
            view('a circle')

    @pytest.mark.skipif(before_torch_2_4(), reason='no bfloat16 on CPUs')
    def test_bfloat16(self, asked, inferencer):
        path, text, mask = asked
        half = cris.CRISInferencer(device='cpu', precision='bf16')
        (prediction, ) = half(path, text)['predictions']
        assert iou(prediction['masks'][0], mask) > 0.9
        exact = inferencer(path, text)['predictions'][0]['scores']
        assert 0 < abs(prediction['scores'] - exact) < 0.05

    def test_data_samples_and_drawings(self, asked, inferencer):
        path, text, mask = asked
        result = inferencer(
            [path, path], [[text], [text, 'a circle']], return_probs=True,
            return_vis=True, return_datasamples=True)
        first, second = result['predictions']
        assert (first.pred_sem_seg.data[0].numpy() == mask).all()
        assert second.seg_logits.shape == mask.shape
        assert second.expressions == [text, 'a circle']
        one, three = result['visualization']
        assert one.dtype == np.uint8 and one.shape[2] == 3
        assert three.shape[1] == 3 * one.shape[1]
        plain = inferencer(
            path, text, threshold=1, return_vis=True)['visualization'][0]
        changed = (one != plain).any(-1)[:one.shape[0] - 30]
        scale = (one.shape[1] / mask.shape[1])**2
        assert changed.sum() == pytest.approx(mask.sum() * scale, rel=0.2)


class TestInputs:

    @pytest.fixture(scope='class')
    def picture(self, asked):
        return Image.open(asked[0]).convert('RGB')

    @pytest.fixture
    def is_right(self, asked, inferencer):
        def answer(source):
            _, text, mask = asked
            (prediction, ) = inferencer(source, text)['predictions']
            return iou(prediction['masks'][0], mask) > 0.9

        return answer

    def test_every_form_gives_the_same_mask(self, asked, picture, inferencer,
                                            tmp_path):
        _, text, _ = asked
        path = tmp_path / 'a.png'
        picture.save(path)
        bgr = cv2.imread(str(path))
        same = inferencer(
            iter([str(path), path, path.read_bytes(), bgr, picture,
                  io.BytesIO(path.read_bytes())]), text)['predictions']
        for prediction in same:
            np.testing.assert_array_equal(prediction['masks'],
                                          same[0]['masks'])
        assert [p['name'] for p in same] == [
            'a', 'a', 'image_2', 'image_3', 'image_4', 'image_5']
        assert same[0]['masks'].any()

    @pytest.mark.parametrize('form', [
        dict(format='WEBP', lossless=True), dict(format='BMP'),
        dict(format='TIFF'), dict(mode='RGBA', format='PNG'),
        dict(mode='P', format='PNG'),
        dict(mode='CMYK', format='JPEG', quality=100)])
    def test_other_formats(self, form, picture, is_right):
        form = dict(form)
        image = picture.convert(form.pop('mode', 'RGB'))
        assert is_right(encoded(image, **form))

    def test_sixteen_bits_and_grey(self, asked, picture, inferencer,
                                   is_right):
        bgr = np.asarray(picture)[..., ::-1]
        sixteen = cv2.imencode('.png', bgr.astype(np.uint16) * 257)[1]
        assert is_right(sixteen.tobytes())
        grey = np.asarray(picture.convert('L'))
        assert is_right(np.dstack([bgr, np.zeros_like(grey)]))
        first, *others = inferencer(
            [grey, grey[..., None], np.dstack([grey] * 3),
             encoded(Image.fromarray(grey), format='PNG')],
            asked[1])['predictions']
        assert all((p['masks'] == first['masks']).all() for p in others)

    @pytest.mark.parametrize('orientation, turn', [(3, 2), (6, 1), (8, 3)])
    def test_orientation_of_exif(self, orientation, turn, picture, is_right):
        """A phone stores the image rotated, with the rotation in EXIF."""
        held = Image.fromarray(np.rot90(np.asarray(picture), turn))
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(held, format='JPEG', quality=100, exif=exif)
        assert is_right(content)
        assert is_right(Image.open(io.BytesIO(content)))

    def test_folder(self, asked, picture, inferencer, tmp_path):
        for name in ('b.jpg', 'a.PNG', 'c.txt'):
            (tmp_path / name).write_bytes(encoded(picture, format='PNG'))
        for folder in (tmp_path, str(tmp_path)):
            predictions = inferencer(folder, asked[1])['predictions']
            assert [p['name'] for p in predictions] == ['a', 'b']
        (tmp_path / 'none').mkdir()
        (tmp_path / 'none/folder.jpg').mkdir()
        with pytest.raises(ValueError, match='none has no images'):
            inferencer(tmp_path / 'none', 'a circle')


NOISE = Image.effect_noise((64, 64), 50)


class TestRefusals:

    @pytest.mark.parametrize('source, error, message', [
        ('absent.jpg', FileNotFoundError, 'absent.jpg does not exist'),
        ('http://localhost/a.jpg', FileNotFoundError, 'a.jpg does not exist'),
        (b'', ValueError, 'image_0 cannot be decoded.*0 bytes'),
        (b'not an image', ValueError, r'image_0 cannot be decoded.*12 bytes'),
        (encoded(NOISE, format='JPEG')[:900], ValueError,
         'cannot be decoded.*broken'),
        (large_png(30_000), ValueError, 'more.*than the limit of 100000000'),
        (large_png(12_000), ValueError, 'more than the limit of 100000000'),
        (np.zeros((1, 33_000), np.uint8), ValueError, 'a side of more than'),
        (large_png(9_000)[:-30], ValueError, 'cannot be decoded'),
        (animation('GIF'), ValueError, r'an animation \(GIF\): save the'),
        (animation('WEBP'), ValueError, r'an animation \(WEBP\)'),
        (animation('PNG'), ValueError, r'an animation \(PNG\)'),
        (np.zeros((4, 4, 3)), ValueError, r'float64 .*\(4, 4, 3\); wanted'),
        (np.zeros((4, 4, 2), np.uint8), ValueError, 'wanted uint8'),
        (np.zeros((0, 4, 3), np.uint8), ValueError, 'wanted uint8'),
        (Image.new('F', (4, 4)), ValueError, 'mode F: pass the file itself'),
        (None, TypeError, 'a NoneType; wanted a path'),
        ([], ValueError, 'the list is empty'),
    ])
    def test_images(self, source, error, message, inferencer):
        with pytest.raises(error, match=message):
            inferencer(source, 'a circle')

    @pytest.mark.parametrize('texts, error, message', [
        ('', ValueError, 'expression 1 of 1 is empty'),
        (['a', ' \n'], ValueError, 'expression 2 of 2 is empty'),
        ([], ValueError, 'there is no expression'),
        (None, TypeError, 'a string or a list of strings'),
        (['a', 5], TypeError, 'expression 2 of 2 is a int'),
        ([['a'], ['b']], ValueError, '2 lists of expressions for 1 im'),
        ([['a', '']], ValueError, 'expression 2 of 2 is empty'),
    ])
    def test_expressions(self, texts, error, message, inferencer, asked):
        with pytest.raises(error, match=message):
            inferencer(asked[0], texts)

    def test_a_long_expression_is_cut_with_a_warning(self, inferencer, asked):
        path, text, _ = asked
        with pytest.warns(UserWarning, match='has .* the model reads 17'):
            long = inferencer(path, f'{text} ' + 'and ' * 2500)
        with pytest.warns(UserWarning, match='the rest is ignored'):
            cut = inferencer(path, f'{text} ' + 'and ' * 20)
        np.testing.assert_array_equal(long['predictions'][0]['masks'],
                                      cut['predictions'][0]['masks'])

    @pytest.mark.parametrize('options, message', [
        (dict(treshold=0.3), "unknown argument {'treshold'}"),
        (dict(threshold=35), r'threshold=35 must be in \[0, 1\]'),
        (dict(threshold='0.5'), "'0.5' must be a number"),
        *((dict(batch_size=size), 'batch_size.* an integer')
          for size in (0, -1, 1.5, '2')),
        (dict(return_masks=False, return_datasamples=True),
         'needs the masks'),
        pytest.param(
            dict(show=True), 'needs a screen', marks=pytest.mark.skipif(
                sys.platform != 'linux', reason='of X11 and Wayland')),
    ])
    def test_options(self, options, message, inferencer, asked, monkeypatch):
        for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(ValueError, match=message):
            inferencer(asked[0], 'a circle', **options)

    @pytest.mark.parametrize('options, message', [
        (dict(precision='int8'), 'one of fp32, bf16, fp16'),
        (dict(device='cpu', precision='fp16'), "needs a GPU: use 'bf16'"),
        (dict(weights='a.pth'), 'weights are given without a'),
        (dict(model=torch.nn.Linear(1, 1)), 'the model has no config'),
        *((dict({key: value}, model='built'), 'that is already built')
          for key, value in [('weights', 'a.pth'), ('device', 'cpu'),
                             ('precision', 'bf16')]),
    ])
    def test_options_of_the_constructor(self, options, message, inferencer):
        if options.get('model') == 'built':
            options = dict(options, model=inferencer.model)
        with pytest.raises(ValueError, match=message):
            cris.CRISInferencer(**options)


def test_a_pipeline_without_a_tokenizer_is_refused(inferencer):
    model = torch.nn.Module()
    model.data_preprocessor = inferencer.model.data_preprocessor
    model.cfg = copy.deepcopy(inferencer.cfg)
    dataset = model.cfg.test_dataloader.dataset
    dataset.pipeline = [transform for transform in dataset.pipeline
                        if transform['type'] != 'TokenizeExpressions']
    with pytest.raises(ValueError, match='has no TokenizeExpressions: add'):
        cris.CRISInferencer(model)


def test_a_model_from_training_is_used_in_eval_mode(inferencer, asked):
    model = cris.init_model(DEFAULT_MODEL, device='cpu').train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    own, wanted = (
        one(*asked[:2])['predictions'][0]
        for one in (cris.CRISInferencer(model), inferencer))
    assert own['scores'] == pytest.approx(wanted['scores'], abs=1e-4)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_logits_that_are_not_finite_are_refused(asked):
    model = cris.init_model(DEFAULT_MODEL, device='cpu')
    with torch.no_grad():
        model.decode_head.projector.kernel_proj.bias[0] = float('nan')
    with pytest.raises(ValueError, match='infinite or NaN logits'):
        cris.CRISInferencer(model)(*asked[:2])


def test_results_before_a_broken_image_are_written(questions, inferencer,
                                                   tmp_path):
    first = Path(next(iter(questions)))
    twin = tmp_path / first.with_suffix('.png').name
    Image.open(first).save(twin)
    (tmp_path / 'broken.jpg').write_bytes(b'not an image')
    out, texts = tmp_path / 'new/out', ['the circle', 'a star']
    with pytest.raises(ValueError, match='broken.jpg cannot be decoded'):
        inferencer([*questions][:2] + [twin, tmp_path / 'broken.jpg'], texts,
                   out_dir=str(out))
    records = json.loads((out / 'predictions.json').read_text())
    paths = [*questions][:2] + [str(twin)]
    assert [r['img_path'] for r in records] == paths
    predictions = inferencer(paths, texts, return_masks=False)['predictions']
    written = {str(p.relative_to(out)) for p in out.rglob('*.*')}
    assert written == {
        'predictions.json', *(r['overlay_file'] for r in records),
        *(a['mask_file'] for r in records for a in r['answers'])}
    assert len(written) == 1 + 3 + 6  # a.jpg and a.png have own names
    for record, prediction in zip(records, predictions, strict=True):
        for k, answer in enumerate(record['answers']):
            assert answer['expression'] == texts[k]
            assert answer['score'] == pytest.approx(prediction['scores'][k])
            assert answer['box'] == prediction['boxes'][k].tolist()
            mask = cv2.imread(
                str(out / answer['mask_file']), cv2.IMREAD_UNCHANGED)
            assert mask.shape == (record['height'], record['width'])
            wanted = coco_mask.decode(answer['rle'])
            np.testing.assert_array_equal(mask, 255 * wanted)
