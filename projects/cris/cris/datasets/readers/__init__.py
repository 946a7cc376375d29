# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""One reader per form of annotation files.

All return :class:`cris.datasets.records.Records` and take:

* ann_file (str): The annotations. With ``{split}`` in its name there is one
  file per split.
* img_folder (str), for mask files mask_folder (str): Folders.
* split (str | list[str], optional): One split, several, or all that the one
  file has.

They raise FileNotFoundError if a file is missing, and ValueError if one is
broken or has no such split. What is wrong with an entry is a fault.
"""
from .coco import read_coco
from .jsonl import read_jsonl
from .labelme import read_labelme
from .official_json import read_official_json
from .parquet import read_parquet
from .refer import read_refer
from .saco import read_saco

READERS = {
    'refer': read_refer,
    'jsonl': read_jsonl,
    'coco': read_coco,
    'official-json': read_official_json,
    'parquet': read_parquet,
    'labelme': read_labelme,
    'saco': read_saco,
}
