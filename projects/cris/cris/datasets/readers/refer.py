# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Annotation files in the REFER layout -> images with their expressions.

The layout of RefCOCO, RefCOCO+, RefCOCOg, RefClef, RRSIS-D and others:
``instances.json`` (COCO) and ``refs(<split_by>).p``, a pickled list of
``dict(ref_id, ann_id, image_id, split, sentences=[dict(sent_id, sent)])``.
gRefCOCO has ``grefs(<split_by>).json`` instead, where ``ann_id`` is a list:
several objects, or ``[-1]`` for none. This file knows nothing of mmengine.
"""
import os.path as osp
import reprlib
from collections.abc import Sequence
from typing import Any

from cris.io.files import load_json, without_gc
from cris.io.pickles import load_plain_pickle

from ..masks import decode_mask, encode_mask
from ..records import (
    EntryError,
    RecordBuilder,
    Records,
    raise_faults,
)
from .shared import (
    by_id,
    category_names,
    check_splits,
    image_of,
    load_instances,
)

__all__ = [
    'decode_mask', 'encode_mask', 'load_json', 'load_plain_pickle',
    'load_refer', 'raise_faults', 'read_refer'
]
_NO_TARGET = -1


def load_refer(ann_file: str, split_file: str, split: str) -> list[dict]:
    """Read and verify one split of a set in the REFER layout.

    Args:
        ann_file (str): Path of ``instances.json``.
        split_file (str): Path of ``refs(<split_by>).p``, or ``.json``.
        split (str): E.g. ``'train'``, ``'val'``, ``'testA'``.

    Returns:
        list[dict]: The records (see records.py), one per image that has a ref
        in the split. Images and refs are in the order in which the split file
        names them.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is broken, the split does not exist (the message
            lists those that do), or refs are at fault (the message lists
            them): no annotation, no image, no sentence, an empty mask.
    """
    records = read_refer(ann_file, split_file, split)
    raise_faults(records.faults,
                 f'{split_file}, split {split!r}, with {ann_file}')
    return records.images


@without_gc()
def read_refer(ann_file: str,
               split_file: str,
               split: None | str | Sequence[str] = None,
               img_folder: str = 'images',
               skip_images: Sequence[int | str] = ()) -> Records:
    """Like :func:`load_refer`, but collects the faults of single entries.

    Args:
        ann_file (str): Path of ``instances.json``.
        split_file (str): Path of ``refs(<split_by>).p``, or ``.json``.
        split (str | list[str], optional): One split, several, or all.
        img_folder (str): Where the images lie.
        skip_images (Sequence[int | str]): Ids of images whose refs are left
            out, whatever is wrong with them.

    Returns:
        Records: Records and faults.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is broken or a split does not exist.
    """
    for path, what in ((ann_file, 'instances (COCO annotations)'),
                       (split_file, 'refs (expressions and splits)')):
        if not osp.isfile(path):
            raise FileNotFoundError(
                f'{what} file {path} does not exist: check data_root, '
                'ann_file and split_file')
    # The large file first: the peak of memory is while it is parsed.
    instances = load_instances(ann_file)
    refs = _load_refs(split_file)
    splits = check_splits(refs, split, split_file)

    builder = RecordBuilder()
    images, twice_images = by_id(builder, instances['images'],
                                 f'images of {ann_file}')
    anns, twice_anns = by_id(builder, instances['annotations'],
                             f'annotations of {ann_file}')
    categories = category_names(instances)
    verified: dict[Any, dict] = {}
    may_be_several = split_file.endswith('.json')
    for ref in refs:
        if (splits is not None and ref.get('split') not in splits) or (
                ref.get('image_id') in skip_images):
            continue
        with builder.entry(f'ref {_short(ref.get("ref_id"))}'):
            missing = {'ref_id', 'ann_id', 'image_id', 'sentences', 'split'
                       } - ref.keys()
            if missing:
                raise EntryError('bad-entry',
                                 f'it has no {", ".join(sorted(missing))}')
            ann_ids = _ann_ids(ref['ann_id'], may_be_several)
            if ref['image_id'] in twice_images or any(
                    ann_id in twice_anns for ann_id in ann_ids):
                continue  # the fault is that of the id
            image_id = ref['image_id']
            if image_id not in verified:
                verified[image_id] = image_of(images, image_id, img_folder)
            found = [_annotation(anns, ann_id, ref) for ann_id in ann_ids]
            builder.add(
                verified[image_id],
                dict(
                    ref_id=ref['ref_id'],
                    ann_id=ref['ann_id'],
                    split=ref['split'],
                    category=_category(ref, found, categories),
                    segmentation=_union(found),
                    **_sentences(ref['sentences'])))
    return builder.records()


def _load_refs(path: str) -> list[dict]:
    refs = (load_json if path.endswith('.json') else load_plain_pickle)(path)
    if not isinstance(refs, list) or not all(
            isinstance(ref, dict) for ref in refs):
        raise ValueError(f'{path} does not hold a list of refs (dicts)')
    return refs


def _short(value: Any) -> str:
    return value if isinstance(value, str) else reprlib.repr(value)


def _ann_ids(ann_id: Any, may_be_several: bool) -> list:
    if not isinstance(ann_id, list):
        return [ann_id]
    if not may_be_several:
        raise EntryError(
            'bad-entry', f'unhashable ann_id {ann_id}: lists belong into '
            'grefs(<split_by>).json')
    if not ann_id:
        raise EntryError('bad-entry', 'its ann_id is an empty list; [-1] '
                         'says that there is no target')
    return [] if ann_id == [_NO_TARGET] else ann_id


def _annotation(anns: dict, ann_id: Any, ref: dict) -> dict:
    ann = anns.get(ann_id)
    if ann is None:
        raise EntryError('missing-annotation',
                         f'its ann_id {ann_id!r} does not exist')
    if ann.get('image_id') != ref['image_id']:
        raise EntryError(
            'wrong-image', f'its ann_id {ann_id} lies in image '
            f'{ann.get("image_id")}, not in {ref["image_id"]}')
    return ann


def _union(anns: list[dict]) -> Any:
    if not anns:
        return None
    parts = []
    for ann in anns:
        part = ann.get('segmentation', [])
        if not part:
            return []  # part of the target is missing: at fault
        parts += part if isinstance(part, list) else [part]
    if len(anns) == 1:
        return anns[0]['segmentation']
    return parts


def _category(ref: dict, anns: list[dict], names: dict) -> str | None:
    number = ref.get('category_id', anns[0].get('category_id')
                     if anns else None)
    return names.get(number) if isinstance(number, (int, str)) else None


def _sentences(sentences: Any) -> dict:
    for sentence in sentences:
        if not isinstance(sentence, dict) or 'sent_id' not in sentence or (
                not isinstance(sentence.get('sent'), str)):
            raise EntryError(
                'bad-sentence', f'its sentence {reprlib.repr(sentence)} is no '
                'dict with sent_id and the string sent')
    return dict(
        sent_ids=[s['sent_id'] for s in sentences],
        sentences=[s['sent'] for s in sentences])
