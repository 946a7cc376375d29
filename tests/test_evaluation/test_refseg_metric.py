# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import inspect
import json
import multiprocessing
import os
import socket
import sys
from fractions import Fraction

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from pycocotools import mask as coco_mask

from cris.evaluation import RefSegMetric
from cris.evaluation.results import DEFAULTS, write_results_file


def sample(pred, target, prob=None, **metainfo):
    out = SegDataSample(metainfo=dict(dict(img_path='x.jpg'), **metainfo))
    out.pred_sem_seg = PixelData(data=torch.as_tensor(pred))
    out.gt_sem_seg = PixelData(data=torch.as_tensor(target).float())
    if prob is not None:
        out.seg_logits = PixelData(data=torch.as_tensor(prob).float())
    return out


def scores(samples, **kwargs):
    evaluator = Evaluator([RefSegMetric(**kwargs)])
    evaluator.process(samples)
    return evaluator.evaluate(len(samples))


def row(intersection, pred_only, target_only, size=100):
    pred, target = np.zeros((2, 1, 1, size), bool)
    pred[..., :intersection + pred_only] = True
    target[..., :intersection] = True
    target[..., intersection + pred_only:][..., :target_only] = True
    return pred, target


def test_scores_of_the_official_code(golden):
    meta = json.loads((golden / 'prepost.json').read_text())
    arrays = np.load(golden / 'prepost.npz')
    samples = []
    for i, s in enumerate(meta['samples']):
        shape = (1, s['height'], s['width'])
        pred = np.unpackbits(arrays[f'{i}_pred'])[:np.prod(shape)]
        samples.append(
            sample(
                pred.reshape(shape).astype(bool),
                (arrays[f'{i}_gt'] > 0).reshape(shape)))
    out = scores(samples)
    for name in ('mIoU', 'oIoU', 'Pr@50', 'Pr@60', 'Pr@70', 'Pr@80', 'Pr@90'):
        assert out[name] == pytest.approx(meta[name], abs=1e-4), name
    assert out['n_expressions'] == 6


def test_by_hand():
    pairs = [row(50, 0, 50), row(6, 0, 4, 10), row(0, 5, 5), row(0, 0, 0, 7)]
    out = scores([sample(*pair) for pair in pairs])
    # IoU .5, .6, 0 and, with nothing in either, 0.
    assert out['mIoU'] == pytest.approx(100 * 1.1 / 4, abs=1e-3)
    assert out['oIoU'] == pytest.approx(100 * 56 / 120)
    assert out['Pr@50'] == pytest.approx(25)  # strictly above
    assert out['Pr@60'] == 0
    assert out['n_expressions'] == 4


def test_means_are_over_expressions_not_images():
    perfect, missed = row(10, 0, 0), row(0, 10, 10)
    three = [np.concatenate([m] * 3) for m in perfect]
    out = scores([sample(*three), sample(*missed)])
    assert out['mIoU'] == pytest.approx(75, abs=1e-4)
    assert out['Pr@90'] == 75


def test_prefix():
    assert 'refcoco/mIoU' in scores([sample(*row(1, 0, 0))], prefix='refcoco')


def test_shapes_must_agree():
    pred, target = row(1, 0, 0)
    with pytest.raises(ValueError, match='x.jpg differ in shape'):
        RefSegMetric().process({}, [sample(pred, target[..., 1:]).to_dict()])


@pytest.mark.parametrize('threshold, iou', [(None, 1.), (0.35, 0.5),
                                            (0.5, 0.), (0, 0.25)])
def test_threshold_cuts_the_probabilities_strictly_above(threshold, iou):
    target = np.array([[[1, 0, 0, 0]]])
    prob = [[[0.5, 0.4, 0.35, 0.01]]]
    out = scores([sample(target > 0, target, prob)], threshold=threshold)
    assert out['mIoU'] == pytest.approx(100 * iou, abs=1e-3)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_threshold_of_the_head_gives_the_same_scores(seed, threshold):
    rng = np.random.default_rng(seed)
    prob = torch.from_numpy(rng.random((3, 4, 5), np.float32))
    # A probability on the very threshold is where rounding would show.
    prob[0, 0, 0] = threshold
    samples = [sample(prob > threshold, rng.random((3, 4, 5)) > 0.5, prob)]
    assert scores(samples) == scores(samples, threshold=threshold)


