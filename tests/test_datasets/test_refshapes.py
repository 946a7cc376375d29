# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Tests of the RefShapes generator.

What the sentences say is judged by a parser of its own, from what is on disk.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from cris.datasets.refshapes import sample_picture, write_refshapes

ROOT = Path(__file__).parents[2]
NUM_TRAIN, NUM_EVAL, SEED = 40, 15, 3
SPLITS = ('train', 'val', 'testA', 'testB')
HUES = {'red': 0, 'orange': 28, 'yellow': 54, 'green': 125, 'blue': 222,
        'purple': 284}
# Just below the 8 % of the definition, as positions on disk are rounded.
SLACK = 0.079

NOUN = (r'(?:the )?(?:(?P<size>small|little|large|big) )?'
        r'(?:(?P<color>red|orange|yellow|green|blue|purple) )?'
        r'(?P<head>circle|square|triangle|star|thing|object|shape|one)')
SIDES = {
    'left of': 'left', 'to the left of': 'left', 'right of': 'right',
    'to the right of': 'right', 'above': 'top', 'below': 'bottom',
    'under': 'bottom',
}
EXTREMES = {
    'leftmost': 'left', 'rightmost': 'right', 'topmost': 'top',
    'highest': 'top', 'uppermost': 'top', 'lowest': 'bottom',
    'bottommost': 'bottom', 'furthest to the left': 'left',
    'furthest to the right': 'right', 'closest to the bottom': 'bottom',
}
ZONES = {
    'left': 'left', 'right': 'right', 'top': 'top', 'bottom': 'bottom',
    'on the left': 'left', 'on the far left': 'left', 'on the right': 'right',
    'on the far right': 'right', 'at the top': 'top',
    'at the very top': 'top', 'at the bottom': 'bottom',
    'at the very bottom': 'bottom',
}
AXES = {'left': (0, -1), 'right': (0, 1), 'top': (1, -1), 'bottom': (1, 1)}


def _options(words: dict[str, str]) -> str:
    return '|'.join(sorted(words, key=len, reverse=True))


def _select(noun: str, objects: list[dict[str, Any]]) -> list[int]:
    """Find the indices of the objects that a noun phrase fits."""
    match = re.fullmatch(NOUN, noun)
    if match is None:
        raise ValueError(f'unknown noun phrase: {noun!r}')
    size = {'little': 'small', 'big': 'large'}.get(match['size'],
                                                   match['size'])
    wanted = {'size': size, 'color': match['color']}
    if match['head'] in ('circle', 'square', 'triangle', 'star'):
        wanted['shape'] = match['head']
    wanted = {key: value for key, value in wanted.items() if value}
    return [i for i, item in enumerate(objects)
            if all(item[key] == value for key, value in wanted.items())]


def _parse(sentence: str) -> tuple[str, str, str, str]:
    """Split a sentence into kind, noun phrase, direction and anchor."""
    text = sentence.removeprefix('the ')
    beside = re.fullmatch(rf'(.+?) ({_options(SIDES)}) (.+)', text)
    if beside:
        return 'relation', beside[1], SIDES[beside[2]], beside[3]
    for kind, words in (('extreme', EXTREMES), ('zone', ZONES)):
        before = re.fullmatch(rf'({_options(words)}) (.+)', text)
        after = re.fullmatch(rf'(.+?) ({_options(words)})', text)
        if before:
            return kind, before[2], words[before[1]], ''
        if after:
            return kind, after[1], words[after[2]], ''
    return 'attribute', text, '', ''


