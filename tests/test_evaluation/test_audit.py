# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData
from mmseg.registry import METRICS
from mmseg.structures import SegDataSample

from cris.evaluation import add_audit, audit_table
from cris.evaluation.conventions import CONVENTIONS, find_metric

OWN = dict(type='RefSegMetric')


def sample(prob, target, ref_ids):
    out = SegDataSample(metainfo=dict(img_path='x.jpg', ref_ids=ref_ids))
    out.seg_logits = PixelData(data=torch.as_tensor(prob).float())
    out.pred_sem_seg = PixelData(data=out.seg_logits.data > 0.35)
    out.gt_sem_seg = PixelData(data=torch.as_tensor(target).float())
    return out


def scores(samples, evaluator=OWN):
    if isinstance(evaluator, dict):
        evaluator = [evaluator]
    evaluator = Evaluator([METRICS.build(metric) for metric in evaluator])
    evaluator.process(samples)
    return evaluator.evaluate(len(samples))


def by_hand():
    """One ref with three sentences, one with none to find, on 1 x 10."""
    target = np.zeros((3, 1, 10))
    target[..., :8] = 1
    prob = np.zeros((3, 1, 10))
    prob[0, 0, :4] = 0.9  # I 4, U 8: an IoU of exactly 0.5
    prob[1, 0, :8] = 0.4  # I 8, U 8; nothing above 0.5
    prob[2, 0, :6] = 0.9  # I 6, U 8
    nothing = np.zeros((1, 1, 10))
    return [
        sample(prob, target, [1, 1, 1]),
        sample(nothing, nothing, [2]),
    ]


def test_each_convention_by_hand():
    audited = scores(by_hand(), add_audit(OWN))
    official = [.5, 1, .75, 0]
    # mIoU of these IoU, oIoU, Pr@50, Pr@90 and the number of expressions.
    expected = {
        'official-test': (official, 18 / 24, 2 / 4, 1 / 4, 4),
        'official-val': ([.5, 0], 4 / 8, 0, 0, 2),
        'last-sentence': ([.75, 0], 6 / 8, 1 / 2, 0, 2),
        'threshold-0.5': ([.5, 0, .75, 0], 10 / 24, 1 / 4, 0, 4),
        'inclusive': (official, 18 / 24, 3 / 4, 1 / 4, 4),
        '480x480': (official, 18 / 24, 2 / 4, 1 / 4, 4),
        'empty-union-1': ([.5, 1, .75, 1], 18 / 24, 3 / 4, 2 / 4, 4),
        '480x480-0.5-inclusive': ([.5, 0, .75, 0], 10 / 24, 2 / 4, 0, 4)
    }
    assert list(expected) == [c.name for c in CONVENTIONS]
    for name, (ious, overall, pr50, pr90, count) in expected.items():
        for key, value in (('mIoU', np.mean(ious)), ('oIoU', overall),
                           ('Pr@50', pr50), ('Pr@90', pr90)):
            assert audited[f'audit/{name}/{key}'] == pytest.approx(
                100 * value, abs=1e-3), (name, key)
        assert audited[f'audit/{name}/n_expressions'] == count


def test_480x480_weighs_pictures_alike():
    one = np.ones((1, 10, 10))
    samples = [sample(one, one, [1]), sample(one[:, :1] * 0, one[:, :1], [2])]
    audited = scores(samples, add_audit(OWN))
    assert audited['audit/official-test/oIoU'] == pytest.approx(100 / 1.1)
    for name in ('480x480', '480x480-0.5-inclusive'):
        assert audited[f'audit/{name}/oIoU'] == pytest.approx(50)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_the_official_row_is_the_plain_scores(seed):
    rng = np.random.default_rng(seed)
    samples = [
        sample(
            rng.random((k, 5, 7)), rng.random((k, 5, 7)) > 0.5,
            rng.integers(0, 3, k).tolist()) for k in rng.integers(1, 5, 3)
    ]
    plain, audited = scores(samples), scores(samples, add_audit(OWN))
    start = 'audit/official-test/'
    assert plain == {
        k[len(start):]: v
        for k, v in audited.items() if k.startswith(start)
    }
    assert audited.items() >= plain.items()


def test_only_what_is_no_convention_is_kept_of_the_config():
    own = dict(
        OWN, sentences='last', threshold=0.9, prefix='mine', out_file='x.json',
        collect_device='gpu', generalized=True)
    other = dict(type='DumpResults', out_file_path='x.pkl')
    before = [other, own]
    evaluator = add_audit(before)
    assert evaluator[:2] == before == [other, own]
    assert len(evaluator) == 2 + len(CONVENTIONS)
    official, first = evaluator[2:4]
    assert official == dict(
        OWN, prefix='audit/official-test', collect_device='gpu',
        generalized=True)
    assert first == dict(
        official, prefix='audit/official-val', sentences='first')


def test_an_evaluator_without_the_metric():
    with pytest.raises(ValueError, match='no RefSegMetric.*IoUMetric'):
        add_audit(dict(type='IoUMetric'))
    with pytest.raises(ValueError, match='no RefSegMetric'):
        find_metric([])


def test_table_is_aligned():
    table = audit_table(scores(by_hand(), add_audit(OWN)))
    head, *lines = table.splitlines()
    assert head.split() == [
        'mIoU', 'oIoU', 'Pr@50', 'Pr@60', 'Pr@70', 'Pr@80', 'Pr@90', 'n'
    ]
    count = len(CONVENTIONS)
    assert [line.split()[0] for line in lines[:count]
            ] == [c.name for c in CONVENTIONS]
    assert {len(line) for line in lines[:count]} == {len(head)}
    assert lines[0].split()[1:] == [
        '56.25', '75.00', '50.00', '50.00', '50.00', '25.00', '25.00', '4'
    ]
    assert lines[1].split()[-1] == '2'
    assert lines[count] == ''
    assert 'first sentence of each ref' in lines[count + 2]


def test_table_of_generalized_scores():
    target = np.array([[[1, 1, 1, 1]], [[0, 0, 0, 0]]])
    samples = [sample(target * [1, 1, 1, 0], target, [7, 7])]
    evaluator = add_audit(dict(OWN, generalized=True))
    lines = audit_table(scores(samples, evaluator)).splitlines()
    head, official_test, official_val = (line.split() for line in lines[:3])
    official_test = dict(zip(head, official_test[1:], strict=True))
    assert official_test['gIoU'] == '87.50'
    assert official_test['N-acc'] == official_test['T-acc'] == '100.00'
    official_val = dict(zip(head, official_val[1:], strict=True))
    assert official_val['gIoU'] == '75.00'
    assert official_val['N-acc'] == '-'  # its sentence has a target
