# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""prepare.py and the benchmarks, as processes."""
import json

from conftest import REPO, ReferSet
from test_train_and_test import CONFIG, options, tool

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


def test_status_of_what_is_not_usable(refer_set, tmp_path):
    refer_set.refs[2]['sentences'] = []
    command = (PREPARE, 'check', refer_set.write(), '--dataset', 'refer',
               '--out', tmp_path)
    out = tool(*command, ok=False)
    assert 'ERROR no-sentence: 1\n  ref 2: it has no sentence' in out
    assert 'NOT usable: 1 errors, 0 warnings' in out
    out = tool(PREPARE, 'check', tmp_path / 'nowhere', '--dataset', 'refer',
               ok=False)
    assert 'nowhere is no folder' in out and 'Traceback' not in out


def losses(config, root, work, *more):
    tool('train.py', config, '--work-dir', work, *options(root), *more,
         'randomness.seed=3', 'default_hooks.logger.interval=1')
    (log, ) = work.glob('*/vis_data/scalars.json')
    return [
        json.loads(line)['loss'] for line in log.read_text().splitlines()
        if 'loss' in json.loads(line)
    ]


def test_a_conversion_trains_to_the_same_losses(tmp_path):
    root = ReferSet(tmp_path / 'refer').write()
    expected = losses(CONFIG, root, tmp_path / 'work0')
    assert len(expected) >= 2
    for form, data in (('jsonl', 'own_jsonl'),
                       ('official-json', 'official_json')):
        tool(PREPARE, 'convert', root, '--dataset', 'refer', '--to', form,
             '--out', tmp_path / form)
        config = tmp_path / f'{data}.py'
        config.write_text(
            CONFIG.read_text().replace('../_base_/datasets/refer.py',
                                       f'../_base_/datasets/{data}.py')
            .replace("'../_base_", f"'{REPO}/configs/_base_"))
        assert losses(config, tmp_path / form,
                      tmp_path / f'work_{form}') == expected