def test_inclusive_counts_an_iou_of_exactly_x():
    pairs = [row(5, 0, 5, 10), row(7, 1, 2, 10), row(9, 1, 0, 10)]
    samples = [sample(*pair) for pair in pairs]
    levels = ('Pr@50', 'Pr@60', 'Pr@70', 'Pr@80', 'Pr@90')
    strict, inclusive = scores(samples), scores(samples, inclusive=True)
    assert [round(3 * strict[k] / 100, 6) for k in levels] == [2, 2, 1, 1, 0]
    assert [round(3 * inclusive[k] / 100, 6)
            for k in levels] == [3, 2, 2, 1, 1]
    assert strict['mIoU'] == inclusive['mIoU']


@settings(deadline=None, max_examples=50)
@given(st.lists(
    st.tuples(st.integers(0, 1000), st.integers(1, 1000)).filter(
        lambda pair: pair[0] <= pair[1]), min_size=1), st.booleans())
def test_precision_is_exact(counts, inclusive):
    """However many pixels an object has."""
    intersection, union = np.array(counts).T
    metric = RefSegMetric(inclusive=inclusive)
    out = metric.compute_metrics([
        dict(intersection=intersection, union=union, pred_area=union,
             gt_area=intersection)
    ])
    for tenths in range(5, 10):
        level = Fraction(tenths, 10)
        reached = [
            Fraction(i, u) > level or inclusive and Fraction(i, u) == level
            for i, u in counts
        ]
        assert out[f'Pr@{10 * tenths}'] == pytest.approx(
            100 * sum(reached) / len(reached))


def test_one_sentence_of_each_ref():
    target = np.ones((5, 1, 10), bool)
    pred = np.zeros_like(target)
    for k, right in enumerate((2, 4, 6, 8, 10)):
        pred[k, :, :right] = True
    samples = [
        sample(pred, target, ref_ids=[7, 7, 3, 7, 3]),
        sample(pred[:1], target[:1], ref_ids=[7])  # another picture's
    ]
    for sentences, ious in (('all', [.2, .4, .6, .8, 1, .2]),
                            ('first', [.2, .6, .2]), ('last', [.8, 1, .2])):
        out = scores(samples, sentences=sentences)
        assert out['n_expressions'] == len(ious), sentences
        assert out['mIoU'] == pytest.approx(100 * np.mean(ious), abs=1e-3)


@pytest.mark.parametrize('metainfo', [{}, dict(ref_ids=[1, 2])])
def test_one_sentence_needs_the_ref_ids(metainfo):
    with pytest.raises(ValueError, match='ref_ids .* 1 expressions of x.jpg'):
        scores([sample(*row(1, 0, 0), **metainfo)], sentences='first')


def test_counts_at_another_size():
    # 2 rows x 5 columns -> 4 x 2: rows 0 0 1 1, columns 1 3.
    pred = np.array([[[0, 1, 0, 0, 0], [1, 1, 1, 0, 1]]]) > 0
    target = np.array([[[1, 1, 1, 1, 1], [0, 1, 0, 1, 0]]]) > 0
    small = sample(pred, target)
    out = scores([small], gt_size=(4, 2))
    assert out['mIoU'] == pytest.approx(50, abs=1e-3)  # 4 of 8
    assert scores([small])['mIoU'] == pytest.approx(20, abs=1e-3)
    # Every picture has the same weight in oIoU then: 4 + 8 of 8 + 8.
    large = sample(*np.ones((2, 1, 10, 10), bool))
    out = scores([small, large], gt_size=[4, 2])
    assert out['oIoU'] == pytest.approx(75)
    assert scores([small, large])['oIoU'] == pytest.approx(100 * 102 / 110)


@pytest.mark.parametrize('size', [(480, 480), (7, 3), (31, 50), (13, 17)])
def test_resizing_takes_the_pixel_that_the_centre_falls_on(size):
    pred = np.random.default_rng(0).random((2, 13, 17)) > 0.5
    expected = np.zeros((2, *size), bool)
    for i, j in np.ndindex(size):
        y = Fraction(2 * i + 1, 2) * Fraction(13, size[0])
        x = Fraction(2 * j + 1, 2) * Fraction(17, size[1])
        expected[:, i, j] = pred[:, int(y), int(x)]
    ones = np.ones_like(expected)
    assert scores([sample(pred, pred > -1)], gt_size=size) == scores(
        [sample(expected, ones)])


