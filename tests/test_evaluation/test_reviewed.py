# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Scores without the expressions that Ref-L4's reviewers marked as wrong."""
import json
import os
import re

import numpy as np
import pytest
import torch
from conftest import CONFIG, REPO, options, run, tool
from mmengine.config import Config
from mmseg.registry import MODELS
from samples import evaluate, make_sample

from cris.datasets.refcoco import RefCOCODataset
from cris.evaluation import RefSegMetric
from cris.evaluation.reviewed import (
    match_reviewed,
    read_reviewed,
    reviewed_table,
)

WRONG = {20, 31, 32, 53}  # of the 16 sent_ids of train: 20-23, 30-33, ...


def rows(refer_set):
    """What is known about each sentence of train."""
    images = {image['id']: image for image in refer_set.images}
    for ref, ann in zip(refer_set.refs, refer_set.anns, strict=True):
        if ref['split'] == 'train':
            points = np.reshape(ann['segmentation'][0], (-1, 2))
            left, right = points.min(0).tolist(), points.max(0).tolist()
            for sentence in ref['sentences']:
                yield dict(
                    caption_quality=int(sentence['sent_id'] not in WRONG),
                    sent_id=sentence['sent_id'], ref_id=ref['ref_id'],
                    ann_id=ref['ann_id'], image_id=ref['image_id'],
                    file_name=images[ref['image_id']]['file_name'],
                    text=sentence['sent'], left=left, right=right)


def write(path, entries, key='annotation'):
    path.write_text(json.dumps({'images': [], key: entries}))
    return str(path)


def build(refer_set, split='train', **kwargs):
    return RefCOCODataset(
        data_root=str(refer_set.write()), split=split, test_mode=True,
        data_prefix=dict(img_path='images'), cache_dir=False, **kwargs)


def matched(path, refer_set, **kwargs):
    return match_reviewed(
        path, read_reviewed(path), build(refer_set), **kwargs)


def xywh(row):
    (x, y), (right, bottom) = row['left'], row['right']
    return [x, y, right - x, bottom - y]


def xyxy(row):
    return [*row['left'], *row['right']]


def shouted(row):
    return row['text'].upper().replace(' ', ' \t') + '. '


FORMS = {
    'sent_id': lambda r: dict(sent_id=r['sent_id']),
    'sent_id and text': lambda r: dict(
        sent_id=str(r['sent_id']), sentence=r['text'], bbox='unknown'),
    'ref_id and text': lambda r: dict(ref_id=r['ref_id'], sent=shouted(r)),
    'ann_id and text': lambda r: dict(
        sent_id=r['sent_id'] + 1000, ann_id=r['ann_id'], text=shouted(r)),
    'image, text and box (x, y, width, height)': lambda r: dict(
        file_name='train/' + r['file_name'], bbox=xywh(r),
        caption=shouted(r)),
    'image, text and box (x1, y1, x2, y2)': lambda r: dict(
        image_id=r['image_id'], box=xyxy(r), caption=shouted(r)),
}


