# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Audit, results file and threshold sweep, as processes."""
import json
import os
import re

import cv2
import pytest
import torch
from conftest import CONFIG, REPO, ReferSet, options, run, tool
from mmengine.config import Config
from mmseg.registry import MODELS

from cris.evaluation.conventions import CONVENTIONS

SWEEP = 'analysis_tools/sweep_threshold.py'


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
    """A model whose probabilities lie around its threshold, and options."""
    root = tmp_path_factory.mktemp('untrained')
    data = ReferSet(root / 'refer').write()
    torch.manual_seed(3)  # spreads the probabilities
    model = MODELS.build(Config.fromfile(CONFIG).model)
    projection = model.decode_head.projector.kernel_proj
    with torch.no_grad():
        projection.weight *= 4
    checkpoint = root / 'random.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    # Two images.
    return checkpoint, [*options(data), 'val_dataloader.dataset.split=train',
                        'test_dataloader.dataset.split=train']


def run_test(untrained, root, *arguments, start=tool, cfg=()):
    """Log and scores of tools/test.py."""
    checkpoint, two_images = untrained
    out = root / 'scores.json'
    log = start('test.py', CONFIG, checkpoint, '--work-dir', root, '--out',
                out, *arguments, *two_images, *cfg)
    return log, json.loads(out.read_text())


@pytest.fixture(scope='module')
def audited(untrained, tmp_path_factory):
    root = tmp_path_factory.mktemp('audited')
    results = root / 'results.json'
    log, scores = run_test(untrained, root, '--audit', '--results', results)
    return log, scores, json.loads(results.read_text())


def table(log):
    """Rows by name, as numbers."""
    head, *lines = re.search(r'^ +mIoU .*(\n\S.*)*', log, re.M)[0].split('\n')
    return {
        name: dict(zip(head.split(), map(float, values), strict=True))
        for name, *values in map(str.split, lines)}


def test_audit_prints_what_it_writes(audited):
    log, scores, _ = audited
    rows = table(log)
    assert list(rows) == list(CONVENTIONS)
    for name, row in rows.items():
        for key, value in row.items():
            key = 'n_expressions' if key == 'n' else key
            assert value == pytest.approx(
                scores[f'audit/{name}/{key}'], abs=0.0051)
    assert [row['n'] for row in rows.values()] == [16, 4, 4] + 5 * [16]
    assert len({row['mIoU'] for row in rows.values()}) > 3


def test_plain_scores_are_without_the_audit_too(untrained, audited, tmp_path):
    _, scores, _ = audited
    log, plain = run_test(untrained, tmp_path)
    assert list(plain) == ['mIoU', 'oIoU', 'Pr@50', 'Pr@60', 'Pr@70', 'Pr@80',
                           'Pr@90', 'n_expressions']
    assert 0 < plain['mIoU'] < 100
    assert 'audit' not in log and 'official' not in log
    assert scores.items() >= plain.items()
    for key, value in plain.items():
        assert scores[f'audit/official-test/{key}'] == value


def test_results_add_up_to_the_scores(audited):
    _, scores, records = audited
    assert len(records) == 16
    assert 100 * sum(r['iou'] for r in records) / 16 == pytest.approx(
        scores['mIoU'])
    assert 100 * sum(r['intersection'] for r in records) / sum(
        r['union'] for r in records) == pytest.approx(scores['oIoU'])
    # The set's order: pictures 1 and 2, their refs, their sentences.
    assert [r['sent_id'] for r in records] == [
        10 * ref + j for ref in range(2, 6) for j in range(4)]
    first = records[0]
    assert first['img_path'].endswith('images/1.jpg')
    assert (first['img_id'], first['ref_id'], first['expression'],
            first['height'], first['width']) == (1, 2, 'thing 2 left', 80, 50)
    assert all(0 < r['score'] < 1 for r in records)


