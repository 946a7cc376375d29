# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Ref-L4's review of the RefCOCO sets: which expressions are wrong.

A reviewed file is ``dict(annotation=[entry, ...])``, an entry for each
expression of a split, where ``caption_quality`` 0 marks a wrong one.
"""
import os.path as osp
import reprlib
from collections.abc import Sequence
from typing import NamedTuple

from torch.utils.data import Dataset

from cris.io.files import FileError, load_json

from .matching import expressions_of, fields_of, match, ways_to_match

_LISTED = 3  # entries or expressions that a message names


class Review(NamedTuple):
    """Keys (see matching.py) of the expressions that are marked as wrong, and
    a line that says how many entries matched, and by what."""
    wrong: set[tuple]
    summary: str


def read_reviewed(path: str) -> list[dict]:
    """Entries of a reviewed file.

    Raises:
        FileNotFoundError: If it does not exist.
        FileError: If it is not JSON or not a reviewed file, or its entries
            lack caption_quality or what :func:`match_reviewed` needs.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(f'{path} does not exist: prepare.py get '
                                'ref-l4 --out DIR downloads such files')
    content = load_json(path)
    found = content if isinstance(content, dict) else {}
    entries = found.get('annotation', found.get('annotations'))
    if not isinstance(entries, list) or not entries:
        raise FileError(f'{path} is not a reviewed file of Ref-L4: it has no '
                        'list "annotation" with entries')
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise FileError(f'{path}, entry {i} is {reprlib.repr(entry)}, not '
                            'a dict')
        quality = entry.get('caption_quality')
        if not isinstance(quality, (int, float)):
            raise FileError(f'{path}, entry {i}: its caption_quality is '
                            f'{reprlib.repr(quality)}, not a number')
    if not ways_to_match([fields_of(entry) for entry in entries]):
        raise FileError(
            f'{path} names its expressions in no known way: each entry needs '
            'sent_id; ref_id or ann_id, and caption; or file_name or '
            f'image_id, bbox, and caption. The first has {list(entries[0])}')
    return entries


def match_reviewed(path: str, entries: Sequence[dict], dataset: Dataset,
                   allow_unmatched: bool = False) -> Review:
    """Find the expressions of a test set that reviewers marked as wrong.

    An entry stands for one expression. Of the ways in matching.py that the
    file allows, the first of those that match the most entries is taken.

    Args:
        path (str): The file, for messages.
        entries (Sequence[dict]): Of :func:`read_reviewed`.
        dataset (Dataset): The test set, with ReferDatasets in it.
        allow_unmatched (bool): Whether entries may lack an expression and
            expressions an entry; these are not wrong. Defaults to False.

    Raises:
        ValueError: If there are such entries or expressions, or all
            expressions are marked as wrong.
    """
    items = [fields_of(entry) for entry in entries]
    expressions = expressions_of(dataset, all('box' in i for i in items))
    found = {way: match(items, expressions, *how)
             for way, how in ways_to_match(items).items()}
    way = max(found, key=lambda way: len(found[way]))
    pairs, total = found[way], len(expressions)
    strays = [f'entry {i} {reprlib.repr(entry)}'
              for i, entry in enumerate(entries) if i not in pairs]
    matched = set(pairs.values())
    unseen = [f'{text!r} (ref {ref_id} of {img_path})' for img_path, ref_id,
              _, text in (expressions[k]['key'] for k in range(total)
                          if k not in matched)]
    if (strays or unseen) and not allow_unmatched:
        raise ValueError(
            f'{path} does not match the test set by {way}: '
            f'{_some(strays, "entries have no expression")}; '
            f'{_some(unseen, "expressions have no entry")}. Is it the file of '
            'this set and split? --allow-unmatched goes on without them')
    wrong = {expressions[k]['key'] for i, k in pairs.items()
             if entries[i]['caption_quality'] == 0}
    if len(wrong) == total:
        raise ValueError(f'{path} marks all {total} expressions as wrong')
    return Review(wrong, (
        f'{len(pairs)} of {len(entries)} entries of {path} match expressions '
        f'of the test set, by {way}; {len(unseen)} of {total} expressions '
        f'have no entry; {len(wrong)} are left out as wrong'))


def reviewed_table(scores: dict[str, float]) -> str:
    """A table of the scores (rows) of all expressions and of those kept.

    Args:
        scores (dict[str, float]): Of a RefSegMetric that leaves some out.
    """
    count = 'reviewed/n_expressions'
    (prefix, ) = (key.removesuffix(count) for key in scores
                  if key.endswith(count))
    lines = [f'{"":14}{"all":>10}{"reviewed":>10}']
    for key, value in scores.items():
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and '/' not in name:
            kept = scores.get(f'{prefix}reviewed/{name}')
            lines.append(f'{name:14}{_cell(value):>10}{_cell(kept):>10}')
    return '\n'.join(lines)


def _cell(value: float | None) -> str:
    if value is None:
        return '-'
    return str(value) if isinstance(value, int) else f'{value:.2f}'


def _some(names: list[str], what: str) -> str:
    listed = f', e.g. {", ".join(names[:_LISTED])}' if names else ''
    return f'{len(names)} {what}{listed}'
