# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What the readers of own data share."""
import os.path as osp
import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from cris.io.files import load_json, safe_join
from cris.io.images import check_pixels, image_size

from ..masks import Segmentation
from ..records import EntryError, RecordBuilder, as_splits


class ImageFolder:
    """Sizes of the images of a folder, each header read once.

    Args:
        folder (str): The folder.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self._sizes: dict[str, Any] = {}

    def image(self, name: Any, img_id: Any = None) -> dict:
        """The image of an entry, as records have it, without refs.

        Args:
            name (str): File name, relative to the folder.
            img_id (int | str, optional): Its id; the name by default.

        Raises:
            EntryError: If the name leaves the folder, or the file is missing,
                no image, broken or too large.
        """
        try:
            path = safe_join(self.folder, name)
        except ValueError as error:
            raise EntryError('unsafe-name', f'its image: {error}') from error
        if name not in self._sizes:
            self._sizes[name] = _size_or_error(path)
        size = self._sizes[name]
        if isinstance(size, EntryError):
            raise size
        return dict(
            file_name=name,
            img_id=name if img_id is None else img_id,
            height=size[0],
            width=size[1])


def _size_or_error(path: str) -> Any:
    try:
        return image_size(path)
    except OSError:
        return EntryError('missing-image', f'image file {path} does not exist')
    except ValueError as error:
        kind = 'image-too-large' if 'limit' in str(error) else 'bad-image'
        return EntryError(kind, str(error))


def mask_path(folder: str, name: Any) -> str:
    """The path of a mask file that an entry names.

    Raises:
        EntryError: If the name leaves the folder of masks.
    """
    try:
        return safe_join(folder, name)
    except ValueError as error:
        raise EntryError('unsafe-name', f'its mask: {error}') from error


def flatten(value: Any) -> list[str]:
    """All strings in lists and dicts of any depth, in their order.

    Raises:
        EntryError: If there is anything else among them.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        raise EntryError('bad-sentence', f'{reprlib.repr(value)} among its '
                         'sentences is no string, list or dict')
    return [text for item in value for text in flatten(item)]


def sentence_ids(ids: Sequence | None, first: int,
                 count: int) -> tuple[list, int]:
    """Ids of an entry's sentences and the next free one.

    Args:
        ids (list, optional): What the entry says.
        first (int): The id to go on with where it says nothing.
        count (int): How many sentences it has.
    """
    if ids is None:
        return list(range(first, first + count)), first + count
    if not isinstance(ids, list):
        raise EntryError('bad-sentence', f'its sent_ids {reprlib.repr(ids)} '
                         'are no list')
    return ids, first


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


def check_splits(entries: Sequence[dict], split: None | str | Sequence[str],
                 path: str) -> list[str] | None:
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


def by_id(builder: RecordBuilder, entries: list[dict], where: str) -> tuple:
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


def category_names(instances: dict) -> dict[Any, str]:
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


def files_of_splits(ann_file: str, split: None | str | Sequence[str]
                    ) -> Iterator[tuple[str, None | str]]:
    """Annotation files to read, with their split where it is in the name.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If the name needs a split and none is given.
    """
    if '{split}' not in ann_file:
        pairs = [(ann_file, None)]
    elif split is None:
        raise ValueError(f'{ann_file} needs a split')
    else:
        pairs = [(ann_file.replace('{split}', name), name)
                 for name in as_splits(split)]
    for path, name in pairs:
        if not (osp.isfile(path) or osp.isdir(path)):  # a pipe would block
            raise FileNotFoundError(f'annotation file {path} does not exist: '
                                    'check data_root, ann_file and split')
        yield path, name


def mask_files(segmentation: Segmentation) -> list[str]:
    """Paths of the mask files of a segmentation."""
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    return [
        part['mask_file'] for part in parts
        if isinstance(part, dict) and 'mask_file' in part
    ]


def _short(value: Any) -> str:
    return value if isinstance(value, str) else reprlib.repr(value)
