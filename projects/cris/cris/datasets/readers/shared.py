# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What several readers share."""
import glob
import os.path as osp
import re
import reprlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

from cris.io.files import FileError, load_json, safe_join
from cris.io.images import check_pixels, image_size

from ..masks import Segmentation, mask_files, union
from ..records import EntryError, RecordBuilder, as_splits, short

_MAX_NESTED = 64  # lists and dicts around a sentence


class ImageFolder:
    """Images of a folder, each header read once.

    Args:
        folder (str): The folder.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self._sizes: dict[str, tuple[int, int] | ValueError] = {}

    def image(self, name: Any, img_id: Any = None) -> dict:
        """The image of an entry, as in records, without refs.

        Args:
            name (str): File name, relative to the folder.
            img_id (int | str, optional): The name by default.

        Raises:
            EntryError: If the file does not exist.
            FileError: If the name leaves the folder, or the file is not an
                image, broken or too large.
        """
        path = safe_join(self.folder, name)
        if name not in self._sizes:
            try:
                self._sizes[name] = image_size(path)
            except FileError as error:
                self._sizes[name] = error
            except OSError:
                self._sizes[name] = EntryError(
                    'missing-image', f'image file {path} does not exist')
        size = self._sizes[name]
        if isinstance(size, ValueError):
            raise size
        return dict(
            file_name=name,
            img_id=name if img_id is None else img_id,
            height=size[0],
            width=size[1])


class Instances:
    """A COCO file: images, annotations and categories by id.

    Where two entries have one id, it is unknown which is meant: that is a
    fault, and refs to them are left out.

    Args:
        path (str): The file.
        img_folder (str): Folder of the images.
        builder (RecordBuilder): Gets the faults.

    Raises:
        FileError: If the file is broken.
        ValueError: If it is not in COCO format.
    """

    def __init__(self, path: str, img_folder: str, builder: RecordBuilder):
        content = load_json(path)
        if not isinstance(content, dict) or not all(
                isinstance(content.get(key), list)
                for key in ('images', 'annotations')):
            raise ValueError(f'{path} is not in COCO format: it needs a dict '
                             'with the lists "images" and "annotations"')
        self._folder = img_folder
        self._checked: dict[int | str, dict] = {}
        self.images, self._twice_images = _by_id(
            content['images'], f'images of {path}', builder)
        self.annotations, self._twice_anns = _by_id(
            content['annotations'], f'annotations of {path}', builder)
        categories = content.get('categories')
        self._categories = {
            c['id']: c['name']
            for c in (categories if isinstance(categories, list) else ())
            if isinstance(c, dict) and isinstance(c.get('id'), (int, str))
            and isinstance(c.get('name'), str)
        }

    def is_ambiguous(self, image_id: Any, ann_ids: Iterable) -> bool:
        """Whether one of the ids belongs to two entries."""
        return image_id in self._twice_images or any(
            ann_id in self._twice_anns for ann_id in ann_ids)

    def category(self, category_id: Any) -> str | None:
        """Name of a category, if it has one."""
        if not isinstance(category_id, Hashable):
            return None
        return self._categories.get(category_id)

    def image(self, image_id: Any) -> dict:
        """An image, as in records, without refs.

        Raises:
            EntryError: If there is no such image, or its size is not one.
            FileError: If it is too large or its name leaves the folder.
        """
        if image_id not in self._checked:
            self._checked[image_id] = self._check(image_id)
        return self._checked[image_id]

    def _check(self, image_id: Any) -> dict:
        image = self.images.get(image_id)
        if image is None:
            raise EntryError('missing-image-entry',
                             f'its image_id {image_id!r} does not exist')
        for key in ('height', 'width'):
            if not isinstance(image.get(key), int) or image[key] < 1:
                raise EntryError(
                    'bad-size', f'its image {image_id!r} has {key} '
                    f'{short(image.get(key))}, not a positive integer')
        check_pixels(image['height'], image['width'],
                     f'its image {image_id!r}')
        safe_join(self._folder, image.get('file_name'))
        return dict(
            file_name=image['file_name'],
            img_id=image_id,
            height=image['height'],
            width=image['width'])


def _by_id(entries: list, where: str, builder: RecordBuilder) -> tuple:
    """Entries by id, and the ids that are not unique."""
    found, twice = {}, set()
    for entry in entries:
        number = entry.get('id') if isinstance(entry, dict) else None
        if not isinstance(number, (int, str)):
            raise ValueError(f'{where}: {reprlib.repr(entry)} is not a dict '
                             'with an id')
        if number in found:
            twice.add(number)
        found[number] = entry
    for number in sorted(twice, key=str):
        builder.fault('duplicate-id', where,
                      f'two have the id {number!r}; give each its own')
    return found, twice


def joint_segmentation(anns: list[dict]) -> Segmentation:
    """Union of the segmentations of annotations; empty if one is missing."""
    return inline_segmentation(
        union(ann.get('segmentation', []) for ann in anns))


def inline_segmentation(segmentation: Any) -> Segmentation:
    """A segmentation inside an annotation file, which names no other file.

    Raises:
        EntryError: If it does: the path has not been checked.
    """
    if mask_files(segmentation):
        raise EntryError(
            'bad-mask', 'its mask has the key mask_file, which is not read '
            'from annotations; in JSON lines, give the file name as a string')
    return segmentation


def require(entry: dict, *keys: str) -> None:
    """Refuse an entry that lacks a key."""
    missing = [key for key in keys if key not in entry]
    if missing:
        raise EntryError('bad-entry', f'it has no {", ".join(missing)}')


def flatten(value: Any, depth: int = 0) -> list[str]:
    """All strings in nested lists and dicts, in their order.

    Raises:
        EntryError: If there is anything else among them.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list) or depth > _MAX_NESTED:
        raise EntryError('bad-sentence', f'{reprlib.repr(value)} among its '
                         'sentences is not a string, list or dict')
    return [text for item in value for text in flatten(item, depth + 1)]


