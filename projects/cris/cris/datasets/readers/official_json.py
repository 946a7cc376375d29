# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The official repository's JSON, which community datasets use, too.

``anns/<split>.json``: a list of ``{img_name, segment_id, cat, bbox,
sentences: [{idx, sent_id, sent}]}``; ``masks/<segment_id>.png``, or the file
that ``mask_name`` names. In place of sentences there may be ``prompts``:
strings in nested lists and dicts.
"""
import reprlib
from collections.abc import Sequence
from itertools import count

from cris.io.files import load_json, safe_join

from ..masks import to_mask_files
from ..records import EntryError, RecordBuilder, Records
from .shared import ImageFolder, files_of_splits, flatten


def read_official_json(ann_file: str, img_folder: str, mask_folder: str,
                       split: str | Sequence[str] | None = None,
                       prompt_keys: Sequence[str] | None = None) -> Records:
    """Read the official JSON; see the top of readers/__init__.py.

    Args:
        prompt_keys (list[str], optional): Which of the ``prompts`` to take,
            where an entry has them; all by default.
    """
    builder, images = RecordBuilder(), ImageFolder(img_folder)
    ref_ids = count()
    for path, name in files_of_splits(ann_file, split):
        entries = load_json(path)
        if not isinstance(entries, list):
            raise ValueError(
                f'{path} contains a {type(entries).__name__}, not the list of '
                'entries of the official format')
        for number, entry in enumerate(entries):
            ref_id = next(ref_ids)
            with builder.entry(f'{path}, entry {number}'):
                if not isinstance(entry, dict):
                    raise EntryError(f'{reprlib.repr(entry)} is not a dict')
                mask = safe_join(mask_folder, _mask_name(entry))
                sentences, sent_ids = _sentences(entry, prompt_keys)
                builder.add(
                    images.image(
                        entry.get('img_name'), entry.get('image_id')),
                    ref_id=entry.get('ref_id', ref_id),
                    ann_id=entry.get('ann_id', entry.get('segment_id')),
                    split=name, category=entry.get('cat'),
                    segmentation=to_mask_files(mask), sent_ids=sent_ids,
                    sentences=sentences)
    return builder.records()


def _mask_name(entry: dict) -> str:
    if entry.get('mask_name') is not None:
        return entry['mask_name']
    if not isinstance(entry.get('segment_id'), (int, str)):
        raise EntryError(
            'it has neither mask_name nor segment_id (a number or string): '
            f'{reprlib.repr(entry.get("segment_id"))}', 'missing-mask')
    return f'{entry["segment_id"]}.png'


def _sentences(entry: dict, prompt_keys: Sequence[str] | None
               ) -> tuple[list[str], list | None]:
    """Sentences of an entry and their ids, where all have one."""
    if 'sentences' in entry and not prompt_keys:
        sentences = entry['sentences']
        if not isinstance(sentences, list) or not all(
                isinstance(s, dict) and isinstance(s.get('sent'), str)
                for s in sentences):
            return flatten(sentences), None
        ids = [s.get('sent_id') for s in sentences]
        return [s['sent'] for s in sentences], None if None in ids else ids
    prompts = entry.get('prompts')
    if prompts is None:
        raise EntryError('it has neither sentences nor prompts', 'no-sentence')
    if prompt_keys and isinstance(prompts, dict):
        chosen = {key: prompts[key] for key in prompt_keys if key in prompts}
        if not chosen:
            raise EntryError(
                f'its prompts have none of prompt_keys={list(prompt_keys)}; '
                f'they have {", ".join(map(repr, prompts)) or "none at all"}',
                'no-sentence')
        prompts = chosen
    return flatten(prompts), None
