# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Answers of nothing, and the parts of a mask."""
import json

import cv2
import numpy as np
import pytest
import torch
from conftest import GEN, REPO, existence_is
from cris_segment import main
from pycocotools import mask as coco_mask

from cris.apis.predictions import connected_parts, make_prediction
from cris.models.head import Answer
from cris.visualization.draw import verdict

IMAGE = REPO / 'demo/shapes_1.jpg'
TEXTS = ['the purple star', 'the triangles']


def test_what_does_not_exist_has_no_mask(abstainer, inferencer):
    (always, ) = inferencer(IMAGE, TEXTS)['predictions']
    with existence_is(abstainer.model, 0.07, 0.6):
        (given, ) = abstainer(IMAGE, TEXTS, return_probs=True)['predictions']
        with abstainer.open(IMAGE) as view:
            low, high = (view(TEXTS, existence_threshold=threshold)
                         for threshold in (0.05, 0.7))
    assert always['existence'] is always['existence_threshold'] is None
    assert always['exists'].tolist() == [True, True]
    assert given['exists'].tolist() == [False, True]
    assert given['existence'] == pytest.approx([0.07, 0.6])
    assert given['existence'].dtype == np.float32
    assert given['existence_threshold'] == 0.5
    assert given['scores'] == pytest.approx(
        [0.93, 0.6 * always['scores'][1]], abs=1e-4)
    assert not given['masks'][0].any()
    assert given['boxes'][0].tolist() == [0, 0, 0, 0]
    assert given['probs'][0].max() > 0.5  # as the model says
    for own, wanted in [(given['masks'][1:], always['masks'][1:]),
                        (low['masks'], always['masks'])]:
        assert (own != wanted).mean() < 1e-4
    assert not high['masks'].any() and not high['exists'].any()
    assert (low['existence_threshold'], high['existence_threshold']) == (
        0.05, 0.7)


def test_scores_are_calibrated(abstainer, monkeypatch):
    monkeypatch.setattr(abstainer.model.decode_head, 'calibration', dict(
        existence=[0.5, 1.0], mask=[1.0, 0.0], existence_threshold=0.5))
    with existence_is(abstainer.model, 0.2):
        (prediction, ) = abstainer(IMAGE, TEXTS[0])['predictions']
    # The logit of 0.2 is -1.386.
    assert prediction['scores'] == pytest.approx(
        [1 - 1 / (1 + np.exp(0.693147 - 1))], abs=1e-5)


def test_a_mask_without_a_pixel_does_not_exist(abstainer, inferencer):
    logits = torch.full((1, 1, 64, 64), -1.)
    for one, existence in [(inferencer, None), (abstainer, [0.9])]:
        logit = torch.tensor([0.9]).logit() if existence else None
        prediction = make_prediction(
            one.model, Answer(logits, logit), (90, 70), ['the triangle'])
        assert prediction['exists'].tolist() == [False]
        assert prediction['existence'] == (
            existence and pytest.approx(existence))
        score = prediction['scores'][0]
        assert verdict(prediction, 0) == (f'{score:.2f}', 'nothing found')


def test_answers_of_a_batch_stay_with_their_images(abstainer):
    images = [IMAGE, REPO / 'demo/shapes_2.jpg']
    with existence_is(abstainer.model, 0.1, 0.2, 0.9):
        first, second = abstainer(
            images, [['a'], ['b', 'the blue one']], batch_size=2,
            return_datasamples=True)['predictions']
    assert first.existence.tolist() == pytest.approx([0.1])
    assert second.existence.tolist() == pytest.approx([0.2, 0.9])
    assert second.existence_threshold == 0.5
    assert second.pred_sem_seg.data.any(2).any(1).tolist() == [False, True]


@pytest.mark.parametrize('threshold, message', [
    (1.5, r'existence_threshold=1.5 must be in \[0, 1\]'),
    ('0.5', "existence_threshold='0.5' must be a number")])
def test_thresholds_that_are_refused(threshold, message, abstainer):
    with pytest.raises(ValueError, match=message):
        abstainer(IMAGE, 'a', existence_threshold=threshold)


def test_a_model_that_always_answers_has_no_threshold(inferencer):
    with pytest.raises(ValueError, match='this model does not tell whether'):
        inferencer(IMAGE, 'a', existence_threshold=0.5)


def test_nan_is_refused(abstainer):
    with existence_is(abstainer.model, float('nan')), pytest.raises(
            ValueError, match='NaN for existence: its weights are broken'):
        abstainer(IMAGE, 'a')