def _referents(sentence: str, objects: list[dict[str, Any]],
               slack: float) -> list[int]:
    """Find the objects that a sentence is true of.

    Comparisons ask for more than ``slack`` of the side: with a positive
    value only what is clearly true is true, with a negative one what is not
    clearly false.
    """
    kind, noun, direction, anchor = _parse(sentence)
    fitting = _select(noun, objects)
    if kind == 'attribute':
        return fitting
    axis, sign = AXES[direction]
    where = [sign * item['position'][axis] for item in objects]
    if kind == 'relation':
        anchors = _select(anchor, objects)
        assert len(anchors) == 1, f'ambiguous anchor: {sentence}'
        return [i for i in fitting if i != anchors[0]
                and where[i] - where[anchors[0]] > slack]
    assert len(fitting) >= 2, f'nothing to compare with: {sentence}'
    if kind == 'zone':
        middle = sign * 0.5
        in_zone = [i for i in fitting if where[i] > middle]
        assert len(in_zone) == 1, f'several in the zone: {sentence}'
    return [i for i in fitting if all(
        where[i] - where[other] > slack for other in fitting if other != i)]


def _decode(annotation: dict[str, Any], image: dict[str, Any]) -> np.ndarray:
    segmentation = annotation['segmentation']
    if isinstance(segmentation, list):
        segmentation = mask_utils.merge(mask_utils.frPyObjects(
            segmentation, image['height'], image['width']))
    return mask_utils.decode(segmentation).astype(bool)


