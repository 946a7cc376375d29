# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import os.path as osp
from collections.abc import Sequence

from mmengine.logging import print_log
from mmseg.registry import DATASETS


def without_excluded(images: list[dict], exclude: Sequence[int | str | dict],
                     img_folder: str) -> list[dict]:
    """Leave out records; ``exclude`` is as of ReferDataset."""
    names = {item for item in exclude if not isinstance(item, dict)}
    basenames = set()
    for config in exclude:
        if not isinstance(config, dict):
            continue
        other = DATASETS.build(dict(config, lazy_init=True))
        held_out = {image['file_name'] for image in other.read().images}
        # Another folder may have the same images at other paths.
        if other.data_prefix['img_path'] == img_folder:
            names |= held_out
        else:
            basenames |= {osp.basename(name) for name in held_out}
    kept = [
        image for image in images
        if names.isdisjoint((image['img_id'], image['file_name']))
        and osp.basename(image['file_name']) not in basenames
    ]
    if len(kept) < len(images):
        print_log(f'{len(images) - len(kept)} of {len(images)} images are '
                  'excluded', 'current')
    return kept
