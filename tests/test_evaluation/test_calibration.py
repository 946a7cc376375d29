# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Confidence against how often a model is right."""
import numpy as np
import pytest

from cris.evaluation.calibration import (
    abstain,
    choose_threshold,
    counts_of,
    fit_calibration,
    is_right,
    reliability,
    risk_coverage,
)
from cris.evaluation.confidence import answer_confidence

TARGET = dict(intersection=80, union=100, pred_area=90, gt_area=90)
NO_TARGET = dict(intersection=0, union=50, pred_area=50, gt_area=0)
EMPTY = dict(intersection=0, pred_area=0)


def records_of(*rows):
    return [dict(counts, existence=existence, existence_threshold=0.0,
                 score=0.9) for counts, existence in rows]


def arrays(records):
    return counts_of(records), np.array([r['existence'] for r in records])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_calibration_error_by_hand():
    found = reliability(np.array([.05, .05, .2, .21, .95, 1.]),
                        np.array([0, 1, 0, 1, 1, 0], bool))
    # Bins end at 1/15, 2/15, ...; 0.2 and 0.21 are in two of them.
    assert found.count.tolist() == [2, 1, 1, 2]
    assert found.confidence == pytest.approx([.05, .2, .21, .975])
    assert found.accuracy.tolist() == [.5, 0, 1, .5]
    assert found.ece == pytest.approx((2 * .45 + .2 + .79 + 2 * .475) / 6)
    sure = reliability(np.array([0., 1., 1.]), np.array([False, True, True]))
    assert sure.ece == 0 and sure.count.tolist() == [1, 2]


def test_calibrated_confidence_has_no_error_and_others_have():
    rng = np.random.default_rng(0)
    confidence = rng.random(30_000)
    right = rng.random(30_000) < confidence
    # 2000 in each bin: a standard error of at most 0.011.
    assert reliability(confidence, right).ece < 0.011
    assert reliability(confidence**3, right).ece == pytest.approx(
        0.25, abs=0.01)  # the integral of x - x**3


def test_what_is_right():
    counts = counts_of([
        TARGET, dict(TARGET, intersection=50), dict(TARGET, intersection=49),
        dict(TARGET, **EMPTY), NO_TARGET, dict(NO_TARGET, union=0, **EMPTY)])
    assert is_right(counts).tolist() == [
        True, True, False, False, False, True]


def test_risk_by_hand():
    coverage, risk = risk_coverage(
        np.array([.3, .9, .5, .5]), np.array([False, True, True, False]))
    assert coverage.tolist() == [.25, .75, 1]  # equal ones come together
    assert risk == pytest.approx([0, 1 / 3, 1 / 2])


def test_abstaining_empties_a_mask():
    counts = abstain(counts_of([TARGET, TARGET, NO_TARGET]),
                     np.array([False, True, True]))
    assert {name: n.tolist() for name, n in counts.items()} == dict(
        intersection=[80, 0, 0], union=[100, 90, 0], pred_area=[90, 0, 0],
        gt_area=[90, 90, 0])


def test_threshold_by_hand():
    records = records_of((TARGET, .9), (TARGET, .8), (TARGET, .4),
                         (NO_TARGET, .6), (NO_TARGET, .3), (NO_TARGET, .1))
    # Above 0.3 gIoU is 4.4 / 6; above 0.6 it is 4.6 / 6 with T-acc 2 / 3.
    assert .3 < choose_threshold(*arrays(records)) < .303
    assert .6 < choose_threshold(*arrays(records), min_t_acc=60) < .603
    # Above 0.8 it is lower again.
    assert .6 < choose_threshold(*arrays(records), min_t_acc=0) < .603


def test_a_rule_that_cannot_be_met_is_said():
    records = records_of(
        (TARGET, .9), (dict(TARGET, union=90, **EMPTY), .8), (NO_TARGET, .1))
    with pytest.raises(ValueError, match='T-acc is 50.00 if only empty .* 95'):
        choose_threshold(*arrays(records))
    for only, word in ((records[:2], 'all'), (records[2:], 'none')):
        with pytest.raises(ValueError, match=f'{word} of the . expressions '
                           'have a target'):
            choose_threshold(*arrays(only))


def overconfident(count, seed):
    """Records whose logits are three times what they should be."""
    rng = np.random.default_rng(seed)
    z, q = rng.normal(1, 1.5, count), rng.normal(.5, 1, count)
    target = rng.random(count) < sigmoid(z)
    good = rng.random(count) < sigmoid(q)
    return [
        dict(NO_TARGET if not t else dict(
            TARGET, intersection=80 if g else 20), existence=sigmoid(3 * zi),
            existence_threshold=0.0, score=sigmoid(3 * qi))
        for t, g, zi, qi in zip(target, good, z, q, strict=True)]


def test_overconfidence_is_mended_on_data_that_was_not_seen():
    calibration = fit_calibration(overconfident(6000, 1))
    for key in ('existence', 'mask'):
        assert calibration[key] == pytest.approx([1 / 3, 0], abs=.1)
    records = overconfident(6000, 2)
    threshold = calibration['existence_threshold']
    counts, existence = arrays(records)
    counts = abstain(counts, existence < threshold)
    score = np.array([r['score'] for r in records])
    answered, right = counts['pred_area'] > 0, is_right(counts)
    assert 0.05 < 1 - answered.mean() < 0.95
    raw, mended = (
        reliability(answer_confidence(existence, score, answered, c), right)
        for c in (None, calibration))
    assert raw.ece > .08 and mended.ece < .03
    # Each kind of answer is mended.
    for part in (answered, ~answered):
        assert reliability(
            answer_confidence(existence, score, answered, calibration)[part],
            right[part]).ece < .04


def test_confidence_by_hand():
    assert answer_confidence(.8, .5, [True, False]) == pytest.approx([.4, .2])
    calibration = dict(existence=[2., 0.], mask=[3., -1.])
    found = answer_confidence([.8, .8, 1.], [.9, .9, 1.],
                              [True, False, True], calibration)
    exists, good = sigmoid(2 * np.log(4)), sigmoid(3 * np.log(9) - 1)
    assert found[:2] == pytest.approx([exists * good, 1 - exists])
    assert .99 < found[2] <= 1


@pytest.mark.parametrize('change, message', [
    (dict(existence=None), 'the results have no existence'),
    (dict(score=None), 'the results have no score'),
    (dict(existence_threshold=.5), 'abstained .*existence_threshold=0'),
    (dict(TARGET), 'all of the 3 masks .* are right'),
])
def test_results_that_do_not_serve(change, message):
    records = records_of((TARGET, .9), (TARGET, .8), (dict(TARGET), .7),
                         (NO_TARGET, .1))
    records[2].update(change)
    with pytest.raises(ValueError, match=message):
        fit_calibration(records)
