# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import inspect
import json
import multiprocessing
import os
import socket
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import Evaluator
from pyarrow import parquet
from pycocotools import mask as coco_mask
from samples import evaluate, make_sample

from cris.evaluation import RefSegMetric, refseg_metric
from cris.evaluation.results import DEFAULTS


def row(intersection, pred_only, target_only, size=100, **metainfo):
    """A sample of one row of pixels."""
    pred, target = np.zeros((2, 1, 1, size), bool)
    pred[..., :intersection + pred_only] = True
    target[..., :intersection] = True
    target[..., intersection + pred_only:][..., :target_only] = True
    return make_sample(pred, target, **metainfo)


def test_scores_of_the_official_code(golden):
    meta = json.loads((golden / 'prepost.json').read_text())
    arrays = np.load(golden / 'prepost.npz')
    samples = []
    for i, s in enumerate(meta['samples']):
        shape = (1, s['height'], s['width'])
        pred = np.unpackbits(arrays[f'{i}_pred'])[:np.prod(shape)]
        samples.append(make_sample(pred.reshape(shape).astype(bool),
                                   (arrays[f'{i}_gt'] > 0).reshape(shape)))
    out = evaluate(samples)
    for name in ('mIoU', 'oIoU', 'Pr@50', 'Pr@60', 'Pr@70', 'Pr@80', 'Pr@90'):
        assert out[name] == pytest.approx(meta[name], abs=1e-4), name
    assert out['n_expressions'] == 6


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_threshold_of_the_head_gives_the_same_scores(seed, threshold):
    rng = np.random.default_rng(seed)
    prob = torch.from_numpy(rng.random((3, 4, 5), np.float32))
    # A probability on the very threshold is where rounding would show.
    prob[0, 0, 0] = threshold
    target = rng.random((3, 4, 5)) > 0.5
    samples = [make_sample(prob > threshold, target, prob)]
    assert evaluate(samples) == evaluate(samples, threshold=threshold)


@settings(deadline=None, max_examples=50)
@given(st.lists(
    st.tuples(st.integers(0, 1000), st.integers(1, 1000)).filter(
        lambda pair: pair[0] <= pair[1]), min_size=1))
@example([(5, 10), (6, 10), (7, 10), (8, 10), (9, 10)])
def test_precision_is_exact(counts):
    """However many pixels an object has."""
    samples = [row(i, u - i, 0, u) for i, u in counts]
    strict, inclusive = evaluate(samples), evaluate(samples, inclusive=True)
    ious = [Fraction(i, u) for i, u in counts]
    for tenths in range(5, 10):
        level, name = Fraction(tenths, 10), f'Pr@{10 * tenths}'
        assert strict[name] == pytest.approx(
            100 * np.mean([iou > level for iou in ious]))
        assert inclusive[name] == pytest.approx(
            100 * np.mean([iou >= level for iou in ious]))
    assert strict['mIoU'] == inclusive['mIoU'] == pytest.approx(
        100 * float(sum(ious)) / len(ious), abs=1e-3)


def test_one_sentence_of_each_ref(tmp_path):
    target = np.ones((5, 1, 10), bool)
    pred = np.arange(10) < np.array([2, 4, 6, 8, 10])[:, None, None]
    samples = [
        make_sample(pred, target, ref_ids=[7, 7, 3, 7, 3], sent_ids='abcde',
                    expressions='fghij'),
        make_sample(pred[:1], target[:1], ref_ids=[7], sent_ids='k',
                    expressions='l')]  # another picture's
    out_file = tmp_path / 'results.json'
    for sentences, ious, found in (
            ('all', [.2, .4, .6, .8, 1, .2], 'af bg ch di ej kl'),
            ('first', [.2, .6, .2], 'af ch kl'),
            ('last', [.8, 1, .2], 'di ej kl')):
        out = evaluate(samples, sentences=sentences, out_file=str(out_file))
        assert out['n_expressions'] == len(ious), sentences
        assert out['mIoU'] == pytest.approx(100 * np.mean(ious), abs=1e-3)
        records = json.loads(out_file.read_text())
        assert [r['sent_id'] + r['expression']
                for r in records] == found.split()
        assert [r['iou'] for r in records] == pytest.approx(ious, abs=1e-5)


@pytest.mark.parametrize('size', [(480, 480), [7, 3], (31, 50), (13, 17)])
def test_resizing_takes_the_pixel_that_the_centre_falls_on(size):
    pred, target = np.random.default_rng(0).random((2, 2, 13, 17)) > 0.5
    rows, columns = (
        [int(Fraction(2 * i + 1, 2) * Fraction(old, new)) for i in range(new)]
        for new, old in zip(size, (13, 17), strict=True))
    resized = (mask[:, rows][..., columns] for mask in (pred, target))
    assert evaluate([make_sample(pred, target)], gt_size=size) == evaluate(
        [make_sample(*resized)])


