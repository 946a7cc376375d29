# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import numpy as np
import pytest
from samples import evaluate, from_prob

from cris.evaluation import add_audit, audit_table
from cris.evaluation.conventions import CONVENTIONS, find_metric

OWN = dict(type='RefSegMetric')
# mIoU of these IoU, oIoU, Pr@50, Pr@90 and the number of expressions.
OFFICIAL = [.5, 1, .75, 0]
EXPECTED = {
    'official-test': (OFFICIAL, 18 / 24, 2 / 4, 1 / 4, 4),
    'official-val': ([.5, 0], 4 / 8, 0, 0, 2),
    'last-sentence': ([.75, 0], 6 / 8, 1 / 2, 0, 2),
    'threshold-0.5': ([.5, 0, .75, 0], 10 / 24, 1 / 4, 0, 4),
    'inclusive': (OFFICIAL, 18 / 24, 3 / 4, 1 / 4, 4),
    '480x480': (OFFICIAL, 18 / 24, 2 / 4, 1 / 4, 4),
    'empty-union-1': ([.5, 1, .75, 1], 18 / 24, 3 / 4, 2 / 4, 4),
    '480x480-0.5-inclusive': ([.5, 0, .75, 0], 10 / 24, 2 / 4, 0, 4)
}


def test_each_convention_by_hand():
    """One ref with three sentences, one with none to find, on 1 x 10."""
    target, prob = np.zeros((2, 3, 1, 10))
    target[..., :8] = 1
    prob[0, 0, :4] = 0.9  # I 4, U 8: an IoU of exactly 0.5
    prob[1, 0, :8] = 0.4  # I 8, U 8; nothing above 0.5
    prob[2, 0, :6] = 0.9  # I 6, U 8
    nothing = np.zeros((1, 1, 10))
    audited = evaluate(
        [from_prob(prob, target, [1, 1, 1]), from_prob(nothing, nothing, [2])],
        add_audit(OWN))
    assert list(EXPECTED) == list(CONVENTIONS)
    for name, (ious, overall, pr50, pr90, count) in EXPECTED.items():
        for key, value in (('mIoU', np.mean(ious)), ('oIoU', overall),
                           ('Pr@50', pr50), ('Pr@90', pr90)):
            assert audited[f'audit/{name}/{key}'] == pytest.approx(
                100 * value, abs=1e-3), (name, key)
        assert audited[f'audit/{name}/n_expressions'] == count
    for key in ('mIoU', 'oIoU', 'Pr@50', 'Pr@90', 'n_expressions'):
        assert audited[key] == audited[f'audit/official-test/{key}']

    head, *lines = audit_table(audited).splitlines()
    assert head.split() == [
        'mIoU', 'oIoU', 'Pr@50', 'Pr@60', 'Pr@70', 'Pr@80', 'Pr@90', 'n']
    count = len(CONVENTIONS)
    assert [line.split()[0] for line in lines[:count]] == list(CONVENTIONS)
    assert {len(line) for line in lines[:count]} == {len(head)}
    assert lines[0].split()[1:] == [
        '56.25', '75.00', '50.00', '50.00', '50.00', '25.00', '25.00', '4']
    assert lines[1].split()[-1] == '2'
    assert lines[count] == ''
    assert 'first sentence of each ref' in lines[count + 2]


def test_480x480_weighs_pictures_alike():
    one = np.ones((1, 10, 10))
    audited = evaluate(
        [from_prob(one, one, [1]), from_prob(one[:, :1] * 0, one[:, :1], [2])],
        add_audit(OWN))
    assert audited['audit/official-test/oIoU'] == pytest.approx(100 / 1.1)
    for name in ('480x480', '480x480-0.5-inclusive'):
        assert audited[f'audit/{name}/oIoU'] == pytest.approx(50)


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


def test_a_convention_without_a_score():
    head, first, second, *_ = audit_table({
        'audit/official-test/N-acc': 50.0, 'audit/official-val/gIoU': 7.0,
        'mIoU': 1.0}).splitlines()
    assert head.split() == ['N-acc', 'gIoU']
    assert first.split() == ['official-test', '50.00', '-']
    assert second.split() == ['official-val', '-', '7.00']
