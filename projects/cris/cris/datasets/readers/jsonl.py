# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Own data: a folder of images, a folder of masks, and JSON lines.

A line is ``{"image": "a.jpg", "mask": "a_1.png", "expressions": ["the dog",
...]}``. The mask is a file (every pixel that is not 0), a list of files (their
union), polygons or RLE as in COCO, or null (no target). Further keys:
``ref_id`` (by default the number of the line over all files, from 0),
``sent_ids``, ``image_id``, ``ann_id``, ``category``, ``split``, ``kind``, a
word by which scores are grouped, and ``ignore``, a mask of pixels that count
neither as target nor as background.
"""
import json
import reprlib
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from cris.io.files import safe_join

from ..masks import Segmentation, to_mask_files
from ..records import RecordBuilder, Records, as_splits
from .shared import (
    ImageFolder,
    check_splits,
    files_of_splits,
    flatten,
    inline_segmentation,
    require,
)


def read_jsonl(ann_file: str, img_folder: str, mask_folder: str,
               split: str | Sequence[str] | None = None) -> Records:
    """Read JSON lines; see the top of readers/__init__.py.

    Where there is one file for all splits, lines without the key ``split``
    belong to every split.
    """
    builder, images = RecordBuilder(), ImageFolder(img_folder)
    ref_ids = count()
    splits = None if '{split}' in ann_file else as_splits(split)
    for path, name in files_of_splits(ann_file, split):
        entries = list(_lines(builder, path))
        with_split = [entry for _, entry in entries if 'split' in entry]
        if with_split:
            check_splits(with_split, splits, path)
        for where, entry in entries:
            ref_id, in_split = next(ref_ids), entry.get('split')
            if splits and in_split is not None and in_split not in splits:
                continue
            with builder.entry(where):
                require(entry, 'image', 'mask', 'expressions')
                ref_id = entry.get('ref_id', ref_id)
                builder.add(
                    images.image(entry['image'], entry.get('image_id')),
                    ref_id=ref_id, ann_id=entry.get('ann_id', ref_id),
                    split=name if in_split is None else in_split,
                    category=entry.get('category'),
                    segmentation=_segmentation(
                        entry['mask'], mask_folder, builder),
                    ignore=_segmentation(
                        entry.get('ignore'), mask_folder, builder),
                    kind=entry.get('kind'),
                    sent_ids=entry.get('sent_ids'),
                    sentences=flatten(entry['expressions']))
    return builder.records()


def _lines(builder: RecordBuilder, path: str) -> Iterator[tuple[str, dict]]:
    """Every line that has an entry: its name in messages, and the entry."""
    with open(path, encoding='utf-8-sig') as file:
        try:
            for number, line in enumerate(file, 1):
                where = f'{path}, line {number}'
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError) as error:
                    builder.fault('bad-entry', where,
                                  f'it is not valid JSON: {error}')
                    continue
                if isinstance(entry, dict):
                    yield where, entry
                else:
                    builder.fault('bad-entry', where, 'it is '
                                  f'{reprlib.repr(entry)}, not a JSON object '
                                  'with image, mask and expressions')
        except UnicodeDecodeError as error:
            raise ValueError(f'{path} is not UTF-8 text: {error}') from error


def _segmentation(mask: Any, folder: str,
                  builder: RecordBuilder) -> Segmentation:
    if isinstance(mask, str):
        return to_mask_files(safe_join(folder, mask))
    if mask and isinstance(mask, list) and all(
            isinstance(name, str) for name in mask):
        return to_mask_files([safe_join(folder, name) for name in mask])
    return inline_segmentation(mask, builder)
