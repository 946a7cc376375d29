# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Own data: COCO instances with expressions.

An annotation has ``expressions``, a string or a list of them. Without that
key its category's name is the expression; then all instances of one category
in an image are one ref, since the name means all of them.
Further keys of an annotation: ``ref_id``, ``ann_id``, ``sent_ids``.
"""
from collections.abc import Sequence

from ..records import EntryError, RecordBuilder, Records
from .shared import (
    by_id,
    category_names,
    files_of_splits,
    flatten,
    image_of,
    load_instances,
    sentence_ids,
)


def read_coco(ann_file: str,
              img_folder: str,
              split: None | str | Sequence[str] = None) -> Records:
    """Read COCO instances with expressions, or with category names as such.

    Args:
        ann_file (str): COCO annotations. With ``{split}`` in its name there
            is one file per split; otherwise all of it is the split.
        img_folder (str): Folder of the images.
        split (str | list[str], optional): One split or several.

    Returns:
        Records: Records and faults.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is broken or not in COCO format.
    """
    builder = RecordBuilder()
    next_sentence = 0
    for path, name in files_of_splits(ann_file, split):
        name = name or (split if isinstance(split, str) else 'all')
        instances = load_instances(path)
        images, twice_images = by_id(builder, instances['images'],
                                     f'images of {path}')
        anns, twice_anns = by_id(builder, instances['annotations'],
                                 f'annotations of {path}')
        categories = category_names(instances)
        with_expressions = any('expressions' in ann for ann in anns.values())
        builder.notes += _notes(path, images, anns, with_expressions)
        for group in _groups(anns, with_expressions):
            first = group[0]
            with builder.entry(f'{path}, annotation {first["id"]}'):
                if isinstance(first.get('image_id'), (dict, list)):
                    raise EntryError(
                        'bad-entry', f'its image_id {first["image_id"]!r} is '
                        'no number or text')
                if first.get('image_id') in twice_images or any(
                        ann['id'] in twice_anns for ann in group):
                    continue  # the fault is that of the id
                category = categories.get(first.get('category_id'))
                if with_expressions:
                    sentences = flatten(first['expressions'])
                elif category is None:
                    raise EntryError(
                        'no-sentence', 'it has neither expressions nor a '
                        'category with a name: category_id '
                        f'{first.get("category_id")!r}')
                else:
                    sentences = [category]
                ids, next_sentence = sentence_ids(
                    first.get('sent_ids'), next_sentence, len(sentences))
                builder.add(
                    image_of(images, first.get('image_id'), img_folder),
                    dict(
                        ref_id=first.get('ref_id', first['id']),
                        ann_id=first.get('ann_id', first['id']),
                        split=name,
                        category=category,
                        segmentation=_union(group),
                        sent_ids=ids,
                        sentences=sentences))
    return builder.records()


def _groups(anns: dict[int | str, dict],
            with_expressions: bool) -> list[list[dict]]:
    """The annotations of each ref."""
    if with_expressions:
        return [[ann] for ann in anns.values() if 'expressions' in ann]
    groups: dict = {}
    for ann in anns.values():
        groups.setdefault(
            str((ann.get('image_id'), ann.get('category_id'))),
            []).append(ann)
    return list(groups.values())


def _union(anns: list[dict]) -> list:
    parts = []
    for ann in anns:
        part = ann.get('segmentation', [])
        if not part:
            return []
        if len(anns) == 1:
            return part
        parts += part if isinstance(part, list) else [part]
    return parts


def _notes(path: str, images: dict, anns: dict,
           with_expressions: bool) -> list[str]:
    """What is left out because it has no expressions."""
    notes, used = [], list(anns.values())
    what = 'annotation'
    if with_expressions:
        used = [ann for ann in used if 'expressions' in ann]
        what = 'annotation with expressions'
        if len(used) < len(anns):
            notes.append(f'{len(anns) - len(used)} of {len(anns)} annotations '
                         'have no expressions')
    with_any = {str(ann.get('image_id')) for ann in used}
    without = sum(str(image_id) not in with_any for image_id in images)
    if without:
        notes.append(f'{without} of {len(images)} images have no {what} and '
                     'are not used')
    return [f'{path}: {note}' for note in notes]
