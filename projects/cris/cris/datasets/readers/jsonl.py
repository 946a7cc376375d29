# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Own data: a folder of images, a folder of masks, and JSON lines.

A line is ``{"image": "a.jpg", "mask": "a_1.png", "expressions": ["the dog",
...]}``. The mask is a file (every pixel that is not 0), a list of files (their
union), polygons or RLE as in COCO, or null (no target). Further keys:
``ref_id`` (by default a count from 0, over all lines of all files),
``sent_ids``, ``image_id``, ``ann_id``, ``category``, ``split``.
"""
import json
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

from ..masks import Segmentation, to_mask_files
from ..records import EntryError, RecordBuilder, Records, as_splits
from .shared import (
    ImageFolder,
    check_splits,
    files_of_splits,
    flatten,
    mask_files,
    mask_path,
    sentence_ids,
)

_KEYS = ('image', 'mask', 'expressions')


def read_jsonl(ann_file: str,
               img_folder: str,
               mask_folder: str,
               split: None | str | Sequence[str] = None) -> Records:
    """Read images with masks and expressions from JSON lines.

    Args:
        ann_file (str): The lines. With ``{split}`` in its name there is one
            file per split; otherwise lines may have the key ``split``, and
            those without it belong to every split.
        img_folder (str): Folder of the images.
        mask_folder (str): Folder of the masks.
        split (str | list[str], optional): One split, several, or all that
            the one file has.

    Returns:
        Records: Records and faults.

    Raises:
        FileNotFoundError: If a file of lines is missing.
        ValueError: If it is not text, or has no line of the split.
    """
    builder, images = RecordBuilder(), ImageFolder(img_folder)
    files: list[str] = []
    next_id = next_sentence = 0
    for path, name in files_of_splits(ann_file, split):
        entries = list(_lines(builder, path))
        splits = as_splits(split) if name is None else None
        if splits and any('split' in entry for _, entry in entries):
            check_splits([e for _, e in entries if 'split' in e], splits, path)
        for number, entry in entries:
            next_id += 1
            own = entry.get('split', name)
            if splits and own is not None and own not in splits:
                continue
            with builder.entry(f'{path}, line {number}'):
                missing = [key for key in _KEYS if key not in entry]
                if missing:
                    raise EntryError(
                        'bad-entry', f'it has no {", ".join(missing)}; a line '
                        'needs image, mask and expressions')
                image = images.image(entry['image'], entry.get('image_id'))
                segmentation = _segmentation(entry['mask'], mask_folder)
                sentences = flatten(entry['expressions'])
                ids, next_sentence = sentence_ids(
                    entry.get('sent_ids'), next_sentence, len(sentences))
                ref_id = entry.get('ref_id', next_id - 1)
                category = entry.get('category')
                files += mask_files(segmentation)
                builder.add(
                    image,
                    dict(
                        ref_id=ref_id,
                        ann_id=entry.get('ann_id', ref_id),
                        split=own or (splits[0] if splits else 'all'),
                        category=None if category is None else str(category),
                        segmentation=segmentation,
                        sent_ids=ids,
                        sentences=sentences))
    return builder.records(files)


def _lines(builder: RecordBuilder,
           path: str) -> Iterator[tuple[int, dict]]:
    """Numbers, from 1, and entries of the lines that hold one."""
    with open(path, encoding='utf-8-sig') as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f'{path}, line {number}'
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError) as error:
                    builder.fault('bad-entry', where,
                                  f'it is not valid JSON: {error}')
                    continue
                if isinstance(entry, dict):
                    yield number, entry
                else:
                    builder.fault(
                        'bad-entry', where,
                        f'it is {reprlib.repr(entry)}, not a JSON object with '
                        'image, mask and expressions')
        except UnicodeDecodeError as error:
            raise ValueError(f'{path} is not UTF-8 text: {error}') from error


def _segmentation(mask: Any, folder: str) -> Segmentation:
    if mask is None or mask == []:
        return mask
    if isinstance(mask, str):
        return to_mask_files(mask_path(folder, mask))
    if isinstance(mask, list) and all(isinstance(m, str) for m in mask):
        return to_mask_files([mask_path(folder, name) for name in mask])
    parts = mask if isinstance(mask, list) else [mask]
    if any(isinstance(part, dict) and 'mask_file' in part for part in parts):
        raise EntryError('bad-mask', 'its mask has the key mask_file; give '
                         'the name of the file as a string')
    return mask
