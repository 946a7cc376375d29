# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Own data: COCO instances with expressions.

An annotation has ``expressions``, a string or a list of them. If no
annotation has that key, the name of the category is the expression, and all
instances of one category in an image are one ref: the name refers to all of
them.
Further keys of an annotation: ``ref_id``, ``ann_id``, ``sent_ids``.
"""
from collections import defaultdict
from collections.abc import Hashable, Sequence

from ..records import EntryError, RecordBuilder, Records, check_id, short
from .instances import Instances, joint_segmentation
from .shared import files_of_splits, flatten


def read_coco(ann_file: str, img_folder: str,
              split: str | Sequence[str] | None = None) -> Records:
    """Read COCO instances; see the top of readers/__init__.py."""
    builder = RecordBuilder()
    for path, name in files_of_splits(ann_file, split):
        instances = Instances(path, img_folder, builder)
        anns = list(instances.annotations.values())
        asked = [ann for ann in anns if 'expressions' in ann]
        builder.notes += [f'{path}: {note}'
                          for note in _notes(instances, asked or anns)]
        for group in [[ann] for ann in asked] or _by_category(anns):
            first = group[0]
            image_id, category_id = map(first.get, ('image_id', 'category_id'))
            with builder.entry(f'{path}, annotation {first["id"]}'):
                check_id('image_id', image_id)
                check_id('category_id', category_id)
                if instances.is_ambiguous(image_id,
                                          (ann['id'] for ann in group)):
                    continue  # reported as a fault of the id
                category = instances.category(category_id)
                if not asked and category is None:
                    raise EntryError(
                        'it has neither expressions nor a category with a '
                        f'name: category_id {short(category_id)}',
                        'no-sentence')
                builder.add(
                    instances.image(image_id),
                    ref_id=first.get('ref_id', first['id']),
                    ann_id=first.get('ann_id', first['id']), split=name,
                    category=category,
                    segmentation=joint_segmentation(group, builder),
                    sent_ids=first.get('sent_ids'),
                    sentences=flatten(first.get('expressions', category)))
    return builder.records()


def _by_category(anns: list[dict]) -> list[list[dict]]:
    groups = defaultdict(list)
    for ann in anns:
        key = ann.get('image_id'), ann.get('category_id')
        if not all(isinstance(part, Hashable) for part in key):
            key = ann['id']  # a fault
        groups[key].append(ann)
    return list(groups.values())


def _notes(instances: Instances, used: list[dict]) -> list[str]:
    """Count the annotations and images left out: no expressions."""
    notes, what = [], 'annotation'
    number, images = len(instances.annotations), instances.images
    if len(used) < number:
        what = 'annotation with expressions'
        notes.append(f'{number - len(used)} of {number} annotations have no '
                     'expressions')
    image_ids = [ann.get('image_id') for ann in used]
    without = images.keys() - {i for i in image_ids if isinstance(i, Hashable)}
    if without:
        notes.append(f'{len(without)} of {len(images)} images have no {what} '
                     'and are not used')
    return notes