def test_empty_union():
    samples = [row(0, 0, 0), row(0, 1, 0)]
    assert evaluate(samples)['mIoU'] == 0
    for inclusive in (False, True):
        out = evaluate(samples, empty_union=1.0, inclusive=inclusive)
        assert out['mIoU'] == out['Pr@90'] == 50
        assert out['oIoU'] == 0


def test_generalized_scores():
    # Found, wrongly empty, rightly empty, and twice wrongly not empty.
    samples = [row(6, 0, 4), row(0, 0, 10), row(0, 0, 0), row(0, 20, 0),
               row(0, 5, 0)]
    out = evaluate(samples, generalized=True)
    assert out['gIoU'] == pytest.approx(100 * (0.6 + 1) / 5)
    assert out['cIoU'] == out['oIoU'] == pytest.approx(100 * 6 / 45)
    assert out['N-acc'] == pytest.approx(100 / 3)
    assert out['T-acc'] == 50
    # As in ReLA's evaluator, over those with a target, and with >=.
    assert out['mIoU'] == pytest.approx(30, abs=1e-3)
    assert out['Pr@60'] == 50 and out['Pr@70'] == 0
    assert 'N-acc' not in evaluate(samples[:2], generalized=True)
    assert not {'T-acc', 'mIoU', 'Pr@50'} & evaluate(
        samples[2:], generalized=True).keys()
    assert not {'gIoU', 'cIoU', 'N-acc', 'T-acc'} & evaluate(samples).keys()
    assert evaluate(samples[2:3], generalized=True) == {
        'gIoU': 100, 'N-acc': 100, 'n_expressions': 1}


def test_the_log_says_what_is_undefined(monkeypatch):
    said = []
    monkeypatch.setattr(refseg_metric, 'print_log',
                        lambda message, logger: said.append(message))
    evaluate([row(0, 0, 0), row(6, 0, 4)], generalized=True)
    evaluate([row(0, 0, 0)])
    assert not said
    evaluate([row(6, 0, 4)], generalized=True)
    evaluate([row(0, 0, 0)], generalized=True)
    assert [line.rpartition(': ')[2] for line in said] == [
        'N-acc', 'mIoU, cIoU, T-acc']


def test_scores_of_each_kind(tmp_path):
    samples = [row(6, 0, 4, kinds=['one']), row(0, 0, 10, kinds=['one']),
               row(0, 0, 0, kinds=['none']), row(0, 20, 0, kinds=['none']),
               row(5, 0, 5, kinds=['many'])]
    out = evaluate(samples, generalized=True)
    assert {k: v for k, v in out.items() if '/' in k} == {
        'one/gIoU': pytest.approx(30), 'one/T-acc': 50,
        'one/n_expressions': 2, 'none/gIoU': 50, 'none/N-acc': 50,
        'none/n_expressions': 2, 'many/gIoU': 50, 'many/T-acc': 100,
        'many/n_expressions': 1}
    assert out['gIoU'] == pytest.approx(100 * (0.6 + 0 + 1 + 0 + 0.5) / 5)
    # A sentence takes its kind along when others are left out.
    pred = np.ones((2, 1, 4), bool)
    both = make_sample(pred, pred & [[[1]], [[0]]], ref_ids=[3, 3],
                       kinds=['one', 'none'])
    out = evaluate([both], generalized=True, sentences='last')
    assert out['none/N-acc'] == 0 and 'one/gIoU' not in out
    # Not in a set that is not generalised, nor in one that is mixed.
    mixed = [*samples, row(1, 0, 0)]
    for kept in (evaluate(samples), evaluate(mixed, generalized=True)):
        assert not any('/' in key for key in kept)
    path = tmp_path / 'results.json'
    evaluate(samples, out_file=str(path))
    assert [r['kind'] for r in json.loads(path.read_text())] == [
        'one', 'one', 'none', 'none', 'many']


def test_abstaining_does_not_depend_on_the_threshold_of_pixels(tmp_path):
    prob = np.full((3, 1, 4), 0.6)
    sample = make_sample(prob > 0.5, prob > 0.5, prob,
                         existence_threshold=0.4)
    sample.existence = torch.tensor([0.39, 0.4, 0.9])
    sample.pred_sem_seg.data[0] = False  # as CRIS.predict does
    path = tmp_path / 'results.json'
    for threshold, answered in ((None, 2), (0.35, 2), (0.7, 0)):
        out = evaluate([sample], threshold=threshold, generalized=True,
                       out_file=str(path))
        assert out['T-acc'] == pytest.approx(100 * answered / 3)
        records = json.loads(path.read_text())
        assert [r['existence'] for r in records] == pytest.approx(
            [0.39, 0.4, 0.9])


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