def test_empty_union():
    samples = [sample(*row(0, 0, 0)), sample(*row(0, 1, 0))]
    assert scores(samples)['mIoU'] == 0
    for inclusive in (False, True):
        out = scores(samples, empty_union=1.0, inclusive=inclusive)
        assert out['mIoU'] == out['Pr@90'] == 50
        assert out['oIoU'] == 0


def test_generalized_scores():
    samples = [
        sample(*row(6, 0, 4)),  # found
        sample(*row(0, 0, 10)),  # wrongly empty
        sample(*row(0, 0, 0)),  # rightly empty
        sample(*row(0, 20, 0)),  # wrongly not empty
        sample(*row(0, 5, 0))  # wrongly not empty
    ]
    out = scores(samples, generalized=True)
    assert out['gIoU'] == pytest.approx(100 * (0.6 + 1) / 5)
    assert out['cIoU'] == out['oIoU'] == pytest.approx(100 * 6 / 45)
    assert out['N-acc'] == pytest.approx(100 / 3)
    assert out['T-acc'] == 50
    assert out['mIoU'] == pytest.approx(12, abs=1e-3)
    assert 'N-acc' not in scores(samples[:2], generalized=True)
    assert 'T-acc' not in scores(samples[2:], generalized=True)
    assert not {'gIoU', 'cIoU', 'N-acc', 'T-acc'} & scores(samples).keys()


@pytest.mark.parametrize('options, message', [
    (dict(threshold=1.5), 'threshold=1.5 must be a number in'),
    (dict(threshold='0.5'), "threshold='0.5' must be a number in"),
    (dict(empty_union=-1), 'empty_union=-1 must be a number in'),
    (dict(sentences='second'), "sentences='second' must be 'all'"),
    (dict(gt_size=480), r'gt_size=480 must be \(height, width\)'),
    (dict(gt_size=(480, 0)), r'gt_size=\(480, 0\) must be'),
    (dict(out_file='x.csv'), 'x.csv is not a name .* .json or .parquet'),
])
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        RefSegMetric(**options)


def test_threshold_needs_probabilities():
    with pytest.raises(ValueError, match='x.jpg has no seg_logits'):
        scores([sample(*row(1, 0, 0))], threshold=0.5)


def results(path, **kwargs):
    target = np.zeros((3, 2, 10), bool)
    target[:, :, :4] = True
    prob = np.full(target.shape, 0.25)
    prob[0, 0, :2], prob[0, 0, 2:4] = 0.75, 0.5
    prob[1, 0, 9] = 0.375
    prob[2] = 1.25
    metainfo = dict(
        img_path='a/b.jpg',
        img_id=5,
        ref_ids=[1, 1, 2],
        sent_ids=[10, 11, 12],
        expressions=['left', 'très "à gauche"', 'top'])
    scores([
        sample(prob > 0.4, target, prob, **metainfo),
        sample(*row(0, 0, 0)),
    ], out_file=str(path), **kwargs)
    return path


def rle(*shape, at=()):
    """Of a mask with these pixels."""
    mask = np.zeros(shape, np.uint8, order='F')
    for where in at:
        mask[where] = 1
    return coco_mask.encode(mask)['counts'].decode()


RECORD = dict(
    img_path='a/b.jpg', img_id=5, ref_id=1, sent_id=10, expression='left',
    height=2, width=10, intersection=4, union=8, pred_area=4, gt_area=8,
    iou=pytest.approx(0.5), score=0.625,
    pred_rle=rle(2, 10, at=[np.s_[0, :4]]),
    gt_rle=rle(2, 10, at=[np.s_[:, :4]]))
RECORDS = [
    RECORD,
    dict(
        RECORD, sent_id=11, expression='très "à gauche"', intersection=0,
        pred_area=0, iou=0, score=0.375, pred_rle=rle(2, 10)),
    dict(
        RECORD, ref_id=2, sent_id=12, expression='top', intersection=8,
        union=20, pred_area=20, iou=pytest.approx(0.4), score=1,
        pred_rle=rle(2, 10, at=[np.s_[:]])),
    dict(
        RECORD, img_path='x.jpg', img_id=None, ref_id=None, sent_id=None,
        expression=None, height=1, width=100, intersection=0, union=0,
        pred_area=0, gt_area=0, iou=0, score=None, pred_rle=rle(1, 100),
        gt_rle=rle(1, 100))
]


