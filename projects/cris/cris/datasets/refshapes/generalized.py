# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Generalised expressions of RefShapes: true of no, one or several objects.

Those of one object are the ones of expressions.py. The others, with the same
noun phrases, sides and margin:

* *None, easy* ('the purple star'): no object has a colour or a shape that the
  noun phrase names. It may go on with a place or a relation.
* *None, hard*: an object differs in one attribute only from what the noun
  phrase names ('small red circle', where the red circle is large); or objects
  fit the noun phrase, but all of them lie clearly on the other side of the
  picture or of the anchor.
* *Many*: all objects that fit the noun phrase ('all small circles'), or those
  of them that lie in one half of the picture ('both squares at the top') or
  on one side of the anchor ('everything left of the star').

An object lies on a side if its centre is beyond the line by the margin:
``MARGIN`` from an anchor's centre, half of it from the middle of the picture.
No expression is made for which an object that fits is closer to the line.
"""
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .expressions import (
    ATTRIBUTE,
    DIRECTIONS,
    MARGIN,
    PLACE,
    RELATION_WORDS,
    SPLIT_KINDS,
    ZONE_WORDS,
    Item,
    Meaning,
    Phrase,
    matching,
    phrases_of,
    word_meaning,
    word_phrase,
)
from .scenes import COLORS, SHAPES, SIZE_BOUNDS

NONE_EASY, NONE_HARD, ONE, MANY = 'none-easy', 'none-hard', 'one', 'many'
_VALUES = (tuple(SIZE_BOUNDS), tuple(COLORS), SHAPES)
_NUMBERS = {2: 'two', 3: 'three', 4: 'four', 5: 'five', 6: 'six'}
_PLAIN = Phrase(None, None, None)


def referents(meaning: Meaning, items: Sequence[Item],
              sides: tuple[int, int]) -> list[int] | None:
    """Indices of the items that an expression is true of.

    Args:
        meaning: Not a superlative, unless nothing fits its noun phrase.
        items: All objects of the picture.
        sides: Width and height of the picture in pixels.

    Returns:
        The indices, or None if that is not clear.
    """
    fitting = matching(meaning.target, items)
    if not meaning.direction:
        return fitting
    axis, sign = DIRECTIONS[meaning.direction]
    line, margin = sides[axis] / 2, MARGIN * sides[axis] / 2
    if meaning.anchor is not None:
        anchors = matching(meaning.anchor, items)
        if len(anchors) != 1:
            return None
        fitting = [i for i in fitting if i != anchors[0]]
        line, margin = items[anchors[0]].center[axis], 2 * margin
    elif fitting and not meaning.zone:
        return None
    beyond = {i: sign * (items[i].center[axis] - line) for i in fitting}
    if any(abs(distance) < margin for distance in beyond.values()):
        return None
    return [i for i in fitting if beyond[i] > 0]


def _places(phrase: Phrase) -> list[Meaning]:
    return [Meaning(phrase, side, zone=True) for side in DIRECTIONS]


def _relations(phrase: Phrase, items: Sequence[Item]) -> list[Meaning]:
    """All relations of a noun phrase to the anchors of the picture."""
    anchors = [
        name for i, item in enumerate(items)
        # A bare 'thing', the last phrase, is not an anchor.
        for name in phrases_of(item)[:-1] if matching(name, items) == [i]]
    return [Meaning(phrase, side, anchor=name)
            for name in dict.fromkeys(anchors) for side in DIRECTIONS]


def _said_of(phrase: Phrase, items: Sequence[Item],
             kind: str) -> list[Meaning]:
    """Expressions of one kind with a noun phrase, true or not."""
    if kind == ATTRIBUTE:
        return [Meaning(phrase)]
    if kind == PLACE:
        return _places(phrase)
    return _relations(phrase, items)


def easy_phrases(items: Sequence[Item]) -> list[Phrase]:
    """Noun phrases whose colour and shape no object has."""
    colors = [c for c in _VALUES[1] if all(c != i.color for i in items)]
    shapes = [s for s in _VALUES[2] if all(s != i.shape for i in items)]
    return [Phrase(size, color, shape)
            for size in (None, *_VALUES[0]) for color in (None, *colors)
            for shape in (None, *shapes) if color or shape]


def hard_phrases(items: Sequence[Item]) -> list[Phrase]:
    """Noun phrases of two or three attributes that no object has, but one has
    all of them but one."""
    found = {
        phrase._replace(**{field: value})
        for item in items for phrase in phrases_of(item)
        if _length(phrase) > 1
        for field, values in zip(Phrase._fields, _VALUES, strict=True)
        if getattr(phrase, field) for value in values}
    return sorted((phrase for phrase in found if not matching(phrase, items)),
                  key=str)


def draw_none(items: Sequence[Item], sides: tuple[int, int], easy: bool,
              kinds: Sequence[str],
              rng: np.random.Generator) -> Meaning | None:
    """Draw an expression that is true of no object.

    Args:
        items, sides: As of :func:`referents`.
        easy: Whether it is easy or hard.
        kinds: Of expressions.py, to choose from.
        rng: Source of the choices.

    Returns:
        The meaning, or None if none was found in some tries.
    """
    absent = easy_phrases(items) if easy else hard_phrases(items)
    present = list(dict.fromkeys(
        phrase for item in items for phrase in phrases_of(item)))
    for _ in range(10):
        kind = kinds[rng.integers(len(kinds))]
        wrong_side = not easy and kind != ATTRIBUTE and rng.random() < 0.5
        phrases = present if wrong_side else absent
        if not phrases:
            continue
        meanings = _said_of(_draw_phrase(phrases, rng), items, kind)
        if easy and kind == PLACE:  # superlatives, too
            meanings += [meaning._replace(zone=False) for meaning in meanings]
        meanings = [m for m in meanings if referents(m, items, sides) == []]
        if meanings:
            return meanings[rng.integers(len(meanings))]
    return None


def find_many(items: Sequence[Item], sides: tuple[int, int],
              kinds: Sequence[str]) -> dict[tuple[int, ...], list[Meaning]]:
    """All expressions that are true of several objects, by these objects.

    Arguments as of :func:`draw_none`.
    """
    found: dict[tuple[int, ...], list[Meaning]] = {}
    present = dict.fromkeys(
        phrase for item in items for phrase in phrases_of(item))
    for phrase in present:
        if len(matching(phrase, items)) < 2:
            continue
        for kind in kinds:
            for meaning in _said_of(phrase, items, kind):
                objects = tuple(referents(meaning, items, sides) or ())
                if len(objects) > 1:
                    found.setdefault(objects, []).append(meaning)
    return found


def _draw_phrase(phrases: Sequence[Phrase],
                 rng: np.random.Generator) -> Phrase:
    """Draw the number of attributes first: most noun phrases are long."""
    lengths = sorted({_length(phrase) for phrase in phrases})
    length = lengths[rng.integers(len(lengths))]
    phrases = [phrase for phrase in phrases if _length(phrase) == length]
    return phrases[rng.integers(len(phrases))]


def _length(phrase: Phrase) -> int:
    return sum(map(bool, phrase))


def word_many(meaning: Meaning, count: int, rng: np.random.Generator) -> str:
    """Put the meaning of an expression for ``count`` objects into words."""
    if meaning.target == _PLAIN and meaning.direction and rng.random() < 0.5:
        text = 'everything'
    else:
        noun = word_phrase(meaning.target, rng)
        forms = ['all {}s', 'all the {}s', 'the {}s', '{}s', 'every {}']
        forms += [f'the {_NUMBERS[count]} {{}}s']
        forms += ['both {}s'] * 2 if count == 2 else [
            f'all {_NUMBERS[count]} {{}}s']
        text = rng.choice(forms).format(noun)
    if meaning.anchor is not None:
        article = 'the ' if rng.random() < 0.8 else ''
        anchor = article + word_phrase(meaning.anchor, rng, is_anchor=True)
        pattern = rng.choice(RELATION_WORDS[meaning.direction])
        return pattern.format(text, anchor)
    if meaning.direction:  # not 'left both squares'
        patterns = [words for words in ZONE_WORDS[meaning.direction]
                    if words.startswith('{}')]
        return rng.choice(patterns).format(text)
    return text


def word_none(meaning: Meaning, rng: np.random.Generator) -> str:
    """Put the meaning of an expression for no object into words, as if it
    were for one or, a quarter of them, for all."""
    if rng.random() < 0.75 or (meaning.direction and not meaning.zone
                               and meaning.anchor is None):
        return word_meaning(meaning, rng)
    # 'Both' and numbers would presuppose objects.
    text = word_many(meaning, 2, rng)
    while any(word in text.split() for word in ('both', 'two')):
        text = word_many(meaning, 2, rng)
    return text


def make_generalized_refs(annotations: Sequence[dict[str, Any]],
                          image: dict[str, Any], refs: Sequence[dict],
                          split: str,
                          rng: np.random.Generator) -> list[dict[str, Any]]:
    """The refs of a picture in gRefCOCO's layout, with a ``kind`` each.

    Those of one object are ``refs``. Then come one ref without an object that
    is easy and one that is hard, of 2 to 4 sentences each, and up to two refs
    of several objects, of up to 3 sentences each.

    Args:
        annotations, image, split: As of :func:`.expressions.make_refs`.
        refs: What that function returned.
        rng: Source of the wording.
    """
    items = [Item(**annotation['attributes']) for annotation in annotations]
    sides = image['width'], image['height']
    ids = [annotation['id'] for annotation in annotations]
    kinds = SPLIT_KINDS[split]
    made: list[tuple[str, list[int], list[str]]] = []
    for number in (NONE_EASY, NONE_HARD):
        drawn = [draw_none(items, sides, number == NONE_EASY, kinds, rng)
                 for _ in range(8)]
        sentences = _different(
            (word_none(meaning, rng) for meaning in drawn if meaning),
            int(rng.integers(2, 5)))
        made.append((number, [], sentences))
    several = find_many(items, sides, kinds)
    groups = list(several)
    for i in rng.permutation(len(groups))[:2]:
        objects, meanings = groups[i], several[groups[i]]
        # As often without a relation as with one.
        pools = [pool for pool in (
            [m for m in meanings if m.anchor is None],
            [m for m in meanings if m.anchor is not None]) if pool]
        drawn = []
        for _ in range(8):
            pool = pools[rng.integers(len(pools))]
            phrase = _draw_phrase([m.target for m in pool], rng)
            pool = [m for m in pool if m.target == phrase]
            drawn.append(pool[rng.integers(len(pool))])
        made.append((MANY, list(objects), _different(
            (word_many(meaning, len(objects), rng) for meaning in drawn), 3)))
    found = [dict(ref, ann_id=[ref['ann_id']], kind=ONE) for ref in refs]
    # Objects have the numbers 0 to 5 in their picture, these refs 6 to 9.
    for slot, (kind, targets, sentences) in enumerate(made, 6):
        if not sentences:
            continue
        number = image['id'] * 10 + slot
        entries = [{'sent_id': number * 10 + i, 'tokens': text.split(),
                    'raw': text, 'sent': text}
                   for i, text in enumerate(sentences)]
        found.append({
            'ref_id': number,
            'ann_id': [ids[i] for i in targets] or [-1],
            'image_id': image['id'], 'split': split, 'kind': kind,
            'file_name': image['file_name'],
            'sent_ids': [entry['sent_id'] for entry in entries],
            'sentences': entries})
    return found


def _different(texts: Iterable[str], count: int) -> list[str]:
    """The first ``count`` different texts."""
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(text.removeprefix('the '), text)
        if len(found) == count:
            break
    return list(found.values())
