# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""calibrate.py, and its numbers wherever the checkpoint is loaded."""
import json
import re

import numpy as np
import pytest
import torch
from conftest import CONFIG, ReferSet, options, tool
from mmengine.config import Config
from mmseg.registry import MODELS
from safetensors import safe_open

import cris
from cris.deploy import export, files, runtime
from cris.evaluation.confidence import answer_confidence
from cris.io.calibration import add_calibration, read_calibration

CALIBRATE = 'analysis_tools/calibrate.py'
WITH = 'model.decode_head.existence=True'


def config(**head):
    cfg = Config.fromfile(CONFIG)
    cfg.model.decode_head.update(existence=True, **head)
    return cfg


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder with results, a checkpoint and a calibrated one."""
    root = tmp_path_factory.mktemp('calibrated')
    rng = np.random.default_rng(0)
    counts = dict(height=10, width=10, pred_area=50, iou=0.5)
    records = []
    for i in range(300):
        target, good = i % 3 > 0, rng.random() < .7
        intersection = (45 if good else 10) if target else 0
        records.append(dict(
            counts, intersection=intersection, gt_area=50 * target,
            union=50 + 50 * target - intersection, existence_threshold=0.0,
            existence=float(rng.beta(5, 2) if target else rng.beta(2, 5)),
            score=float(rng.uniform(.5, 1) if good else rng.uniform(.4, .9))))
    (root / 'val.json').write_text(json.dumps(records))
    torch.manual_seed(0)
    model = MODELS.build(config().model)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=3)),
               root / 'plain.pth')
    log = tool(CALIBRATE, root / 'val.json', root / 'plain.pth', '--out',
               root / 'new/calibrated.pth')
    (root / 'log.txt').write_text(log)
    return root


@pytest.fixture(scope='module')
def stored(root):
    return read_calibration(
        torch.load(root / 'new/calibrated.pth', weights_only=True), '')


def test_the_checkpoint_is_otherwise_the_same(root, stored):
    plain, calibrated = (torch.load(root / name, weights_only=True)
                         for name in ('plain.pth', 'new/calibrated.pth'))
    assert read_calibration(plain, '') is None
    assert calibrated['meta'].pop('calibration')
    assert calibrated['meta'] == dict(epoch=3)
    torch.testing.assert_close(
        calibrated['state_dict'], plain['state_dict'], rtol=0, atol=0)
    assert 0 < stored['existence_threshold'] < 1
    rows = re.findall(r'^ *([\d.]+) +(yes|no) (.*)$',
                      (root / 'log.txt').read_text(), re.M)
    assert [row[0] for row in rows] == [
        '0', '0.5', *2 * [f'{stored["existence_threshold"]:.4g}']]
    scores = [[float(x) for x in row[2].split()] for row in rows]
    never, _, chosen, calibrated = scores
    assert chosen[:3] == calibrated[:3]
    assert never[1:3] == [0, 100] and chosen[2] >= 95  # N-acc and T-acc
    assert chosen[0] > never[0] and calibrated[3] < chosen[3]


def test_init_model_uses_what_is_stored(root, stored):
    path = str(root / 'new/calibrated.pth')
    head = cris.init_model(config(), path, 'cpu').decode_head
    assert head.existence_threshold == stored['existence_threshold']
    assert head.calibration == stored
    # A threshold in the config has priority, even the default.
    for threshold in (0.0, 0.5):
        head = cris.init_model(config(existence_threshold=threshold), path,
                               'cpu').decode_head
        assert head.existence_threshold == threshold
        assert head.calibration == stored
    head = cris.init_model(config(), str(root / 'plain.pth'),
                           'cpu').decode_head
    assert (head.existence_threshold, head.calibration) == (0.5, None)


def test_a_test_uses_what_is_stored(root, stored):
    data = options(ReferSet(root / 'refer').write())

    def records_of(checkpoint, *more):
        results = root / 'results.json'
        tool('test.py', CONFIG, root / checkpoint, '--work-dir', root / 'work',
             '--results', results, *data, WITH, *more,
             'model.decode_head.threshold=0.0',
             'test_dataloader.dataset.split=train')
        return json.loads(results.read_text())

    found = records_of('new/calibrated.pth')
    always = records_of(
        'new/calibrated.pth', 'model.decode_head.existence_threshold=0')
    plain = records_of('plain.pth')
    assert len(found) == 16
    for records, threshold, calibration in (
            (found, stored['existence_threshold'], stored),
            (always, 0, stored), (plain, 0.5, None)):
        for r in records:
            assert r['existence_threshold'] == threshold
            answered = r['existence'] >= threshold
            assert (r['pred_area'] > 0) == answered
            assert r['confidence'] == pytest.approx(float(answer_confidence(
                r['existence'], r['score'], answered, calibration)))
    assert [r['existence'] for r in found] == [r['existence'] for r in plain]


@pytest.mark.parametrize('half', [(), ('--half', )], ids=str)
def test_publishing_keeps_it(root, stored, half, tmp_path):
    tool('model_converters/publish_model.py', root / 'new/calibrated.pth',
         tmp_path / 'cris', *half)
    (path, ) = tmp_path.iterdir()
    head = cris.init_model(config(), str(path), 'cpu').decode_head
    assert head.calibration == stored
    assert head.existence_threshold == stored['existence_threshold']
    # It can be calibrated again, and a file without has no metadata of it.
    tool(CALIBRATE, root / 'val.json', path, '--min-t-acc', 50, '--out',
         tmp_path / 'again.pth')
    again = cris.init_model(config(), str(tmp_path / 'again.pth'), 'cpu')
    assert again.decode_head.existence_threshold > head.existence_threshold
    tool('model_converters/publish_model.py', root / 'plain.pth',
         tmp_path / 'plain')
    (path, ) = tmp_path.glob('plain-*')
    with safe_open(path, 'pt') as file:
        assert file.metadata() == dict(format='pt')


def test_an_exported_model_keeps_it(root, stored, tmp_path, monkeypatch):
    """Without the graphs, which need other packages."""
    model = cris.init_model(config(), str(root / 'new/calibrated.pth'), 'cpu')
    about = export._describe(model, model.cfg, (64, 64))
    monkeypatch.setattr(runtime, 'open_graph', lambda *args: None)
    for part in files.PARTS:
        (tmp_path / f'{part}.onnx').touch()
    (tmp_path / 'cris.json').write_text(json.dumps(about))
    head = runtime.ExportedCRIS(str(tmp_path)).decode_head
    assert head.calibration == stored
    assert head.existence_threshold == stored['existence_threshold']
    (tmp_path / 'cris.json').write_text(
        json.dumps(dict(about, calibration=dict(stored, mask=[1]))))
    with pytest.raises(ValueError, match='cris.json is damaged'):
        runtime.ExportedCRIS(str(tmp_path))


@pytest.mark.parametrize('broken', [
    'no json', '[]', '{}', 3,
    dict(existence_threshold=2, existence=[1, 0], mask=[1, 0]),
    dict(existence_threshold=.5, existence=[1], mask=[1, 0]),
    dict(existence_threshold=.5, existence=[1, 0], mask=[1, 1e9]),
    dict(existence_threshold=float('nan'), existence=[1, 0], mask=[1, 0]),
    dict(existence_threshold=.5, existence=[1, 0], mask=[1, 10**400]),
], ids=str)
def test_a_damaged_calibration_is_refused(root, tmp_path, broken):
    checkpoint = torch.load(root / 'plain.pth', weights_only=True)
    if isinstance(broken, dict):
        checkpoint = add_calibration(checkpoint, broken)
    else:
        checkpoint['meta']['calibration'] = broken
    path = tmp_path / 'broken.pth'
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match='stored in .*broken.pth is damaged'):
        cris.init_model(config(), str(path), 'cpu')


def test_what_cannot_be_calibrated(root, tmp_path):
    records = json.loads((root / 'val.json').read_text())
    results = tmp_path / 'val.json'
    results.write_text(json.dumps([r for r in records if r['gt_area']]))
    out = tmp_path / 'out.pth'
    without = tmp_path / 'without.pth'
    torch.save(MODELS.build(Config.fromfile(CONFIG).model).state_dict(),
               without)
    plain = root / 'plain.pth'
    for arguments, message in (
            ((results, plain, '--out', out),
             'error: all of the 200 expressions have a target'),
            ((root / 'val.json', without, '--out', out),
             'error: .*without.pth has no classifier of existence'),
            ((root / 'no.json', plain, '--out', out),
             'error: .*no.json does not exist'),
            ((root / 'val.json', plain, '--out', out, '--min-t-acc', 101),
             'error: T-acc is 100.00 .* no threshold reaches 101'),
            ((root / 'val.json', plain, '--out', 'x.safetensors'),
             'writes .pth, got x.safetensors')):
        log = tool(CALIBRATE, *arguments, ok=False)
        assert re.search(message, log) and 'Traceback' not in log
    assert not out.exists()