class TestMatching:

    @pytest.mark.parametrize('key', ['annotation', 'annotations'])
    @pytest.mark.parametrize('way', FORMS)
    def test_ways(self, refer_set, tmp_path, way, key):
        path = write(tmp_path / 'r.json', [
            dict(FORMS[way](row), caption_quality=row['caption_quality'])
            for row in rows(refer_set)][::-1], key)
        found = matched(path, refer_set)
        assert {int(key[2]) for key in found.wrong} == WRONG
        assert found.summary == (
            f'16 of 16 entries of {path} match expressions of the test set, '
            f'by {way}; 0 of 16 expressions have no entry; 4 are left out as '
            'wrong')

    def test_names_of_coco(self, refer_set, tmp_path):
        for image in refer_set.images:
            name = f'COCO_train2014_{image["id"] + 580000:012}.jpg'
            os.rename(refer_set.root / 'images' / image['file_name'],
                      refer_set.root / 'images' / name)
            image['file_name'] = name
        entries = [
            dict(file_name=row['file_name'].replace('.jpg', '_16.jpg'),
                 bbox=xywh(row), caption=row['text'], caption_quality=1)
            for row in rows(refer_set)]
        found = matched(write(tmp_path / 'r.json', entries), refer_set)
        assert 'by image' in found.summary and not found.wrong

    def test_the_box_tells_refs_with_one_text(self, refer_set, tmp_path):
        for ref in refer_set.refs:
            for sentence in ref['sentences']:
                sentence['sent'] = 'the thing'
        for box in (xywh, xyxy):
            entries = [
                dict(image_id=row['image_id'], caption=row['text'],
                     bbox=[n + 0.6 for n in box(row)],
                     caption_quality=row['ref_id'] % 2)
                for row in rows(refer_set)]
            found = matched(write(tmp_path / 'r.json', entries), refer_set)
            assert {int(key[1]) for key in found.wrong} == {2, 4}
            assert len(found.wrong) == 8

    def test_a_sentence_twice_in_a_ref(self, refer_set, tmp_path):
        refer_set.refs[2]['sentences'][1]['sent'] = 'thing 2 left'
        entries = [
            dict(ref_id=row['ref_id'], text=row['text'],
                 caption_quality=row['caption_quality'])
            for row in rows(refer_set)]
        found = matched(write(tmp_path / 'r.json', entries), refer_set)
        assert {int(key[2]) for key in found.wrong} == WRONG
        del entries[1]
        with pytest.raises(ValueError, match='0 entries .*; 1 expressions'):
            matched(write(tmp_path / 'r.json', entries), refer_set)

    def test_unmatched(self, refer_set, tmp_path):
        entries = list(rows(refer_set))
        entries[0]['text'] = 'something else'
        path = write(tmp_path / 'r.json', entries[:-4])
        with pytest.raises(ValueError) as error:
            matched(path, refer_set)
        message = str(error.value)
        assert '1 entries have no expression, e.g. entry 0 {' in message
        assert ("5 expressions have no entry, e.g. 'thing 2 left' (ref 2 of "
                in message)
        assert message.count('thing 5') == 2  # the first few are named
        assert '--allow-unmatched' in message and '\n' not in message
        found = matched(path, refer_set, allow_unmatched=True)
        assert '11 of 12 entries' in found.summary
        assert '5 of 16 expressions have no entry; 2 are' in found.summary
        assert {int(key[2]) for key in found.wrong} == {31, 32}

    def test_another_numbering_matches_nothing(self, refer_set, tmp_path):
        entries = [
            dict(sent_id=row['sent_id'] + 1, text=row['text'],
                 caption_quality=1) for row in rows(refer_set)]
        with pytest.raises(ValueError, match='16 entries .*16 expressions'):
            matched(write(tmp_path / 'r.json', entries), refer_set)

    def test_nothing_left(self, refer_set, tmp_path):
        entries = [dict(row, caption_quality=0) for row in rows(refer_set)]
        with pytest.raises(ValueError, match='all 16 expressions as wrong'):
            matched(write(tmp_path / 'r.json', entries), refer_set)