class _Written:
    """A set as read from disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.instances = json.loads((root / 'instances.json').read_text())
        self.refs = pickle.loads((root / 'refs(unc).p').read_bytes())
        self.images = {entry['id']: entry
                       for entry in self.instances['images']}
        self.by_image: dict[int, list[dict[str, Any]]] = {}
        self.masks: dict[int, np.ndarray] = {}
        self._described: dict[int, list[dict[str, Any]]] = {}
        for entry in self.instances['annotations']:
            image = self.images[entry['image_id']]
            self.by_image.setdefault(image['id'], []).append(entry)
            self.masks[entry['id']] = _decode(entry, image)

    def objects(self, image_id: int) -> list[dict[str, Any]]:
        """Describe the objects of an image, places from the masks."""
        if image_id in self._described:
            return self._described[image_id]
        described = self._described[image_id] = []
        for entry in self.by_image[image_id]:
            rows, columns = np.nonzero(self.masks[entry['id']])
            height, width = self.masks[entry['id']].shape
            center = columns.mean() + 0.5, rows.mean() + 0.5
            np.testing.assert_allclose(
                center, entry['attributes']['center'], atol=0.01)
            described.append(entry['attributes'] | {
                'id': entry['id'], 'center': center,
                'position': (center[0] / width, center[1] / height)})
        return described

    def sentences(self, *splits: str) -> list[str]:
        """List the sentences of some splits."""
        return [entry['sent'] for ref in self.refs if ref['split'] in splits
                for entry in ref['sentences']]


@pytest.fixture(scope='module')
def written(tmp_path_factory: pytest.TempPathFactory) -> _Written:
    root = tmp_path_factory.mktemp('refshapes')
    write_refshapes(root, NUM_TRAIN, NUM_EVAL, SEED)
    return _Written(root)


def _kinds(sentences: list[str]) -> Counter[str]:
    return Counter({'extreme': 'place', 'zone': 'place'}.get(kind, kind)
                   for kind in (_parse(text)[0] for text in sentences))


@pytest.mark.parametrize('slack', [-SLACK, 0, SLACK])
def test_every_sentence_is_true_of_its_object_only(written: _Written,
                                                   slack: float) -> None:
    for ref in written.refs:
        objects = written.objects(ref['image_id'])
        for entry in ref['sentences']:
            found = _referents(entry['sent'], objects, slack)
            assert [objects[i]['id'] for i in found] == [ref['ann_id']], (
                ref['file_name'], entry['sent'])


def test_relations_run_mainly_along_their_axis(written: _Written) -> None:
    for ref in written.refs:
        objects = written.objects(ref['image_id'])
        target = next(item for item in objects if item['id'] == ref['ann_id'])
        for entry in ref['sentences']:
            kind, _, direction, anchor = _parse(entry['sent'])
            if kind == 'relation':
                other = objects[_select(anchor, objects)[0]]
                offset = np.abs(np.subtract(target['center'],
                                            other['center']))
                axis = AXES[direction][0]
                assert offset[axis] >= offset[1 - axis] - 0.02


@pytest.mark.parametrize('sentence', [
    'pink circle', 'circle beside the square', 'middle star', 'red', '',
    'red small circle', 'leftmost', 'circle left of the far square'])
def test_parser_refuses_unknown_wording(sentence: str) -> None:
    objects = [
        {'size': 'small', 'color': 'red', 'shape': shape,
         'position': (place, place)}
        for shape, place in (('circle', 0.2), ('square', 0.5), ('star', 0.8))]
    with pytest.raises(ValueError, match='unknown noun phrase'):
        _referents(sentence, objects, 0)


def test_parser_knows_right_from_wrong() -> None:
    objects = [{'size': 'small', 'color': color, 'shape': 'star',
                'position': (x, 0.3)}
               for color, x in (('red', 0.2), ('red', 0.8), ('blue', 0.5))]
    assert _referents('red star', objects, 0) == [0, 1]
    assert _referents('the leftmost star', objects, 0) == [0]
    assert _referents('red star to the right of the blue one',
                      objects, 0) == [1]
    assert _referents('top star', objects[:1] + [
        objects[1] | {'position': (0.2, 0.9)}], 0) == [0]


def test_kinds_of_sentences(written: _Written) -> None:
    assert set(_kinds(written.sentences('testA'))) == {'attribute'}
    assert set(_kinds(written.sentences('testB'))) == {'place', 'relation'}
    kinds = _kinds(written.sentences('train', 'val'))
    assert set(kinds) == {'attribute', 'place', 'relation'}
    assert min(kinds.values()) >= 0.22 * kinds.total()
    zones = Counter(_parse(text)[0] for text in written.sentences('train'))
    assert zones['zone'] > 0 and zones['extreme'] > 0
    assert {direction for text in written.sentences('train')
            if (direction := _parse(text)[2])} == set(AXES)


def test_refs_mix_kinds(written: _Written) -> None:
    mixed = [len(_kinds([entry['sent'] for entry in ref['sentences']])) > 1
             for ref in written.refs if ref['split'] in ('train', 'val')]
    assert np.mean(mixed) > 0.8


def test_sentences_of_refs(written: _Written) -> None:
    lengths = Counter()
    for ref in written.refs:
        entries = ref['sentences']
        lengths[len(entries)] += 1
        assert ref['sent_ids'] == [entry['sent_id'] for entry in entries]
        texts = [entry['sent'] for entry in entries]
        assert len(set(texts)) == len(texts)
        for entry in entries:
            assert entry['sent'] == entry['sent'].lower().strip()
            assert re.fullmatch('[a-z ]+', entry['sent'])
            assert entry['tokens'] == entry['sent'].split()
            assert entry['raw'].lower().rstrip('.') == entry['sent']
    assert set(lengths) <= {1, 2, 3, 4}
    assert sum(lengths[n] for n in (2, 3, 4)) > 0.95 * lengths.total()


def test_ids_and_splits(written: _Written) -> None:
    instances, refs = written.instances, written.refs
    for entries, key in ((instances['images'], 'id'),
                         (instances['images'], 'file_name'),
                         (instances['annotations'], 'id'), (refs, 'ref_id'),
                         (refs, 'ann_id'),
                         ([entry for ref in refs
                           for entry in ref['sentences']], 'sent_id')):
        values = [entry[key] for entry in entries]
        assert len(set(values)) == len(values), key
    annotations = {entry['id']: entry for entry in instances['annotations']}
    categories = {entry['id']: entry['name']
                  for entry in instances['categories']}
    for ref in refs:
        annotation = annotations[ref['ann_id']]
        image = written.images[ref['image_id']]
        assert annotation['image_id'] == ref['image_id']
        assert annotation['category_id'] == ref['category_id']
        assert categories[ref['category_id']] == (
            annotation['attributes']['shape'])
        assert ref['file_name'] == image['file_name']
        # The split is a part of the name, so no image is in two of them.
        assert re.fullmatch(rf'{ref["split"]}_\d{{6}}\.jpg',
                            ref['file_name'])
    counts = Counter(entry['file_name'].split('_')[0]
                     for entry in instances['images'])
    assert counts == dict.fromkeys(SPLITS, NUM_EVAL) | {'train': NUM_TRAIN}
    files = {path.name for path in (written.root / 'images').iterdir()}
    assert files == {entry['file_name'] for entry in instances['images']}
    pixels = {(written.root / 'images' / name).read_bytes() for name in files}
    assert len(pixels) == len(files)


def test_objects(written: _Written) -> None:
    bounds = {'small': (0.0059, 0.0151), 'large': (0.0299, 0.0751)}
    forms = Counter()
    for image_id, entries in written.by_image.items():
        image = written.images[image_id]
        assert 192 <= min(image['height'], image['width'])
        assert max(image['height'], image['width']) <= 240
        assert 3 <= len(entries) <= 6
        stack = np.stack([written.masks[entry['id']] for entry in entries])
        # An outline and what it covers may share pixels of the edge.
        assert (stack.sum(0) > 1).sum() <= 0.002 * stack[0].size
        for entry, mask in zip(entries, stack, strict=True):
            forms[type(entry['segmentation'])] += 1
            low, high = bounds[entry['attributes']['size']]
            assert low <= mask.mean() <= high
            assert entry['area'] == mask.sum()
            rows, columns = np.nonzero(mask)
            assert entry['bbox'] == [
                columns.min(), rows.min(), np.ptp(columns) + 1,
                np.ptp(rows) + 1]
            assert entry['iscrowd'] == 0
        centers = np.array([entry['attributes']['center']
                            for entry in entries])
        for i, center in enumerate(centers):
            rest = np.delete(centers, i, 0)
            assert np.linalg.norm(rest - center, axis=1).min() > 18
    assert set(forms) == {list, dict}
    assert forms[dict] >= 0.03 * forms.total()


def test_scenes_have_distractors(written: _Written) -> None:
    twins = [len({(entry['attributes']['color'],
                   entry['attributes']['shape']) for entry in entries})
             < len(entries) for entries in written.by_image.values()]
    assert 0.3 < np.mean(twins) < 0.8


def test_masks_match_pixels(written: _Written) -> None:
    for image_id, entries in written.by_image.items():
        name = written.images[image_id]['file_name']
        split, number = Path(name).stem.split('_')
        scene, picture, _ = sample_picture(SEED, split, int(number))
        on_disk = cv2.imread(str(written.root / 'images' / name))
        assert on_disk.shape == picture.shape
        assert np.abs(on_disk.astype(int) - picture).mean() < 8
        hues = cv2.cvtColor(on_disk.astype(np.float32) / 255,
                            cv2.COLOR_BGR2HSV)[..., 0]
        for label, entry in enumerate(entries, 1):
            mask, drawn = written.masks[entry['id']], scene.labels == label
            assert (mask & drawn).sum() / (mask | drawn).sum() >= 0.95
            covered = drawn.sum() < scene.areas[label - 1]
            assert covered == isinstance(entry['segmentation'], dict)
            # Distances on the circle, so that 355 degrees are red.
            apart = {color: np.median(np.abs((hues[mask] - hue + 180) % 360
                                             - 180))
                     for color, hue in HUES.items()}
            assert min(apart, key=apart.get) == entry['attributes']['color']


def _bytes(root: Path, *names: str) -> list[bytes]:
    return [(root / name).read_bytes() for name in names]


def test_same_seed_same_bytes(written: _Written, tmp_path: Path) -> None:
    names = ('instances.json', 'refs(unc).p', 'images/train_000007.jpg',
             'images/testB_000000.jpg')
    write_refshapes(tmp_path / 'same', NUM_TRAIN, NUM_EVAL, SEED)
    assert _bytes(tmp_path / 'same', *names) == _bytes(written.root, *names)
    write_refshapes(tmp_path / 'other', 8, 1, SEED + 1)
    for one, other in zip(_bytes(tmp_path / 'other', *names),
                          _bytes(written.root, *names), strict=True):
        assert one != other


def test_val_does_not_depend_on_num_train(written: _Written,
                                          tmp_path: Path) -> None:
    write_refshapes(tmp_path, 1, NUM_EVAL, SEED)
    other = _Written(tmp_path)
    for split in ('val', 'testA', 'testB'):
        one, two = ([ref for ref in data.refs if ref['split'] == split]
                    for data in (written, other))
        assert one == two
    name = f'images/val_{NUM_EVAL - 1:06d}.jpg'
    assert _bytes(tmp_path, name) == _bytes(written.root, name)


def test_numbers_are_plain(written: _Written) -> None:
    def leaves(value: Any) -> Any:
        if isinstance(value, dict):
            value = [*value.keys(), *value.values()]
        if isinstance(value, list):
            for part in value:
                yield from leaves(part)
        else:
            yield type(value)

    assert set(leaves(written.refs)) == {str, int}
    for one, two in pairwise(written.instances['images']):
        assert type(one['id']) is int and one['id'] < two['id']


def test_refuses_bad_arguments(written: _Written, tmp_path: Path) -> None:
    before = _bytes(written.root, 'instances.json', 'refs(unc).p')
    with pytest.raises(FileExistsError, match='exists already'):
        write_refshapes(written.root, 1, 1, 0)
    assert _bytes(written.root, 'instances.json', 'refs(unc).p') == before
    for arguments in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(ValueError, match='must be'):
            write_refshapes(tmp_path / 'new', *arguments)
    assert not (tmp_path / 'new').exists()


def test_annotations_come_last(tmp_path: Path) -> None:
    def interrupted(jobs: list[Any]) -> Any:
        yield from jobs[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_refshapes(tmp_path, 3, 1, 0, progress=interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ['images']
    summary = write_refshapes(tmp_path, 3, 1, 0)
    assert summary['train']['images'] == 3
    assert _Written(tmp_path).refs


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    path = ROOT / 'tools' / 'dataset_converters' / 'refshapes.py'
    spec = importlib.util.spec_from_file_location('refshapes_tool', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(('option', 'value', 'message'), [
    ('--num-train', '0', "must be an integer of at least 1, but is '0'"),
    ('--num-train', 'ten', "must be an integer of at least 1, but is 'ten'"),
    ('--num-eval', '-3', "must be an integer of at least 1, but is '-3'"),
    ('--seed', '-1', "must be an integer of at least 0, but is '-1'"),
    ('--out', __file__, 'is not a directory'),
])
def test_tool_refuses(tool: ModuleType, tmp_path: Path,
                      capsys: pytest.CaptureFixture[str], option: str,
                      value: str, message: str) -> None:
    options = {'--out': str(tmp_path / 'out'), '--num-train': '1',
               '--num-eval': '1', '--seed': '0', option: value}
    with pytest.raises(SystemExit) as caught:
        tool.main([f'{name}={text}' for name, text in options.items()])
    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert f'argument {option}: ' in errors and message in errors
    assert not (tmp_path / 'out').exists()


def test_tool_writes(tool: ModuleType, tmp_path: Path,
                     capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ['--out', str(tmp_path), '--num-train', '2', '--num-eval',
                 '1', '--seed', '0']
    tool.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(':')[0] for line in lines] == list(SPLITS)
    assert re.fullmatch(r'train: 2 images, \d+ refs, \d+ sentences', lines[0])
    assert (tmp_path / 'refs(unc).p').is_file()
    with pytest.raises(SystemExit, match='error: .* exists already'):
        tool.main(arguments)