def test_results_file(tmp_path):
    path = results(tmp_path / 'new' / 'results.json')
    records = json.loads(path.read_text())
    assert records == RECORDS
    assert list(records[0]) == list(RECORD)


def test_results_file_follows_the_options(tmp_path):
    def of(**kwargs):
        path = results(tmp_path / 'results.json', **kwargs)
        return json.loads(path.read_text())

    assert of(empty_union=1.0)[3] == dict(RECORDS[3], iou=1, empty_union=1)
    # The size is the image's, the counts are those of the scores.
    assert of(gt_size=(2, 5))[0] == dict(
        RECORD, intersection=2, union=4, pred_area=2, gt_area=4,
        gt_size=[2, 5])
    assert of(inclusive=True)[0] == dict(RECORD, inclusive=True)


def test_results_file_of_one_sentence_of_each_ref(tmp_path):
    path = tmp_path / 'results.json'
    masks = np.ones((4, 1, 3), bool)
    scores([
        sample(
            masks, masks, ref_ids=[1, 2, 2, 1], sent_ids=list('abcd'),
            expressions=list('efgh'))
    ], sentences='last', out_file=str(path))
    records = json.loads(path.read_text())
    assert [(r['ref_id'], r['sent_id'], r['expression'])
            for r in records] == [(2, 'c', 'g'), (1, 'd', 'h')]


def test_results_file_is_a_table(tmp_path):
    table = pandas.read_parquet(
        results(tmp_path / 'new' / 'results.parquet'))
    assert list(table.columns) == list(RECORD)
    records = json.loads(results(tmp_path / 'results.json').read_text())
    expected = pandas.DataFrame(records)
    pandas.testing.assert_frame_equal(table, expected)


def test_a_table_needs_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pandas', None)  # import fails
    with pytest.raises(ImportError, match='x.parquet .*pip install pandas '
                       'pyarrow'):
        RefSegMetric(out_file='x.parquet')


def many_samples(count):
    rng = np.random.default_rng(0)
    samples = []
    for i, k in enumerate(rng.integers(1, 5, count)):
        pred, target = rng.random((2, k, 9, 11)) > rng.random((1, k, 1, 1))
        samples.append(
            sample(
                pred,
                target,
                img_path=f'{i}.jpg',
                img_id=i,
                ref_ids=[i] * k,
                sent_ids=list(range(k)),
                expressions=[f'{i} {j}' for j in range(k)]))
    return samples


def _rank(rank, world_size, port, count, out_file, queue):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.distributed.init_process_group(
        'gloo', rank=rank, world_size=world_size)
    samples = many_samples(count)
    evaluator = Evaluator([RefSegMetric(out_file=out_file)])
    for i in DefaultSampler(samples, shuffle=False):
        evaluator.process([samples[i]])
    out = evaluator.evaluate(count)
    queue.put((rank, out))
    torch.distributed.destroy_process_group()


def test_the_results_file_knows_every_option():
    parameters = inspect.signature(RefSegMetric).parameters
    options = {
        name: parameter.default for name, parameter in parameters.items()
        if name not in ('collect_device', 'prefix', 'out_file')
    }
    assert options == DEFAULTS


def test_an_option_unknown_to_the_results_file_is_written(tmp_path):
    path = tmp_path / 'results.json'
    described = dict(score=None, pred_rle='', gt_rle='')
    write_results_file([described], {}, np.ones(1), dict(DEFAULTS, new=1),
                       str(path))
    (record, ) = json.loads(path.read_text())
    assert record['new'] == 1 and not DEFAULTS.keys() & record


@pytest.mark.parametrize('world_size', [2, 3])
def test_several_ranks_report_the_same(world_size, tmp_path):
    count = 7  # neither 2 nor 3 divides it: the sampler repeats samples
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context('forkserver')  # conftest's
    queue = context.Queue()
    ranks = [
        context.Process(
            target=_rank,
            args=(rank, world_size, port, count, str(tmp_path / 'many.json'),
                  queue)) for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    reported = dict(queue.get(timeout=300) for _ in ranks)
    for rank in ranks:
        rank.join(30)
    one = tmp_path / 'one.json'
    assert reported[0] == scores(many_samples(count), out_file=str(one))
    assert (tmp_path / 'many.json').read_bytes() == one.read_bytes()
    names = [r['img_path'] for r in json.loads(one.read_text())]
    assert list(dict.fromkeys(names)) == [f'{i}.jpg' for i in range(count)]
    assert names == sorted(names)
