# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""SA-Co (SAM 3): COCO whose image entries are a picture and a phrase.

The phrase is the key ``text_input``. All annotations of the entry together
are the target; none of them means that there is no target.
"""
from collections import defaultdict
from collections.abc import Sequence

from ..records import RecordBuilder, Records, check_id, short
from .instances import Instances, joint_segmentation
from .shared import files_of_splits, flatten, require


def read_saco(ann_file: str, img_folder: str,
              split: str | Sequence[str] | None = None) -> Records:
    """Read SA-Co; see the top of readers/__init__.py."""
    builder = RecordBuilder()
    for path, name in files_of_splits(ann_file, split):
        instances = Instances(path, img_folder, builder)
        anns = defaultdict(list)
        for ann in instances.annotations.values():
            with builder.entry(f'{path}, annotation {short(ann["id"])}'):
                check_id('image_id', ann.get('image_id'))
                anns[ann.get('image_id')].append(ann)
        for entry_id, entry in instances.images.items():
            with builder.entry(f'{path}, image entry {short(entry_id)}'):
                own = anns[entry_id]
                if instances.is_ambiguous(entry_id, (a['id'] for a in own)):
                    continue  # reported as a fault of the id
                require(entry, 'text_input')
                image = instances.image(entry_id)
                builder.add(
                    dict(image, img_id=image['file_name']), ref_id=entry_id,
                    ann_id=[ann['id'] for ann in own] or -1, split=name,
                    segmentation=(
                        joint_segmentation(own, builder) if own else None),
                    sentences=flatten(entry['text_input']))
    return builder.records()