@pytest.mark.slow
def test_two_ranks_audit_the_same(untrained, audited, tmp_path):
    def start(_, config, checkpoint, *arguments):
        return run('bash', REPO / 'tools/dist_test.sh', config, checkpoint, 2,
                   *arguments, MASTER_PORT=str(29200 + os.getpid() % 300))

    _, scores, records = audited
    results = tmp_path / 'results.json'
    log, two = run_test(untrained, tmp_path, '--audit', '--results', results,
                        start=start)
    assert two == scores
    assert log.count(CONVENTIONS['official-test'][1]) == 1
    for one, other in zip(
            records, json.loads(results.read_text()), strict=True):
        # The pictures it shares a batch with change its last digits.
        assert other == dict(one, score=pytest.approx(one['score'], abs=1e-5))


def test_a_results_file_that_cannot_be_written(untrained, tmp_path):
    checkpoint, two_images = untrained
    log = tool('test.py', CONFIG, checkpoint, '--results',
               tmp_path / 'results.csv', '--work-dir', tmp_path, *two_images,
               ok=False)
    assert re.search('error: .*results.csv is not a name', log)
    assert 'Traceback' not in log
    assert not list(tmp_path.iterdir())


def test_sweep(untrained, audited, tmp_path):
    checkpoint, two_images = untrained
    _, scores, _ = audited
    plot, out = tmp_path / 'new/sweep.png', tmp_path / 'sweep.json'
    log = tool(SWEEP, CONFIG, checkpoint, '--out', plot, '--json', out,
               *two_images)
    sweep = json.loads(out.read_text())
    rows = {row['threshold']: row for row in sweep['thresholds']}
    assert list(rows) == [round(0.05 * i, 2) for i in range(1, 20)]
    assert sweep['config_threshold'] == 0.5
    for name in ('official-test', 'threshold-0.5'):
        for key in ('mIoU', 'oIoU', 'Pr@50'):
            assert rows[0.5][key] == scores[f'audit/{name}/{key}']
    best = max(rows, key=lambda t: rows[t]['mIoU'])
    assert sweep['best_threshold'] == best
    assert re.findall(r'^ +([\d.]+) .*best mIoU$', log, re.M) == [f'{best:g}']
    assert re.findall(r'^ +([\d.]+) .*config', log, re.M) == ['0.5']
    assert cv2.imread(str(plot)).std() > 5


def test_sweep_has_the_configs_threshold_and_options(untrained, tmp_path):
    checkpoint, two_images = untrained
    out = tmp_path / 'sweep.json'
    log = tool(SWEEP, CONFIG, checkpoint, '--thresholds', 0.2, 0.4, 0.1,
               '--json', out, *two_images, 'model.decode_head.threshold=0.33',
               'val_evaluator.sentences=first')
    sweep = json.loads(out.read_text())
    assert [row['threshold'] for row in sweep['thresholds']] == [
        0.2, 0.3, 0.33, 0.4]
    assert re.search(r'^ +0.33 .*config', log, re.M)
    _, scores = run_test(untrained, tmp_path, cfg=[
        'model.decode_head.threshold=0.33', 'test_evaluator.sentences=first'])
    assert scores['n_expressions'] == 4
    assert sweep['thresholds'][2] == dict(
        threshold=0.33, **{k: scores[k] for k in ('mIoU', 'oIoU', 'Pr@50')})


@pytest.mark.parametrize('arguments, message', [
    (('--thresholds', 0.5, 0.1, 0.1), '0 <= START <= STOP <= 1'),
    (('--thresholds', 0.1, 0.5, 0), 'STEP > 0'),
    (('--out', 'plot.jpg'), '--out draws .png, .pdf or .svg, got plot.jpg'),
    (('--json', 'sweep.txt'), '--json writes JSON, got sweep.txt'),
])
def test_arguments_of_the_sweep_are_checked(arguments, message):
    log = tool(SWEEP, CONFIG, 'no.pth', *arguments, ok=False)
    assert message in log and 'Traceback' not in log
