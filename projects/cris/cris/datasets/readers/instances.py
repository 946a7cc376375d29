# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import reprlib
from collections.abc import Hashable, Iterable
from typing import Any

from cris.io.files import load_json, safe_join
from cris.io.images import check_pixels

from ..masks import Segmentation
from ..records import EntryError, RecordBuilder, short
from .shared import inline_segmentation


class Instances:
    """A COCO file: images, annotations and categories by id.

    That two entries have the same id is a fault, which the builder gets; refs
    to them are ambiguous and left out.

    Raises:
        ValueError: If the file is broken or not in COCO format.
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
        return image_id in self._twice_images or not (
            self._twice_anns.isdisjoint(ann_ids))

    def category(self, category_id: Any) -> str | None:
        """Name of a category, if it has one."""
        if not isinstance(category_id, Hashable):
            return None
        return self._categories.get(category_id)

    def image(self, image_id: Any) -> dict:
        """An image, as in records, without refs.

        Raises:
            FileError: If there is no such image, its size is invalid or too
                large, or its name leaves the folder.
        """
        if image_id in self._checked:
            return self._checked[image_id]
        image = self.images.get(image_id)
        if image is None:
            raise EntryError(f'its image_id {image_id!r} does not exist',
                             'missing-image-entry')
        where = f'its image {image_id!r}'
        height, width = image_size_of(image, where)
        safe_join(self._folder, image.get('file_name'))
        self._checked[image_id] = dict(
            file_name=image['file_name'], img_id=image_id, height=height,
            width=width)
        return self._checked[image_id]


def _by_id(entries: list, where: str,
           builder: RecordBuilder) -> tuple[dict, set]:
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
                      f'two have the id {number!r}; give each a unique one')
    return found, twice


def image_size_of(entry: dict, where: str) -> tuple[int, int]:
    """Height and width that an entry states; integral floats become int.

    Raises:
        FileError: If they are invalid or too large.
    """
    sizes = []
    for key in ('height', 'width'):
        size = entry.get(key)
        if isinstance(size, float) and size.is_integer():
            size = int(size)
        if not isinstance(size, int) or size < 1:
            raise EntryError(f'{where} has {key} {short(size)}, not a '
                             'positive integer', 'bad-size')
        sizes.append(size)
    check_pixels(*sizes, where)
    return sizes[0], sizes[1]


def joint_segmentation(anns: list[dict],
                       builder: RecordBuilder) -> Segmentation:
    """Union of the masks of annotations; ``[]`` if a part is missing.

    Crowds beside other annotations are left out, as gRefCOCO's own reader
    and ReLA's do.
    """
    single = [ann for ann in anns if not ann.get('iscrowd')]
    if single and len(single) < len(anns):
        builder.dropped['crowd annotations, beside others of the same ref, '
                        'are left out'] += len(anns) - len(single)
        anns = single
    masks = [inline_segmentation(ann.get('segmentation'), builder)
             for ann in anns]
    if not all(masks):
        return []
    return masks[0] if len(masks) == 1 else [
        part for mask in masks for part in (
            mask if isinstance(mask, list) else [mask])]
