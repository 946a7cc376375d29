# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The official repository's own form, which community sets have taken over.

``anns/<split>.json``: a list of ``{img_name, segment_id, cat, bbox,
sentences: [{idx, sent_id, sent}]}``; ``masks/<segment_id>.png``, or the file
that ``mask_name`` says. In place of sentences there may be ``prompts``:
strings in lists and dicts of any shape.
"""
import reprlib
from collections.abc import Sequence
from typing import Any

from cris.io.files import load_json

from ..masks import to_mask_files
from ..records import EntryError, RecordBuilder, Records
from .shared import (
    ImageFolder,
    files_of_splits,
    flatten,
    mask_path,
    sentence_ids,
)


def read_official_json(ann_file: str,
                       img_folder: str,
                       mask_folder: str,
                       split: None | str | Sequence[str] = None,
                       prompt_keys: Sequence[str] | None = None) -> Records:
    """Read ``anns/<split>.json`` with ``masks/*.png``.

    Args:
        ann_file (str): The list of entries, with ``{split}`` in its name.
        img_folder (str): Folder of the images.
        mask_folder (str): Folder of the masks.
        split (str | list[str], optional): One split or several.
        prompt_keys (list[str], optional): Which of the ``prompts`` to take;
            all by default. Those that an entry lacks are passed over.

    Returns:
        Records: Records and faults.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is broken or holds no list.
    """
    builder, images = RecordBuilder(), ImageFolder(img_folder)
    files: list[str] = []
    next_id = next_sentence = 0
    for path, name in files_of_splits(ann_file, split):
        entries = load_json(path)
        if not isinstance(entries, list):
            raise ValueError(
                f'{path} holds a {type(entries).__name__}, not the list of '
                'entries of the official format')
        for number, entry in enumerate(entries):
            next_id += 1
            with builder.entry(f'{path}, entry {number}'):
                if not isinstance(entry, dict):
                    raise EntryError('bad-entry',
                                     f'{reprlib.repr(entry)} is no dict')
                image = images.image(
                    entry.get('img_name'), entry.get('image_id'))
                path_of_mask = mask_path(mask_folder, _mask_name(entry))
                sentences, ids = _sentences(entry, prompt_keys)
                ids, next_sentence = sentence_ids(ids, next_sentence,
                                                  len(sentences))
                files.append(path_of_mask)
                category = entry.get('cat')
                builder.add(
                    image,
                    dict(
                        ref_id=entry.get('ref_id', next_id - 1),
                        ann_id=entry.get('ann_id', entry.get('segment_id')),
                        split=name or (
                            split if isinstance(split, str) else 'all'),
                        category=None if category is None else str(category),
                        segmentation=to_mask_files(path_of_mask),
                        sent_ids=ids,
                        sentences=sentences))
    return builder.records(files)


def _mask_name(entry: dict) -> str:
    if entry.get('mask_name') is not None:
        return entry['mask_name']
    if not isinstance(entry.get('segment_id'), (int, str)):
        raise EntryError(
            'missing-mask', 'it has neither mask_name nor segment_id (a '
            f'number or string): {entry.get("segment_id")!r}')
    return f'{entry["segment_id"]}.png'


def _sentences(entry: dict, prompt_keys: Sequence[str] | None) -> tuple:
    """Sentences of an entry and their ids, None where it has none."""
    if 'sentences' in entry and not prompt_keys:
        sentences = entry['sentences']
        if isinstance(sentences, list) and sentences and all(
                isinstance(s, dict) and isinstance(s.get('sent'), str)
                for s in sentences):
            ids = [s.get('sent_id') for s in sentences]
            return [s['sent'] for s in sentences], (
                None if None in ids else ids)
        return flatten(sentences), None
    prompts = entry.get('prompts')
    if prompts is None:
        raise EntryError('no-sentence', 'it has neither sentences nor prompts')
    if prompt_keys and isinstance(prompts, dict):
        chosen = {key: prompts[key] for key in prompt_keys if key in prompts}
        if not chosen:
            raise EntryError(
                'no-sentence', f'its prompts have none of prompt_keys='
                f'{list(prompt_keys)}; they have {_keys(prompts)}')
        prompts = chosen
    return flatten(prompts), None


def _keys(prompts: Any) -> str:
    return ', '.join(map(repr, prompts)) or 'none at all'