@pytest.mark.parametrize('options, sample, message', [
    ({}, make_sample(np.ones((1, 2, 3)), np.ones((1, 2, 4))),
     'x.jpg differ in shape'),
    (dict(threshold=0.5), row(1, 0, 0), 'x.jpg has no seg_logits'),
    (dict(sentences='first'), row(1, 0, 0),
     'ref_ids .* 1 expressions of x.jpg'),
    (dict(sentences='first'), row(1, 0, 0, ref_ids=[1, 2]),
     'ref_ids .* 1 expressions of x.jpg'),
])
def test_samples_are_checked(options, sample, message):
    with pytest.raises(ValueError, match=message):
        evaluate([sample], **options)


def results(path, **options):
    """Records of four expressions."""
    target = np.zeros((3, 2, 10), bool)
    target[:, :, :4] = True
    prob = np.full(target.shape, 0.25)
    prob[0, 0, :2], prob[0, 0, 2:4] = 0.75, 0.5
    prob[1, 0, 9] = 0.375
    prob[2] = 1.25
    sample = make_sample(
        prob > 0.4, target, prob, img_path='a/b.jpg', img_id=5,
        ref_ids=[1, 1, 2], sent_ids=[10, 11, 12],
        expressions=['left', 'très "à gauche"', 'top'])
    evaluate([sample, row(0, 0, 0)], out_file=str(path), **options)
    if path.suffix == '.json':
        return json.loads(path.read_text())
    return parquet.read_table(path).to_pylist()


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
    dict(RECORD, sent_id=11, expression='très "à gauche"', intersection=0,
         pred_area=0, iou=0, score=0.375, pred_rle=rle(2, 10)),
    dict(RECORD, ref_id=2, sent_id=12, expression='top', intersection=8,
         union=20, pred_area=20, iou=pytest.approx(0.4), score=1,
         pred_rle=rle(2, 10, at=[np.s_[:]])),
    dict(RECORD, img_path='x.jpg', img_id=None, ref_id=None, sent_id=None,
         expression=None, height=1, width=100, intersection=0, union=0,
         pred_area=0, gt_area=0, iou=0, score=None, pred_rle=rle(1, 100),
         gt_rle=rle(1, 100))]


@pytest.mark.parametrize('suffix', ['json', 'parquet'])
def test_results_file(tmp_path, suffix):
    records = results(tmp_path / f'new/results.{suffix}')
    assert records == RECORDS
    assert list(records[0]) == list(RECORD)


def test_results_file_follows_the_options(tmp_path):
    path = tmp_path / 'results.json'
    assert results(path, empty_union=1.0)[3] == dict(
        RECORDS[3], iou=1, empty_union=1)
    # The size is the image's, the counts are those of the scores.
    assert results(path, gt_size=(2, 5))[0] == dict(
        RECORD, intersection=2, union=4, pred_area=2, gt_area=4,
        gt_size=[2, 5])
    assert results(path, inclusive=True)[0] == dict(RECORD, inclusive=True)
    parameters = inspect.signature(RefSegMetric).parameters
    assert DEFAULTS == {
        name: parameter.default for name, parameter in parameters.items()
        if name not in ('collect_device', 'prefix', 'out_file')}


def test_a_table_needs_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)  # import fails
    with pytest.raises(ImportError, match='x.parquet .*pip install pyarrow'):
        RefSegMetric(out_file='x.parquet')


def many_samples(count):
    rng = np.random.default_rng(0)
    samples = []
    for i, k in enumerate(rng.integers(1, 5, count)):
        pred, target = rng.random((2, k, 9, 11)) > rng.random((1, k, 1, 1))
        samples.append(make_sample(
            pred, target, img_path=f'{i}.jpg', img_id=i, ref_ids=[i] * k,
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
    queue.put((rank, evaluator.evaluate(count)))
    torch.distributed.destroy_process_group()


def test_several_ranks_report_the_same(tmp_path):
    world_size, count = 3, 7  # the sampler repeats two samples
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context('forkserver')  # conftest's
    queue = context.Queue()
    one, many = tmp_path / 'one.json', tmp_path / 'many.json'
    ranks = [
        context.Process(target=_rank, args=(
            rank, world_size, port, count, str(many), queue))
        for rank in range(world_size)]
    for rank in ranks:
        rank.start()
    reported = dict(queue.get(timeout=300) for _ in ranks)
    for rank in ranks:
        rank.join(30)
    assert reported[0] == evaluate(many_samples(count), out_file=str(one))
    assert many.read_bytes() == one.read_bytes()
    names = [r['img_path'] for r in json.loads(one.read_text())]
    assert list(dict.fromkeys(names)) == [f'{i}.jpg' for i in range(count)]
    assert names == sorted(names)
