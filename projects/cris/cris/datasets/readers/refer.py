# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The REFER layout: RefCOCO, RefCOCO+, RefCOCOg, RefClef, RRSIS-D and others.

``instances.json`` (COCO) and ``refs(<split_by>).p``, a pickled list of
``dict(ref_id, ann_id, image_id, split, sentences=[dict(sent_id, sent)])``.
gRefCOCO has ``grefs(<split_by>).json`` instead, where ``ann_id`` is a list:
several objects, or ``[-1]`` or -1 for none. Refs without a sentence are left
out, as its authors say. The kind of a ref is its ``kind``, if it has one, or
else 'none', 'one' or 'many', after the number of its objects.
"""
import os.path as osp
import reprlib
from collections.abc import Sequence
from typing import Any

from cris.io.files import load_json, without_gc
from cris.io.pickles import load_plain_pickle

from ..records import (
    EntryError,
    RecordBuilder,
    Records,
    as_splits,
    check_id,
    raise_faults,
    short,
)
from .instances import Instances, joint_segmentation
from .shared import check_splits, require

_NO_TARGET = [-1]


def load_refer(ann_file: str, split_file: str, split: str) -> list[dict]:
    """The records of one split; arguments as of :func:`read_refer`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is broken, the split does not exist (the message
            lists those that do), or refs are faulty (it lists them).
    """
    records = read_refer(ann_file, split_file, split)
    raise_faults(records.faults,
                 f'{split_file}, split {split!r}, with {ann_file}')
    return records.images


@without_gc()
def read_refer(ann_file: str, split_file: str,
               split: str | Sequence[str] | None = None,
               img_folder: str = 'images',
               skip_images: Sequence[int | str] = ()) -> Records:
    """Read the REFER layout; see the top of readers/__init__.py.

    Args:
        ann_file (str): Path of ``instances.json``.
        split_file (str): Path of ``refs(<split_by>).p``, or ``.json``.
        skip_images (Sequence[int | str]): Ids of images to leave out.
    """
    for path, what in ((ann_file, 'instances (COCO annotations)'),
                       (split_file, 'refs (expressions and splits)')):
        if not osp.isfile(path):
            raise FileNotFoundError(f'{what} file {path} does not exist: check'
                                    ' data_root, ann_file and split_file')
    builder, splits = RecordBuilder(), as_splits(split)
    # The large file first: memory peaks while it is parsed.
    instances = Instances(ann_file, img_folder, builder)
    may_be_several = split_file.endswith('.json')
    refs = (load_json if may_be_several else load_plain_pickle)(split_file)
    if not isinstance(refs, list) or not all(
            isinstance(ref, dict) for ref in refs):
        raise ValueError(
            f'{split_file} does not contain a list of refs (dicts)')
    check_splits(refs, splits, split_file)
    for ref in refs:
        if (splits is not None and ref.get('split') not in splits) or (
                ref.get('image_id') in skip_images):
            continue
        with builder.entry(f'ref {short(ref.get("ref_id"))}'):
            require(ref, 'ann_id', 'image_id', 'ref_id', 'sentences', 'split')
            if ref['sentences'] == []:
                builder.dropped['refs without a sentence are left out'] += 1
                continue
            image_id = ref['image_id']
            check_id('image_id', image_id)
            ann_ids = _ann_ids(ref['ann_id'], may_be_several)
            if instances.is_ambiguous(image_id, ann_ids):
                continue  # the fault is that of the id
            image = instances.image(image_id)
            anns = [_annotation(instances, i, image_id) for i in ann_ids]
            sentences = _sentences(ref['sentences'])
            category = ref.get(
                'category_id', anns[0].get('category_id') if anns else None)
            builder.add(
                image, ref_id=ref['ref_id'], ann_id=ref['ann_id'],
                kind=_kind(ref, ann_ids) if may_be_several else None,
                split=ref['split'], category=instances.category(category),
                segmentation=(
                    joint_segmentation(anns, builder) if anns else None),
                sent_ids=[sentence['sent_id'] for sentence in sentences],
                sentences=[sentence['sent'] for sentence in sentences])
    return builder.records()


def _ann_ids(ann_id: Any, may_be_several: bool) -> list:
    ann_ids = ann_id if isinstance(ann_id, list) else [ann_id]
    if ann_ids is ann_id and not may_be_several:
        raise EntryError(f'its ann_id {reprlib.repr(ann_id)} is a list, which '
                         'only grefs(<split_by>).json may have')
    if not ann_ids:
        raise EntryError('its ann_id is an empty list; [-1] means that there '
                         'is no target')
    for number in ann_ids:
        check_id('ann_id', number)
    return [] if may_be_several and ann_ids == _NO_TARGET else ann_ids


def _kind(ref: dict, ann_ids: list) -> Any:
    number = ('none', 'one', 'many')[min(len(ann_ids), 2)]
    return ref.get('kind', number)


def _annotation(instances: Instances, ann_id: Any, image_id: Any) -> dict:
    ann = instances.annotations.get(ann_id)
    if ann is None:
        raise EntryError(f'its ann_id {reprlib.repr(ann_id)} does not exist',
                         'missing-annotation')
    if ann.get('image_id') != image_id:
        raise EntryError(
            f'its ann_id {ann_id} lies in image '
            f'{short(ann.get("image_id"))}, not in {image_id}', 'wrong-image')
    return ann


def _sentences(entries: Any) -> Sequence[dict]:
    if not isinstance(entries, (list, tuple)):
        raise EntryError(f'its sentences {reprlib.repr(entries)} are not a '
                         'list', 'bad-sentence')
    for entry in entries:
        if not isinstance(entry, dict) or 'sent_id' not in entry or (
                not isinstance(entry.get('sent'), str)):
            raise EntryError(f'its sentence {reprlib.repr(entry)} is not a '
                             'dict with sent_id and the string sent',
                             'bad-sentence')
    return entries
