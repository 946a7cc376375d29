# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""One reader per form of annotation files; all return the same records.

No reader knows anything of mmengine.
"""
from .coco import read_coco
from .jsonl import read_jsonl
from .official_json import read_official_json
from .refer import read_refer

READERS = {
    'refer': read_refer,
    'jsonl': read_jsonl,
    'coco': read_coco,
    'official-json': read_official_json,
}

__all__ = [
    'READERS', 'read_coco', 'read_jsonl', 'read_official_json',
    'read_refer'
]
