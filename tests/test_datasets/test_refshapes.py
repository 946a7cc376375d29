# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Tests of the RefShapes generator.

What the sentences say is judged by a parser of its own, from what is on disk.
"""
import json
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import refshapes as tool

from cris.datasets.masks import decode_mask
from cris.datasets.refshapes import sample_picture, write_refshapes
from cris.io.pickles import load_plain_pickle

NUM_TRAIN, NUM_EVAL, SEED = 40, 15, 3
SPLITS = ('train', 'val', 'testA', 'testB')
HUES = {'red': 0, 'orange': 28, 'yellow': 54, 'green': 125, 'blue': 222,
        'purple': 284}
# Just below the 8 % of the definition, as positions on disk are rounded.
SLACK = 0.079

NOUN = (r'(?:the )?(?:(?P<size>small|little|large|big) )?'
        r'(?:(?P<color>red|orange|yellow|green|blue|purple) )?'
        r'(?:(?P<shape>circle|square|triangle|star)|thing|object|shape|one)')
WORDS = {
    'relation': {
        'left': 'left of|to the left of', 'right': 'right of|to the right of',
        'top': 'above', 'bottom': 'below|under'},
    'extreme': {
        'left': 'leftmost|furthest to the left',
        'right': 'rightmost|furthest to the right',
        'top': 'topmost|highest|uppermost',
        'bottom': 'lowest|bottommost|closest to the bottom'},
    'zone': {
        'left': 'left|on the left|on the far left',
        'right': 'right|on the right|on the far right',
        'top': 'top|at the top|at the very top',
        'bottom': 'bottom|at the bottom|at the very bottom'}}
AXES = {'left': (0, -1), 'right': (0, 1), 'top': (1, -1), 'bottom': (1, 1)}


def select(noun, objects):
    """Indices of the objects that a noun phrase fits."""
    match = re.fullmatch(NOUN, noun)
    if match is None:
        raise ValueError(f'unknown noun phrase: {noun!r}')
    wanted = {key: {'little': 'small', 'big': 'large'}.get(value, value)
              for key, value in match.groupdict().items() if value}
    return [i for i, item in enumerate(objects)
            if all(item[key] == value for key, value in wanted.items())]


def parse(sentence):
    """Kind, noun phrase, direction and anchor of a sentence."""
    text = sentence.removeprefix('the ')
    for kind, directions in WORDS.items():
        for direction, words in directions.items():
            if kind == 'relation':
                pattern = rf'(?P<n>.+?) ({words}) (?P<anchor>.+)'
            else:
                pattern = rf'({words}) (?P<m>.+)|(?P<n>.+?) ({words})'
            if match := re.fullmatch(pattern, text):
                found = match.groupdict()
                return (kind, found['n'] or found['m'], direction,
                        found.get('anchor'))
    return 'attribute', text, '', None


def referents(sentence, objects, slack):
    """Indices of the objects that a sentence is true of.

    Comparisons ask for more than ``slack`` of the side: with a positive
    value only what is clearly true is true, with a negative one what is not
    clearly false.
    """
    kind, noun, direction, anchor = parse(sentence)
    fitting = select(noun, objects)
    if kind == 'attribute':
        return fitting
    axis, sign = AXES[direction]
    where = [sign * item['position'][axis] for item in objects]
    if kind == 'relation':
        anchors = select(anchor, objects)
        assert len(anchors) == 1, f'ambiguous anchor: {sentence}'
        return [i for i in fitting if i != anchors[0]
                and where[i] - where[anchors[0]] > slack]
    assert len(fitting) >= 2, f'nothing to compare with: {sentence}'
    if kind == 'zone':
        in_zone = [i for i in fitting if where[i] > sign * 0.5]
        assert len(in_zone) == 1, f'several in the zone: {sentence}'
    return [i for i in fitting if all(
        where[i] - where[other] > slack for other in fitting if other != i)]


class Written:
    """A set as read from disk."""

    def __init__(self, root):
        self.root = root
        self.instances = json.loads((root / 'instances.json').read_text())
        self.refs = load_plain_pickle(root / 'refs(unc).p')
        self.images = {
            image['id']: image for image in self.instances['images']}
        self.objects = {i: [] for i in self.images}
        for entry in self.instances['annotations']:
            image = self.images[entry['image_id']]
            sides = image['width'], image['height']
            mask = decode_mask(entry['segmentation'], *sides[::-1]) > 0
            center = np.argwhere(mask)[:, ::-1].mean(0) + 0.5
            np.testing.assert_allclose(
                center, entry['attributes']['center'], atol=0.01)
            self.objects[image['id']].append(
                entry | entry['attributes'] | {
                    'mask': mask, 'center': center,
                    'position': center / sides})

    def sentences(self, *splits):
        return [entry['sent'] for ref in self.refs if ref['split'] in splits
                for entry in ref['sentences']]


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp('refshapes')
    write_refshapes(root, NUM_TRAIN, NUM_EVAL, SEED)
    return Written(root)


def kinds_of(sentences):
    return Counter({'extreme': 'place', 'zone': 'place'}.get(kind, kind)
                   for kind in (parse(text)[0] for text in sentences))


def test_every_sentence_is_true_of_its_object_only(written):
    for ref in written.refs:
        objects = written.objects[ref['image_id']]
        (target, ) = (item for item in objects if item['id'] == ref['ann_id'])
        for sentence in (entry['sent'] for entry in ref['sentences']):
            for slack in (-SLACK, 0, SLACK):
                found = referents(sentence, objects, slack)
                assert [objects[i]['id'] for i in found] == [ref['ann_id']], (
                    ref['file_name'], sentence, slack)
            kind, _, direction, anchor = parse(sentence)
            if kind == 'relation':  # mainly along its axis
                other = objects[select(anchor, objects)[0]]
                offset = np.abs(target['center'] - other['center'])
                axis = AXES[direction][0]
                assert offset[axis] >= offset[1 - axis] - 0.02


def thing(position, color='red', shape='star'):
    return dict(size='small', color=color, shape=shape, position=position)


@pytest.mark.parametrize('sentence', [
    'pink circle', 'circle beside the square', 'middle star', 'red', '',
    'red small circle', 'leftmost', 'circle left of the far square'])
def test_parser_refuses_unknown_wording(sentence):
    objects = [thing((x, x), shape=shape) for shape, x in (
        ('circle', 0.2), ('square', 0.5), ('star', 0.8))]
    with pytest.raises(ValueError, match='unknown noun phrase'):
        referents(sentence, objects, 0)


def test_parser_knows_right_from_wrong():
    objects = [thing((0.2, 0.3)), thing((0.8, 0.3)), thing((0.5, 0.3), 'blue')]
    assert referents('red star', objects, 0) == [0, 1]
    assert referents('the leftmost star', objects, 0) == [0]
    assert referents('red star to the right of the blue one', objects, 0
                     ) == [1]
    assert referents('top star', [objects[0], thing((0.2, 0.9))], 0) == [0]


def test_kinds_of_sentences(written):
    assert set(kinds_of(written.sentences('testA'))) == {'attribute'}
    assert set(kinds_of(written.sentences('testB'))) == {'place', 'relation'}
    kinds = kinds_of(written.sentences('train', 'val'))
    assert set(kinds) == {'attribute', 'place', 'relation'}
    assert min(kinds.values()) >= 0.22 * kinds.total()
    parsed = [parse(text) for text in written.sentences('train')]
    assert {'zone', 'extreme'} <= {kind for kind, *_ in parsed}
    assert {direction for _, _, direction, _ in parsed} == {*AXES, ''}
    mixed = [len(kinds_of(entry['sent'] for entry in ref['sentences'])) > 1
             for ref in written.refs if ref['split'] in ('train', 'val')]
    assert np.mean(mixed) > 0.8


def test_sentences_of_refs(written):
    lengths = Counter()
    for ref in written.refs:
        entries = ref['sentences']
        lengths[len(entries)] += 1
        assert ref['sent_ids'] == [entry['sent_id'] for entry in entries]
        assert len({entry['sent'] for entry in entries}) == len(entries)
        for entry in entries:
            assert re.fullmatch('[a-z]+( [a-z]+)*', entry['sent'])
            assert entry['tokens'] == entry['sent'].split()
            assert entry['raw'].lower().rstrip('.') == entry['sent']
    assert set(lengths) <= {1, 2, 3, 4}
    assert lengths[1] < 0.05 * lengths.total()


def test_ids_and_splits(written):
    instances, refs = written.instances, written.refs
    images, anns = instances['images'], instances['annotations']
    sentences = [entry for ref in refs for entry in ref['sentences']]
    for entries, key in ((images, 'id'), (images, 'file_name'), (anns, 'id'),
                         (refs, 'ref_id'), (refs, 'ann_id'),
                         (sentences, 'sent_id')):
        assert len({entry[key] for entry in entries}) == len(entries), key
    assert list(written.images) == sorted(written.images)
    assert not re.search(r'\d\.\d', json.dumps([images, refs]))
    annotations = {entry['id']: entry for entry in anns}
    categories = {entry['id']: entry['name']
                  for entry in instances['categories']}
    for ref in refs:
        annotation = annotations[ref['ann_id']]
        for key in ('image_id', 'category_id'):
            assert annotation[key] == ref[key]
        assert categories[ref['category_id']] == (
            annotation['attributes']['shape'])
        name = written.images[ref['image_id']]['file_name']
        assert ref['file_name'] == name
        # The split is a part of the name, so no image is in two of them.
        assert re.fullmatch(rf'{ref["split"]}_\d{{6}}\.jpg', name)
    counts = Counter(entry['file_name'].split('_')[0] for entry in images)
    assert counts == dict.fromkeys(SPLITS, NUM_EVAL) | {'train': NUM_TRAIN}
    files = {path.name: path.read_bytes()
             for path in (written.root / 'images').iterdir()}
    assert files.keys() == {entry['file_name'] for entry in images}
    assert len(set(files.values())) == len(files)


def test_objects(written):
    bounds = {'small': (0.0059, 0.0151), 'large': (0.0299, 0.0751)}
    forms, twins = Counter(), []
    for image_id, objects in written.objects.items():
        image = written.images[image_id]
        assert {image['height'], image['width']} <= set(range(192, 241))
        assert 3 <= len(objects) <= 6
        twins.append(len({(item['color'], item['shape'])
                          for item in objects}) < len(objects))
        # An outline and what it covers may share pixels of the edge.
        shared = sum(item['mask'].astype(int) for item in objects) > 1
        assert shared.mean() <= 0.002
        for i, item in enumerate(objects):
            forms[type(item['segmentation'])] += 1
            low, high = bounds[item['size']]
            assert low <= item['mask'].mean() <= high
            assert item['area'] == item['mask'].sum()
            x, y, w, h = cv2.boundingRect(item['mask'].astype(np.uint8))
            assert item['bbox'] == [x, y, w, h] and item['iscrowd'] == 0
            assert all(np.linalg.norm(item['center'] - other['center']) > 18
                       for other in objects[:i])
    assert set(forms) == {list, dict}
    assert forms[dict] >= 0.03 * forms.total()
    assert 0.3 < np.mean(twins) < 0.8  # distractors


def test_masks_match_pixels(written):
    for image_id, objects in written.objects.items():
        name = written.images[image_id]['file_name']
        split, number = Path(name).stem.split('_')
        scene, picture, _ = sample_picture(SEED, split, int(number))
        on_disk = cv2.imread(str(written.root / 'images' / name))
        assert on_disk.shape == picture.shape
        assert np.abs(on_disk.astype(int) - picture).mean() < 8
        hues = cv2.cvtColor(on_disk.astype(np.float32) / 255,
                            cv2.COLOR_BGR2HSV)[..., 0]
        for label, item in enumerate(objects, 1):
            mask, drawn = item['mask'], scene.labels == label
            assert (mask & drawn).sum() / (mask | drawn).sum() >= 0.95
            covered = drawn.sum() < scene.areas[label - 1]
            assert covered == isinstance(item['segmentation'], dict)
            # Distances on the circle, so that 355 degrees are red.
            apart = {color: np.median(np.abs((hues[mask] - hue + 180) % 360
                                             - 180))
                     for color, hue in HUES.items()}
            assert min(apart, key=apart.get) == item['color']


def contents(root):
    return {path.relative_to(root): path.read_bytes()
            for path in root.rglob('*') if path.is_file()}


def test_same_seed_same_bytes(written, tmp_path):
    same, again, other = (tmp_path / name for name in 'abc')
    for root, seed in ((same, SEED), (again, SEED), (other, SEED + 1)):
        write_refshapes(root, 2, 3, seed)
    assert contents(same) == contents(again)
    first, second = contents(same), contents(other)
    assert len(first) == 13 and first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())
    # A picture does not depend on the number of pictures.
    assert {name: first[name] for name in first if name.suffix == '.jpg'
            }.items() <= contents(written.root).items()
    few = Written(same)
    assert {ref['split'] for ref in few.refs} == set(SPLITS)
    for ref in written.refs:
        assert (ref in few.refs) == (ref['image_id'] in few.images)
    for entry in written.instances['annotations']:
        assert (entry in few.instances['annotations']) == (
            entry['image_id'] in few.images)


def test_refuses_bad_arguments(written, tmp_path):
    before = contents(written.root)
    with pytest.raises(FileExistsError, match='exists already'):
        write_refshapes(written.root, 1, 1, 0)
    assert contents(written.root) == before
    for arguments in ((0, 1, 0), (1, 0, 0), (1, 1, -1), (1_000_001, 1, 0)):
        with pytest.raises(ValueError, match='must be'):
            write_refshapes(tmp_path / 'new', *arguments)
    assert not (tmp_path / 'new').exists()


def test_annotations_come_last(tmp_path):
    def interrupted(jobs):
        yield from jobs[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_refshapes(tmp_path, 3, 1, 0, progress=interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ['images']
    assert write_refshapes(tmp_path, 3, 1, 0)['train']['images'] == 3
    assert Written(tmp_path).refs


@pytest.mark.parametrize(('option', 'value', 'message'), [
    ('--num-train', '0', r'num_train \(0\) .* must be from 1'),
    ('--num-train', 'ten', "--num-train: invalid int value: 'ten'"),
    ('--num-eval', '-3', r'num_eval \(-3\) must be from 1'),
    ('--seed', '-1', 'seed must be at least 0, but is -1'),
    ('--out', __file__, 'Not a directory'),
])
def test_tool_refuses(tmp_path, capsys, option, value, message):
    options = {'--out': str(tmp_path / 'out'), '--num-train': '1',
               '--num-eval': '1', '--seed': '0', option: value}
    with pytest.raises(SystemExit) as caught:
        tool.main([f'{name}={text}' for name, text in options.items()])
    errors = capsys.readouterr().err + str(caught.value.code)
    assert re.search(f'error: .*{message}', errors)
    assert not (tmp_path / 'out').exists()


def test_tool_writes(tmp_path, capsys):
    arguments = ['--out', str(tmp_path), '--num-train', '2', '--num-eval', '1']
    tool.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(':')[0] for line in lines] == list(SPLITS)
    assert re.fullmatch(r'train: 2 images, \d+ refs, \d+ sentences', lines[0])
    assert (tmp_path / 'refs(unc).p').is_file()
    with pytest.raises(SystemExit, match='error: .* exists already'):
        tool.main(arguments)
