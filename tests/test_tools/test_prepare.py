# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""prepare.py, as processes."""
import json
import re
import sys

import pytest
from conftest import CONFIG, REPO, options, run, tool

PREPARE = 'dataset_converters/prepare.py'


def test_check_convert_stats(refer_set, tmp_path):
    refer_set.refs[2]['sentences'][0]['sent'] = 'very ' * 20
    root = refer_set.write()
    out = tool(PREPARE, 'check', root, '--dataset', 'refer', '--out',
               tmp_path / 'a', '--decode-images', '--workers', 2)
    assert 'usable: 0 errors, 1 warnings' in out
    assert json.loads((tmp_path / 'a/report.json').read_text())['usable']
    assert (tmp_path / 'a/report.html').stat().st_size > 2000
    out = tool(PREPARE, 'convert', root, '--dataset', 'refer', '--to',
               'official-json', '--out', tmp_path / 'b')
    assert 'train: 4 refs' in out
    out = tool(PREPARE, 'stats', tmp_path / 'b', '--dataset', 'official-json',
               '--out', tmp_path / 'c')
    assert 'train: 2 images, 4 refs, 16 sentences' in out
    assert (tmp_path / 'c/stats.png').is_file()


def test_split_says_where_the_images_are(refer_set, tmp_path):
    for ref in refer_set.refs:
        ref['split'] = 'all'
    root = refer_set.write()
    command = (PREPARE, 'split', root, '--dataset', 'refer', '--out')
    out = tool(*command, tmp_path / 'a', '--val-fraction', 0.4, '--seed', 1)
    assert 'train: 4 refs of 2 images' in out
    assert 'val: 2 refs of 1 images' in out
    assert f"data_root='{tmp_path}/a', data_prefix.img_path='{root}/im" in out
    out = tool(*command, tmp_path / 'b', '--copy-images')
    assert 'img_path' not in out and (tmp_path / 'b/images/0.jpg').is_file()


@pytest.mark.parametrize(
    'file', (REPO / 'tools/dataset_converters').glob('*.py'),
    ids=lambda file: file.stem)
def test_help_imports_nothing_heavy(file):
    out = run(sys.executable, '-X', 'importtime', file, '--help')
    imported = set(re.findall(r'\| +([\w.]+)$', out, re.MULTILINE))
    assert 'usage: ' in out and 'argparse' in imported
    assert not imported & {'cris', 'cv2', 'jinja2', 'lmdb', 'matplotlib',
                           'mmengine', 'numpy', 'PIL', 'torch', 'tqdm'}


def test_status_of_what_is_not_usable(refer_set, tmp_path):
    refer_set.refs[2]['sentences'] = 'a dog'
    command = (PREPARE, 'check', refer_set.write(), '--dataset', 'refer',
               '--out', tmp_path)
    out = tool(*command, ok=False)
    assert "ERROR bad-sentence: 1\n  ref 2: its sentences 'a dog'" in out
    assert 'NOT usable: 1 errors, 0 warnings' in out
    out = tool(PREPARE, 'check', tmp_path / 'nowhere', '--dataset', 'refer',
               ok=False)
    assert 'nowhere is not a folder' in out and 'Traceback' not in out


def losses(config, root, work):
    tool('train.py', config, '--work-dir', work, *options(root),
         'randomness.seed=3', 'default_hooks.logger.interval=1',
         'train_cfg.val_interval=9')
    (log, ) = work.glob('*/vis_data/scalars.json')
    lines = map(json.loads, log.read_text().splitlines())
    return [line['loss'] for line in lines if 'loss' in line]


@pytest.mark.slow
def test_a_conversion_trains_to_the_same_losses(refer_set, tmp_path):
    tool(PREPARE, 'convert', refer_set.root, '--dataset', 'refer', '--to',
         'official-json', '--out', tmp_path / 'json')
    config = tmp_path / 'official.py'
    config.write_text(
        CONFIG.read_text()
        .replace('datasets/refer.py', 'datasets/official_json.py')
        .replace("'../_base_", f"'{REPO}/configs/_base_"))
    expected = losses(CONFIG, refer_set.root, tmp_path / 'a')
    assert len(expected) >= 2
    assert losses(config, tmp_path / 'json', tmp_path / 'b') == expected