def own_sent_ids(entry: dict) -> list | None:
    """The ``sent_ids`` of an entry, if it has any."""
    ids = entry.get('sent_ids')
    if not isinstance(ids, list | None):
        raise EntryError(
            'bad-sentence', f'its sent_ids {reprlib.repr(ids)} are not a list')
    return ids


def check_splits(entries: Sequence[dict], split: str | Sequence[str] | None,
                 path: str) -> list[str] | None:
    """The wanted splits as a list; None stays.

    Raises:
        ValueError: If one does not exist; the message lists those that do.
    """
    splits = as_splits(split)
    present = Counter(short(entry.get('split')) for entry in entries)
    for name in splits or ():
        if name not in present:
            known = ', '.join(f'{k} ({n} refs)' for k, n in present.items())
            raise ValueError(f'{path} has no split {name!r}; it has '
                             f'{known or "no refs at all"}')
    return splits


def files_of_splits(
        ann_file: str,
        split: str | Sequence[str] | None) -> Iterator[tuple[str, str]]:
    """Annotation files, each with the name of its split.

    Args:
        ann_file (str): With ``{split}`` in its name there is one file per
            split; otherwise all of it is the split.
        split (str | list[str], optional): One split or several.

    Raises:
        FileNotFoundError: If one is missing; the message lists the splits
            that have files.
        ValueError: If the name needs a split and none is given.
    """
    splits = as_splits(split)
    if '{split}' not in ann_file:
        name = splits[0] if splits and len(splits) == 1 else 'all'
        pairs = [(ann_file, name)]
    elif splits is None:
        raise ValueError(f'{ann_file} needs a split')
    else:
        pairs = [(ann_file.replace('{split}', name), name) for name in splits]
    for path, name in pairs:
        if not osp.isfile(path):
            there = ', '.join(splits_on_disk(ann_file))
            raise FileNotFoundError(
                f'annotation file {path} does not exist: ' +
                (f'there are files of the splits {there}'
                 if there else 'check data_root, ann_file and split'))
        yield path, name


def splits_on_disk(ann_file: str) -> list[str]:
    """Splits that have a file, training first.

    Args:
        ann_file (str): Path with ``{split}`` in it; without, there is none.
    """
    start, *rest = ann_file.split('{split}')
    if not rest:
        return []
    found = glob.glob('*'.join(map(glob.escape, [start, *rest])))
    pattern = re.escape(start) + '(.+)' + r'\1'.join(map(re.escape, rest))
    matches = (re.fullmatch(pattern, path) for path in found)
    names = [match[1] for match in matches if match]
    return sorted(
        names, key=lambda s: (s != 'train', not s.startswith('val'), s))
