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
from collections import Counter
from typing import Any, Dict, List, Optional, Sequence, Union

from .files import (
    check_pixels,
    load_json,
    load_plain_pickle,
    safe_join,
    without_gc,
)
from .masks import decode_mask, encode_mask
from .records import (
    EntryError,
    RecordBuilder,
    Records,
    as_splits,
    raise_faults,
)

__all__ = [
    'decode_mask', 'encode_mask', 'load_json', 'load_plain_pickle',
    'load_refer', 'raise_faults', 'read_refer'
]
_NO_TARGET = -1


def load_refer(ann_file: str, split_file: str, split: str) -> List[dict]:
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
               split: Union[None, str, Sequence[str]] = None,
               img_folder: str = 'images',
               skip_images: Sequence[Union[int, str]] = ()) -> Records:
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
    verified: Dict[Any, dict] = {}
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


def _load_refs(path: str) -> List[dict]:
    refs = (load_json if path.endswith('.json') else load_plain_pickle)(path)
    if not isinstance(refs, list) or not all(
            isinstance(ref, dict) for ref in refs):
        raise ValueError(f'{path} does not hold a list of refs (dicts)')
    return refs


def load_instances(path: str) -> dict:
    """Read a COCO file and check its outer form.

    Raises:
        ValueError: If it is broken or something else.
    """
    instances = load_json(path)
    if not isinstance(instances, dict) or not all(
            isinstance(instances.get(key), list)
            for key in ('images', 'annotations')):
        raise ValueError(f'{path} is not in COCO format: it needs a dict '
                         'with the lists "images" and "annotations"')
    return instances


def check_splits(entries: Sequence[dict], split: Union[None, str,
                                                       Sequence[str]],
                 path: str) -> Optional[List[str]]:
    """The splits that are asked for, as a list; None stays None.

    Raises:
        ValueError: If one does not exist; the message lists those that do.
    """
    splits = as_splits(split)
    present = Counter(_short(entry.get('split')) for entry in entries)
    for name in splits or ():
        if name not in present:
            known = ', '.join(f'{k} ({n} refs)' for k, n in present.items())
            raise ValueError(f'{path} has no split {name!r}; it has '
                             f'{known or "no refs at all"}')
    return splits


def by_id(builder: RecordBuilder, entries: List[dict], where: str) -> tuple:
    """Entries by their ids, and the ids that are not unique.

    The entries of the latter are left out, with a fault for each such id:
    which of them is meant cannot be known.

    Raises:
        ValueError: If an entry is no dict with an id.
    """
    found, twice = {}, set()
    for entry in entries:
        number = entry.get('id') if isinstance(entry, dict) else None
        if not isinstance(number, (int, str)):
            raise ValueError(f'{where}: {reprlib.repr(entry)} is no dict with '
                             'an id')
        if number in found:
            twice.add(number)
        found[number] = entry
    for number in sorted(twice, key=str):
        builder.fault('duplicate-id', where,
                      f'two have the id {number!r}; give each its own')
    return found, twice


def category_names(instances: dict) -> Dict[Any, str]:
    """Names of the categories of a COCO file, by id."""
    categories = instances.get('categories')
    return {
        c['id']: c['name']
        for c in (categories if isinstance(categories, list) else ())
        if isinstance(c, dict) and isinstance(c.get('id'), (int, str)) and (
            isinstance(c.get('name'), str))
    }


def image_of(images: dict, image_id: Any, folder: str) -> dict:
    """The image of a ref, verified: without refs, as records have it."""
    image = images.get(image_id)
    if image is None:
        raise EntryError('missing-image-entry',
                         f'its image_id {image_id!r} does not exist')
    for key in ('height', 'width'):
        if not isinstance(image.get(key), int) or image[key] < 1:
            raise EntryError(
                'bad-size', f'its image {image_id!r} has {key} '
                f'{image.get(key)!r}, not a positive integer')
    try:
        check_pixels(image['height'], image['width'],
                     f'its image {image_id!r}')
    except ValueError as error:
        raise EntryError('image-too-large', str(error)) from error
    try:
        safe_join(folder, image.get('file_name'))
    except ValueError as error:
        raise EntryError(
            'unsafe-name', f'its image {image_id!r}: {error} '
            '(it leaves the image folder, or is no name)') from error
    return dict(
        file_name=image['file_name'],
        img_id=image_id,
        height=image['height'],
        width=image['width'])


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


def _union(anns: List[dict]) -> Any:
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


def _category(ref: dict, anns: List[dict], names: dict) -> Optional[str]:
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