BAD = {
    'not JSON': ('{', 'not valid JSON'),
    'a list': ('[]', 'no list "annotation"'),
    'another key': ('{"images": [1]}', 'no list "annotation"'),
    'no entries': ('{"annotation": []}', 'no list "annotation"'),
    'a number': ('{"annotation": [7]}', 'entry 0 is 7, not a dict'),
    'no quality': ('{"annotation": [{"sent_id": 1}]}',
                   'entry 0: its caption_quality is None, not a number'),
    'quality': ('{"annotation": [{"sent_id": 1, "caption_quality": "0"}]}',
                "entry 0: its caption_quality is '0', not a number"),
    'no name': ('{"annotation": [{"caption": "a", "caption_quality": 1}]}',
                r"in no known way: .*has \['caption', 'caption_quality'\]"),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_files(tmp_path, name):
    content, message = BAD[name]
    path = tmp_path / 'r.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=f'{path}.*{message}') as error:
        read_reviewed(str(path))
    assert '\n' not in str(error.value)
    with pytest.raises(FileNotFoundError, match='prepare.py get ref-l4'):
        read_reviewed(str(tmp_path / 'none.json'))


def predictions(keep=lambda i, j: True):
    rng = np.random.default_rng(0)
    samples = []
    for i in range(4):
        masks = rng.random((2, 3, 9, 11)) > rng.random((2, 3, 1, 1))
        masks[1, 0] &= i > 1  # two expressions without a target
        kept = [j for j in range(3) if keep(i, j)]
        samples.append(make_sample(
            *masks[:, kept], img_path=f'{i}.jpg', ref_ids=[i] * len(kept),
            sent_ids=kept, expressions=[f'{i} {j}' for j in kept]))
    return samples


@pytest.mark.parametrize('scoring', [
    {}, dict(inclusive=True, empty_union=1.0), dict(generalized=True),
    dict(sentences='last'), dict(gt_size=(5, 6))])
@pytest.mark.parametrize('prefix', [None, 'mine'])
def test_scores_are_those_of_the_expressions_kept(scoring, prefix):
    wrong = {(0, 0), (2, 1), (3, 0), (3, 1)}  # the last ones are right
    metric = dict(type='RefSegMetric', prefix=prefix, **scoring)
    plain, without = (
        evaluate(predictions(*keep), [metric]) for keep in (
            (), [lambda i, j: (i, j) not in wrong]))
    reviewing = RefSegMetric(prefix=prefix, **scoring)
    reviewing.leave_out({
        (f'{i}.jpg', str(i), str(j), f'{i} {j}') for i, j in wrong})
    reviewing.process({}, [s.to_dict() for s in predictions()])
    scores = reviewing.evaluate(4)
    start = f'{prefix}/' if prefix else ''
    assert scores == {**plain, **{
        f'{start}reviewed/{k.removeprefix(start)}': v
        for k, v in without.items()}}
    assert ('sentences' in scoring) == (without == plain)
    head, *lines = reviewed_table(
        dict(scores, **{'audit/official-test/mIoU': 1.0})).splitlines()
    assert head.split() == ['all', 'reviewed']
    assert [line.split()[0] for line in lines] == [
        key.removeprefix(start) for key in plain]
    assert lines[-1].split()[1:] == [
        str(scores[f'{start}n_expressions']),
        str(scores[f'{start}reviewed/n_expressions'])]


def test_a_score_that_only_all_expressions_have():
    lines = reviewed_table({
        'N-acc': 50.0, 'n_expressions': 2, 'reviewed/n_expressions': 1})
    assert [line.split() for line in lines.splitlines()[1:]] == [
        ['N-acc', '50.00', '-'], ['n_expressions', '2', '1']]


@pytest.fixture
def command(refer_set, tmp_path):
    """A function that runs tools/test.py with an untrained model."""
    torch.manual_seed(3)
    model = MODELS.build(Config.fromfile(CONFIG).model)
    with torch.no_grad():  # probabilities around the threshold
        model.decode_head.projector.kernel_proj.weight *= 4
    checkpoint = tmp_path / 'random.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)

    def start(name, *arguments, ok=True, ranks=0):
        folder = tmp_path / name
        arguments = [
            '--work-dir', folder, '--out', folder / 'out.json', *arguments,
            *options(refer_set.root), 'test_dataloader.dataset.split=train']
        if ranks:
            log = run('bash', REPO / 'tools/dist_test.sh', CONFIG, checkpoint,
                      ranks, *arguments,
                      MASTER_PORT=str(28000 + os.getpid() % 900))
        else:
            log = tool('test.py', CONFIG, checkpoint, *arguments, ok=ok)
        return log, (
            json.loads((folder / 'out.json').read_text()) if ok else None)

    return start


@pytest.mark.slow
def test_command_line(command, refer_set, tmp_path):
    entries = list(rows(refer_set))
    path = write(tmp_path / 'r.json', entries)
    results = tmp_path / 'results.json'
    log, scores = command('one', '--reviewed', path, '--results', results)
    assert '16 of 16 entries' in log and '4 are left out as wrong' in log
    (line, ) = re.findall(r'^mIoU +([\d.]+) +([\d.]+)$', log, re.M)
    assert line == (f'{scores["mIoU"]:.2f}', f'{scores["reviewed/mIoU"]:.2f}')
    assert line[0] != line[1]
    records = json.loads(results.read_text())
    kept = [r['iou'] for r in records if r['sent_id'] not in WRONG]
    assert (len(records), len(kept)) == (16, 12)
    assert scores['reviewed/mIoU'] == pytest.approx(100 * np.mean(kept))

    log, two = command('two', '--reviewed', path, ranks=2)
    assert two == scores
    assert log.count('16 of 16 entries') == 1

    write(tmp_path / 'r.json', entries[1:])
    log, _ = command('unmatched', '--reviewed', path, ok=False)
    assert re.search("^error: .*1 expressions have no entry, e.g. 'thing 2 l",
                     log, re.M)
    assert 'Epoch(test)' not in log and 'Traceback' not in log
    log, allowed = command(
        'allowed', '--reviewed', path, '--allow-unmatched', '--audit')
    assert allowed['reviewed/n_expressions'] == 13
    assert not any(key.startswith('audit') and 'reviewed' in key
                   for key in allowed)

    # The same set without the wrong sentences.
    for ref in refer_set.refs:
        ref['sentences'] = [
            s for s in ref['sentences'] if s['sent_id'] not in WRONG]
        ref['sent_ids'] = [s['sent_id'] for s in ref['sentences']]
    refer_set.write()
    _, without = command('without')
    assert without == {key.removeprefix('reviewed/'): value
                       for key, value in scores.items() if '/' in key}


@pytest.mark.parametrize('arguments, message', [
    (('--allow-unmatched', ), '--allow-unmatched goes with --reviewed'),
    (('--reviewed', 'none.json'), 'error: none.json does not exist: prepare'),
])
def test_arguments_are_checked(arguments, message):
    log = tool('test.py', CONFIG, 'no.pth', *arguments, ok=False)
    assert message in log and 'Traceback' not in log
