# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Functions shared by several readers."""
import glob
import os.path as osp
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from cris.io.files import safe_join
from cris.io.images import image_size

from ..masks import Segmentation, mask_files
from ..records import EntryError, RecordBuilder, as_splits, short

_MIN_NUMBERS = 6  # of a polygon: x and y of three points
_MAX_NESTED = 64  # lists and dicts around a sentence


class ImageFolder:
    """Images of a folder, each header read once."""

    def __init__(self, folder: str):
        self.folder = folder
        self._size = cache(image_size)

    def image(self, name: Any, img_id: Any = None) -> dict:
        """The image of an entry, as in records, without refs.

        The id is the file name by default.

        Raises:
            FileError: If the name leaves the folder, or the file does not
                exist, is not an image, broken or too large.
        """
        path = safe_join(self.folder, name)
        try:
            height, width = self._size(path)
        except OSError as error:
            raise EntryError(f'image file {path} does not exist',
                             'missing-image') from error
        return dict(file_name=name, img_id=name if img_id is None else img_id,
                    height=height, width=width)


def inline_segmentation(segmentation: Any,
                        builder: RecordBuilder) -> Segmentation:
    """A segmentation inside an annotation file, as the field reads it.

    One flat polygon and polygons of [x, y] pairs become COCO's. Polygons of
    fewer than three points are left out, unless nothing else is there. A
    segmentation that names a file is refused: its path was not checked.
    """
    if mask_files(segmentation):
        raise EntryError(
            'its mask has the key mask_file, which is not read from '
            'annotations; in JSON lines, give the file name as a string',
            'bad-mask')
    if not isinstance(segmentation, list) or not segmentation:
        return segmentation
    if _is_points(segmentation) or all(map(_is_number, segmentation)):
        segmentation = [segmentation]
    parts = [[number for point in part for number in point]
             if _is_points(part) else part for part in segmentation]
    large = [part for part in parts
             if not isinstance(part, list) or len(part) >= _MIN_NUMBERS]
    if large and len(large) < len(parts):
        builder.dropped['polygons of fewer than three points, beside others, '
                        'are left out'] += len(parts) - len(large)
        return large
    return parts


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_points(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(
        isinstance(point, (list, tuple)) and len(point) == 2
        and all(map(_is_number, point)) for point in value)


def require(entry: dict, *keys: str) -> None:
    """Refuse an entry that lacks a key."""
    missing = [key for key in keys if key not in entry]
    if missing:
        raise EntryError(f'it has no {", ".join(missing)}')


def flatten(value: Any, depth: int = 0) -> list[str]:
    """All strings in nested lists and dicts, in their order."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list) or depth > _MAX_NESTED:
        raise EntryError(f'{reprlib.repr(value)} among its sentences is not a '
                         'string, list or dict', 'bad-sentence')
    return [text for item in value for text in flatten(item, depth + 1)]


def check_splits(entries: Sequence[dict], splits: Sequence[str] | None,
                 path: str) -> None:
    """Refuse a split that no entry has; the message lists those that exist."""
    present = Counter(short(entry.get('split')) for entry in entries)
    for name in splits or ():
        if name not in present:
            known = ', '.join(f'{k} ({n} refs)' for k, n in present.items())
            raise ValueError(f'{path} has no split {name!r}; it has '
                             f'{known or "no refs at all"}')


def files_of_splits(
        ann_file: str,
        split: str | Sequence[str] | None) -> Iterator[tuple[str, str]]:
    """Annotation files, each with the name of its split.

    A file without ``{split}`` in its name is the whole split.

    Raises:
        FileNotFoundError: If one is missing; the message lists the splits
            that have files.
        ValueError: If the name needs a split and none is given.
    """
    names = as_splits(split)
    if '{split}' not in ann_file:
        names = names if names and len(names) == 1 else ['all']
    elif names is None:
        raise ValueError(f'{ann_file} needs a split')
    for name in names:
        path = ann_file.replace('{split}', name)
        if not osp.isfile(path):
            there = ', '.join(splits_on_disk(ann_file))
            advice = (f'there are files of the splits {there}' if there else
                      'check data_root, ann_file and split')
            raise FileNotFoundError(
                f'annotation file {path} does not exist: {advice}')
        yield path, name


def splits_on_disk(ann_file: str) -> list[str]:
    """Splits that have a file, training first; none without ``{split}``."""
    start, *rest = ann_file.split('{split}')
    if not rest:
        return []
    found = glob.glob('*'.join(map(glob.escape, [start, *rest])))
    pattern = re.escape(start) + '(.+)' + r'\1'.join(map(re.escape, rest))
    matches = (re.fullmatch(pattern, path) for path in found)
    return sort_splits(match[1] for match in matches if match)


def sort_splits(names: Iterable[str]) -> list[str]:
    """Training first, then validation, then by name."""
    return sorted(
        names, key=lambda s: (s != 'train', not s.startswith('val'), s))
