# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Tests of RefShapes' expressions for no, one or several objects.

As in test_refshapes.py, a parser of its own judges what is on disk.
"""
import json
import re
from collections import Counter

import numpy as np
import pytest
import refshapes as tool
from conftest import REPO
from mmengine.config import Config
from mmseg.registry import DATASETS
from test_refshapes import (
    AXES,
    NUM_EVAL,
    NUM_TRAIN,
    SEED,
    SLACK,
    Written,
    contents,
    parse,
    referents,
    select,
    thing,
)

from cris.datasets.refshapes import write_refshapes
from cris.datasets.refshapes.expressions import Item, Meaning, Phrase
from cris.datasets.refshapes.generalized import referents as own_referents

NUMBERS = dict(two=2, three=3, four=4, five=5, six=6)
QUANTIFIED = re.compile(
    r'(?:all the|all|every|both|the)? ?(two |three |four |five |six )?(.*)')


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp('generalized')
    write_refshapes(root, NUM_TRAIN, NUM_EVAL, SEED, generalized=True)
    out = Written(root)
    out.grefs = json.loads((root / 'grefs(unc).json').read_text())
    return out


def each(written, *kinds):
    """Kind, objects, positions of the true ones, and a sentence."""
    for ref in written.grefs:
        if ref['kind'] not in kinds:
            continue
        objects = written.objects[ref['image_id']]
        ids = [item['id'] for item in objects]
        true = [ids.index(i) for i in ref['ann_id'] if i != -1]
        for entry in ref['sentences']:
            yield ref['kind'], objects, true, entry['sent']


def singular(sentence):
    """A sentence for several objects as one for one, and its number."""
    text = sentence.replace('everything', 'all things')
    noun, *rest = re.split(
        r' (?=left of|right of|to the|above|below|under|on the|at the)', text,
        maxsplit=1)
    match = QUANTIFIED.fullmatch(noun)
    count = NUMBERS.get((match[1] or '').strip())
    if noun.startswith('both '):
        count = 2
    noun = match[2] if noun.startswith('every ') else match[2].removesuffix(
        's')
    return ' '.join([noun, *rest]), count


def true_of(sentence, objects, slack):
    """All objects that a sentence is true of; see referents()."""
    kind, noun, direction, anchor = parse(sentence)
    fitting = select(noun, objects)
    if kind == 'attribute' or not fitting:
        return fitting
    axis, sign = AXES[direction]
    line = 0.5
    if kind == 'relation':
        (other, ) = select(anchor, objects)
        line = objects[other]['position'][axis]
        fitting = [i for i in fitting if i != other]
    else:
        assert kind == 'zone', sentence
        slack = slack / 2
    return [i for i in fitting
            if sign * (objects[i]['position'][axis] - line) > slack]


def plural(sentence):
    return bool(re.match('(all|every|both|everything) ', sentence)) or bool(
        re.search('(circle|square|triangle|star|thing|object|shape|one)s',
                  sentence))


def test_every_sentence_is_true_of_its_objects_only(written):
    for _, objects, true, sentence in each(written, 'many'):
        text, count = singular(sentence)
        assert len(true) >= 2 and count in (None, len(true)), sentence
        for slack in (-SLACK, 0, SLACK):
            assert true_of(text, objects, slack) == true, (sentence, slack)


def test_no_object_is_meant_where_none_is(written):
    for kind, objects, true, sentence in each(
            written, 'none-easy', 'none-hard'):
        assert true == []
        text, count = singular(sentence) if plural(sentence) else (
            sentence, None)
        assert count is None, sentence
        for slack in (-SLACK, 0, SLACK):
            assert true_of(text, objects, slack) == [], (sentence, slack)
        noun = parse(text)[1].removeprefix('the ')
        words = set(noun.split())
        present = [{item['color'], item['shape']} for item in objects]
        if kind == 'none-easy':
            assert not words & set.union(*present), sentence
            continue
        if select(noun, objects):  # wrong by its side alone
            assert parse(text)[0] in ('zone', 'relation')
            continue
        wanted = words - {'thing', 'object', 'shape', 'one'}
        sizes = dict(little='small', big='large')
        wanted = {sizes.get(word, word) for word in wanted}
        assert len(wanted) > 1 and any(
            len(wanted - {item['color'], item['shape'], item['size']}) == 1
            for item in objects), sentence


def test_those_of_one_object_are_the_plain_ones(written):
    found = [ref for ref in written.grefs if ref['kind'] == 'one']
    assert found == [
        dict(ref, ann_id=[ref['ann_id']], kind='one') for ref in written.refs]
    for _, objects, true, sentence in each(written, 'one'):
        assert referents(sentence, objects, 0) == true


def test_parsers_know_right_from_wrong():
    objects = [thing((0.2, 0.3)), thing((0.8, 0.3)), thing((0.5, 0.9), 'blue')]
    assert singular('both red stars above the blue one') == (
        'red star above the blue one', 2)
    assert singular('everything on the left') == ('thing on the left', None)
    assert true_of('red star', objects, 0) == [0, 1]
    assert true_of('thing above the blue one', objects, 0.1) == [0, 1]
    assert true_of('red star on the left', objects, 0.1) == [0]
    assert true_of('red circle left of the blue star', objects, 0) == []
    assert true_of('star below the blue one', objects, 0) == []
    assert plural('all red stars') and not plural('red star')


@pytest.mark.parametrize('x, direction, zone, anchor, found', [
    (60, 'left', True, None, [0]),
    (53, 'left', True, None, None),  # too close to the middle
    (60, 'left', False, None, None),  # a superlative
    (60, 'left', False, Phrase(None, 'blue', None), [0, 1]),
    (73, 'left', False, Phrase(None, 'blue', None), None),
    (60, 'right', False, Phrase(None, 'blue', None), []),
    (60, 'right', False, Phrase(None, 'red', None), None),  # two anchors
    (60, '', False, None, [0, 1])])
def test_unclear_meanings_are_none(x, direction, zone, anchor, found):
    items = [Item('small', 'red', 'star', (20, 30)),
             Item('small', 'red', 'star', (x, 30)),
             Item('large', 'blue', 'star', (80, 50))]
    meaning = Meaning(Phrase('small', None, None), direction, zone, anchor)
    assert own_referents(meaning, items, (100, 100)) == found


def test_kinds_and_ids(written):
    grefs = written.grefs
    kinds = Counter(ref['kind'] for ref in grefs)
    assert set(kinds) == {'none-easy', 'none-hard', 'one', 'many'}
    pictures = len(written.images)
    assert kinds['none-hard'] > 0.9 * pictures
    assert kinds['none-easy'] > 0.9 * pictures
    assert kinds['many'] > 1.5 * pictures
    sent_ids = [i for ref in grefs for i in ref['sent_ids']]
    for ids in (sent_ids, [ref['ref_id'] for ref in grefs]):
        assert len(set(ids)) == len(ids)
    of_image = Counter(ref['image_id'] for ref in grefs)
    assert max(of_image.values()) <= 10
    for ref in grefs:
        sentences = [entry['sent'] for entry in ref['sentences']]
        assert len(set(sentences)) == len(sentences) > 0
        assert ref['sent_ids'] == [e['sent_id'] for e in ref['sentences']]
        assert ref['file_name'] == (
            written.images[ref['image_id']]['file_name'])
    # Neither number nor place alone tells that there is nothing.
    none = [s for *_, s in each(written, 'none-easy', 'none-hard')]
    assert 0.1 < np.mean([plural(s) for s in none]) < 0.4
    for split, wanted in (('testA', {'attribute'}),
                          ('testB', {'extreme', 'zone', 'relation'})):
        found = {
            parse(singular(e['sent'])[0] if plural(e['sent']) else e['sent']
                  )[0]
            for ref in grefs if ref['split'] == split for e in ref['sentences']
            if ref['kind'] != 'one'}
        assert found == wanted
    testb = {parse(s)[0] for s in none if not plural(s)}
    assert testb == {'attribute', 'extreme', 'zone', 'relation'}


def test_the_other_files_do_not_change(written, tmp_path):
    write_refshapes(tmp_path, NUM_TRAIN, NUM_EVAL, SEED)
    plain, found = contents(tmp_path), contents(written.root)
    assert {str(p) for p in found.keys() - plain.keys()} == {
        'grefs(unc).json'}
    assert all(found[name] == content for name, content in plain.items())


def test_a_picture_does_not_depend_on_the_others(written, tmp_path):
    tool.main(['--out', str(tmp_path), '--num-train', '2', '--num-eval', '1',
               '--seed', str(SEED), '--generalized'])
    few = json.loads((tmp_path / 'grefs(unc).json').read_text())
    assert len(few) > 20
    images = {ref['image_id'] for ref in few}
    assert few == [ref for ref in written.grefs if ref['image_id'] in images]
    (tmp_path / 'instances.json').unlink()
    (tmp_path / 'refs(unc).p').unlink()
    with pytest.raises(FileExistsError, match='grefs.* exists already'):
        write_refshapes(tmp_path, 1, 1, SEED)


def test_the_config_reads_them(written):
    (path, ) = (REPO / 'configs/cris').glob('cris_tiny-gen_*.py')
    cfg = Config.fromfile(path)
    train, val = (
        DATASETS.build(dict(loader.dataset, data_root=str(written.root)))
        for loader in (cfg.train_dataloader, cfg.val_dataloader))
    assert len(train) == NUM_TRAIN  # all refs of a picture in one sample
    sample = train[0]['data_samples']
    assert len(sample.tokens) == len(sample.kinds) == 10
    for sample in (val[i]['data_samples'] for i in range(len(val))):
        filled = sample.gt_sem_seg.data.flatten(1).any(1).tolist()
        assert filled == [
            not kind.startswith('none') for kind in sample.kinds]
        assert len(set(sample.kinds)) == 4