def test_parts_are_those_of_the_mask(abstainer):
    """Two rectangles, one with another at its corner, and a speck."""
    logits = torch.full((2, 1, 40, 40), -9.)
    logits[0, 0, 5:10, 5:10] = logits[0, 0, 9:13, 9:13] = 9
    logits[0, 0, 20:24, 25:38] = logits[0, 0, 27, 3] = 9
    for shape, cell in (((160, 160), 16), ((320, 640), 256)):
        prediction = make_prediction(
            abstainer.model, Answer(logits, torch.tensor([1., 1.])), shape,
            ['a', 'b'], instances=True)
        large, small = prediction['parts'][0]
        assert prediction['parts'][1] == []
        assert large['area'] > small['area'] > 4 * cell
        masks = [coco_mask.decode(part['rle']) for part in (large, small)]
        left_out = prediction['masks'][0] & ~np.any(masks, axis=0)
        assert 0 < left_out.sum() < 4 * cell
        for part, mask in zip((large, small), masks, strict=True):
            assert part['area'] == mask.sum()
            rows, columns = np.nonzero(mask)
            assert part['box'] == [columns.min(), rows.min(),
                                   columns.max() + 1, rows.max() + 1]
            assert (mask <= prediction['masks'][0]).all()
        assert not (masks[0] & masks[1]).any()


def test_the_largest_part_is_never_left_out():
    mask = np.zeros((9, 9), bool)
    assert connected_parts(mask, 5) == []
    mask[0, 0] = mask[4, 4:7] = True
    (part, ) = connected_parts(mask, 5)
    assert (part['box'], part['area']) == ([4, 4, 7, 5], 3)
    assert len(connected_parts(mask, 1)) == 2


@pytest.fixture
def checkpoint(abstainer, tmp_path):
    """Of a model that says 0.07 to all."""
    weights = abstainer.model.state_dict()
    weights = {name: value.clone() for name, value in weights.items()}
    last = 'decode_head.existence.mlp.3.'
    weights[f'{last}weight'].zero_()
    weights[f'{last}bias'].fill_(float(np.log(0.07 / 0.93)))
    torch.save(weights, tmp_path / 'a.pth')
    return str(tmp_path / 'a.pth')


def test_command_line(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ask = [str(IMAGE), str(GEN), checkpoint, '--out-dir', 'out', '--text',
           TEXTS[1]]
    main(ask)
    assert f'      {TEXTS[1]}  nothing found (0.93 sure)\n' in (
        capsys.readouterr().out)
    main([*ask, '--existence-threshold', '0.05', '--instances'])
    (record, ) = json.loads((tmp_path / 'out/predictions.json').read_text())
    (answer, ) = record['answers']
    count = len(answer['parts'])
    assert count > 1
    assert f'{answer["score"]:.2f}  {TEXTS[1]}  {count} parts\n' in (
        capsys.readouterr().out)
    assert record['existence_threshold'] == 0.05
    assert answer['exists'] is True
    assert answer['existence'] == pytest.approx(0.07)
    assert sum(part['area'] > 100 for part in answer['parts']) >= 2
    with pytest.raises(SystemExit, match='error: existence_threshold=0.5 is '
                       'given, but this model does not tell'):
        main([str(IMAGE), '--text', 'a', '--existence-threshold', '0.5'])
    with pytest.raises(SystemExit):
        main([*ask, '--existence-threshold', '-1'])
    assert '--existence-threshold -1.0 must be in [0, 1]' in (
        capsys.readouterr().err)


def test_predictions_json(abstainer, inferencer, tmp_path):
    with existence_is(abstainer.model, 0.07):
        abstainer(IMAGE, TEXTS[0], out_dir=tmp_path / 'nothing')
    inferencer(IMAGE, TEXTS[1], out_dir=tmp_path / 'always')
    nothing, always = (
        json.loads((tmp_path / name / 'predictions.json').read_text())[0]
        for name in ('nothing', 'always'))
    (answer, ) = nothing['answers']
    assert answer['exists'] is False
    assert answer['existence'] == pytest.approx(0.07)
    assert nothing['existence_threshold'] == 0.5
    assert not cv2.imread(
        str(tmp_path / 'nothing' / answer['mask_file'])).any()
    (answer, ) = always['answers']
    assert list(answer) == ['expression', 'score', 'exists', 'existence',
                            'box', 'rle', 'mask_file']
    assert (answer['exists'], answer['existence']) == (True, None)
    assert always['existence_threshold'] is None
