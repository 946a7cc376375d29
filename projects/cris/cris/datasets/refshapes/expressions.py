# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Referring expressions of RefShapes: from a scene to true sentences.

An expression is true of exactly one object, and clearly so. Positions are the
centres of the visible masks; the margin is ``MARGIN`` (8 %) of the picture's
side along the axis (width for left and right, height for top and bottom).

* A *noun phrase* is an optional size, an optional colour and a shape or a
  general head ('thing', 'one'). It matches the objects that have all that it
  names. Sizes are the two classes small and large, not comparisons.
* *Attribute* ('small red circle'): the noun phrase matches one object only.
* *Place, superlative* ('leftmost square', 'square furthest to the left'):
  the noun phrase matches several objects, and the target comes before all
  others by the margin.
* *Place, zone* ('triangle at the bottom', 'square on the far left'): besides,
  the target lies in that half of the picture and all other matching objects
  in the opposite half.
* *Relation* ('circle left of the blue square'): the anchor phrase is unique.
  The target lies on the named side of the anchor by the margin, and its offset
  along the axis (pixels) is no smaller than that across. Every other object
  that the target phrase matches, except the anchor, lies on the opposite side
  by the margin.
"""
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

ATTRIBUTE, PLACE, RELATION = KINDS = ('attribute', 'place', 'relation')
MARGIN = 0.08
SPLIT_KINDS = {'train': KINDS, 'val': KINDS, 'testA': (ATTRIBUTE,),
               'testB': (PLACE, RELATION)}
# They make the shares of the kinds about equal.
KIND_WEIGHTS = {ATTRIBUTE: 5.0, PLACE: 1.0, RELATION: 5.0}

# Direction -> axis (0 is x, 1 is y) and sign.
DIRECTIONS = {'left': (0, -1), 'right': (0, 1), 'top': (1, -1),
              'bottom': (1, 1)}
SIZE_WORDS = {'small': ('small', 'small', 'little'),
              'large': ('large', 'large', 'big')}
SUPERLATIVE_WORDS = {
    'left': ('leftmost {}', 'leftmost {}', '{} furthest to the left'),
    'right': ('rightmost {}', 'rightmost {}', '{} furthest to the right'),
    'top': ('topmost {}', 'highest {}', 'uppermost {}'),
    'bottom': ('lowest {}', 'bottommost {}', '{} closest to the bottom')}
ZONE_WORDS = {
    'left': ('{} on the far left', '{} on the left', 'left {}'),
    'right': ('{} on the far right', '{} on the right', 'right {}'),
    'top': ('{} at the top', '{} at the very top', 'top {}'),
    'bottom': ('{} at the bottom', '{} at the very bottom', 'bottom {}')}
RELATION_WORDS = {
    'left': ('{} left of {}', '{} to the left of {}'),
    'right': ('{} right of {}', '{} to the right of {}'),
    'top': ('{} above {}',),
    'bottom': ('{} below {}', '{} below {}', '{} under {}')}


class Phrase(NamedTuple):
    """Meaning of a noun phrase; ``None`` leaves an attribute out."""
    size: str | None
    color: str | None
    shape: str | None


class Item(NamedTuple):
    """An object: its attributes and its centre (x, y) in pixels."""
    size: str
    color: str
    shape: str
    center: tuple[float, float]


class Meaning(NamedTuple):
    """Meaning of an expression; only a relation has an anchor.

    The direction, a key of ``DIRECTIONS``, is empty for an attribute. A place
    is a zone or a superlative.
    """
    target: Phrase
    direction: str = ''
    zone: bool = False
    anchor: Phrase | None = None


def phrases_of(item: Item) -> list[Phrase]:
    """All noun phrases that match an item, the bare 'thing' last."""
    return [Phrase(*words) for words in product(
        *((word, None) for word in item[:3]))]


def matching(phrase: Phrase, items: Sequence[Item]) -> list[int]:
    """Indices of the items that a noun phrase matches."""
    size, color, shape = phrase
    return [i for i, item in enumerate(items)
            if size in (None, item.size) and color in (None, item.color)
            and shape in (None, item.shape)]


def place_meanings(items: Sequence[Item], index: int,
                   sides: tuple[int, int]) -> list[Meaning]:
    """Place expressions that are clearly true of one item only.

    Args:
        items: All objects of the picture.
        index: Index of the target.
        sides: Width and height of the picture in pixels.
    """
    found = []
    positions = np.array([item.center for item in items]) / sides - 0.5
    for phrase in phrases_of(items[index]):
        others = [i for i in matching(phrase, items) if i != index]
        if not others:
            continue
        for direction, (axis, sign) in DIRECTIONS.items():
            # It grows towards the direction and is 0 in the middle.
            along = sign * positions[:, axis]
            mine, next_best = along[index], along[others].max()
            if mine - next_best >= MARGIN:
                found.append(Meaning(phrase, direction))
                if mine > 0 > next_best:
                    found.append(Meaning(phrase, direction, zone=True))
    return found


def relation_meanings(items: Sequence[Item], index: int,
                      sides: tuple[int, int]) -> list[Meaning]:
    """Relation expressions that are clearly true of one item only.

    Arguments as of :func:`place_meanings`. If some expressions need the
    relation, because the target phrase alone matches several objects, only
    those are returned.
    """
    needed, spare = [], []
    centers = np.array([item.center for item in items])
    for other, anchor in enumerate(items):
        # A bare 'thing', the last phrase, is not an anchor.
        names = [phrase for phrase in phrases_of(anchor)[:-1]
                 if matching(phrase, items) == [other]]
        if other == index or not names:
            continue
        offsets = centers - centers[other]
        for direction, (axis, sign) in DIRECTIONS.items():
            along, margin = sign * offsets[:, axis], MARGIN * sides[axis]
            across = abs(offsets[index, 1 - axis])
            if along[index] < max(margin, across):
                continue
            for target in phrases_of(items[index]):
                same = matching(target, items)
                if all(-along[i] >= margin for i in same
                       if i not in (index, other)):
                    found = needed if len(same) > 1 else spare
                    found += [Meaning(target, direction, anchor=name)
                              for name in names]
    return needed or spare


def word_phrase(phrase: Phrase, rng: np.random.Generator,
                is_anchor: bool = False) -> str:
    """Put a noun phrase into words, e.g. 'small red circle' or 'thing'.

    An anchor is never a 'one', which would seem to repeat the noun before.
    """
    words = [rng.choice(SIZE_WORDS[phrase.size])] if phrase.size else []
    if phrase.color:
        words.append(phrase.color)
    heads = ['thing', 'object', 'shape']
    if words and not is_anchor:
        heads += ['one', 'one']
    words.append(phrase.shape or rng.choice(heads))
    return ' '.join(words)


def word_meaning(meaning: Meaning, rng: np.random.Generator) -> str:
    """Put a meaning into words, in lower case without punctuation."""
    text = word_phrase(meaning.target, rng)
    if meaning.anchor is not None:
        article = 'the ' if rng.random() < 0.8 else ''
        anchor = article + word_phrase(meaning.anchor, rng, is_anchor=True)
        pattern = rng.choice(RELATION_WORDS[meaning.direction])
        text = pattern.format(text, anchor)
    elif meaning.direction:
        words = ZONE_WORDS if meaning.zone else SUPERLATIVE_WORDS
        text = rng.choice(words[meaning.direction]).format(text)
    return f'the {text}' if rng.random() < 0.3 else text


def draw_meaning(meanings: list[Meaning], rng: np.random.Generator) -> Meaning:
    """Draw the target phrase, often one with a shape, then the rest.

    A uniform draw would favour target phrases that go with many anchors.
    """
    targets = list(dict.fromkeys(meaning.target for meaning in meanings))
    shapes = [target for target in targets if target.shape]
    if shapes and rng.random() < 0.4:
        targets = shapes
    target = targets[rng.integers(len(targets))]
    fitting = [meaning for meaning in meanings if meaning.target == target]
    return fitting[rng.integers(len(fitting))]


def sentences_for(items: Sequence[Item], index: int, sides: tuple[int, int],
                  kinds: Sequence[str],
                  rng: np.random.Generator) -> list[str]:
    """Write different sentences of some ``KINDS`` about one object.

    Further arguments as of :func:`place_meanings`. There are 2 to 4 sentences,
    of as many kinds as possible; fewer where the wording allows no more, and
    none if the object cannot be told from the others.
    """
    pools = {ATTRIBUTE: [Meaning(phrase) for phrase in phrases_of(items[index])
                         if matching(phrase, items) == [index]],
             PLACE: place_meanings(items, index, sides),
             RELATION: relation_meanings(items, index, sides)}
    usable = [kind for kind in kinds if pools[kind]]
    if not usable:
        return []
    wanted = int(rng.integers(2, 5))
    weights = np.array([KIND_WEIGHTS[kind] for kind in usable])
    order = rng.choice(usable, len(usable), replace=False,
                       p=weights / weights.sum())
    sentences: list[str] = []
    # Some objects allow one or two wordings only, so the turns are limited.
    for turn in range(12):
        pool = pools[order[turn % len(order)]]
        sentence = word_meaning(draw_meaning(pool, rng), rng)
        known = {text.removeprefix('the ') for text in sentences}
        if sentence.removeprefix('the ') not in known:
            sentences.append(sentence)
        if len(sentences) == wanted:
            break
    return sentences


def make_refs(annotations: Sequence[dict[str, Any]], image: dict[str, Any],
              split: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """One ref for each object that can be told from the others.

    Args:
        annotations: All COCO annotations of the picture.
        image: COCO entry of the picture.
        split: Key of ``SPLIT_KINDS``.
        rng: Source of the wording.
    """
    items = [Item(**annotation['attributes']) for annotation in annotations]
    sides = image['width'], image['height']
    refs = []
    for index, annotation in enumerate(annotations):
        number = annotation['id']
        sentences = [
            {'sent_id': number * 10 + i, 'tokens': sent.split(),
             'raw': f'{sent.capitalize()}.' if rng.random() < 0.2 else sent,
             'sent': sent}
            for i, sent in enumerate(sentences_for(
                items, index, sides, SPLIT_KINDS[split], rng))]
        if sentences:
            refs.append({
                'ref_id': number, 'ann_id': number, 'image_id': image['id'],
                'category_id': annotation['category_id'], 'split': split,
                'file_name': image['file_name'],
                'sent_ids': [entry['sent_id'] for entry in sentences],
                'sentences': sentences})
    return refs
