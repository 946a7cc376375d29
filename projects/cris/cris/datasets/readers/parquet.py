# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Parquet files: the forms in which the Hub has referring sets, and our own.

A form is recognised by its columns:

* *own*, written by ``prepare.py convert --to parquet``: a row is an image of
  a split, ``image {bytes, path}, file_name, img_id, height, width, split,
  refs [{ref_id, ann_id, category, sentences, sent_ids, mask {size,
  counts}}]``. A mask is COCO's compressed RLE; null means no target.
* *annotations*, as jxu124/refcoco: a row is a ref, ``image_path, split,
  ref_id, ann_id, sentences, raw_anns, raw_image_info``, without the picture.
* *answers*, as lmms-lab/RefCOCO: a row is a ref, ``image, answer,
  segmentation, file_name``.
* *samples*, as moondream/refcoco-m: a row is an image, ``image, file_name,
  samples [{id, sentences, mask}]``.
"""
import glob
import hashlib
import os.path as osp
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from cris.io.files import parse_json, safe_join
from cris.io.images import open_image, shown_size
from cris.io.parquet import open_parquet, read_group, row_group_sizes

from ..records import (
    EntryError,
    RecordBuilder,
    Records,
    as_splits,
    raise_faults,
)
from .instances import image_size_of
from .shared import ImageFolder, flatten, inline_segmentation, require

FORMS = {
    'own': ('file_name', 'img_id', 'height', 'width', 'split', 'refs'),
    'annotations': ('image_path', 'split', 'ref_id', 'ann_id', 'sentences',
                    'raw_anns', 'raw_image_info'),
    'answers': ('image', 'answer', 'segmentation', 'file_name'),
    'samples': ('image', 'file_name', 'samples'),
}
_BATCH = 32  # rows that become Python objects at once
# The Hub's files are named by the first.
_ALIASES = {'validation': 'val', 'val': 'validation'}


def find_shards(ann_file: str,
                split: str | Sequence[str] | None) -> list[tuple[str, str]]:
    """Parquet files of the splits, each with the split in its name.

    Args:
        ann_file (str): A path or glob, perhaps with ``{split}``; without it
            all files that match are taken.
        split (str | list[str], optional): One split or several.

    Raises:
        FileNotFoundError: If no file matches.
    """
    wanted = as_splits(split) if '{split}' in ann_file else [None]
    found = []
    for name in wanted or ['*']:
        paths = []
        for alias in (name, _ALIASES.get(name)):
            paths = paths or sorted(glob.glob(
                ann_file.replace('{split}', alias or '')))
        if not paths:
            raise FileNotFoundError(
                f'no parquet file {ann_file.replace("{split}", name or "")}: '
                'check data_root, ann_file and split')
        found += [(path, name or split_of_name(path)) for path in paths]
    return found


def split_of_name(path: str) -> str:
    """``val`` of ``data/val-00000-of-00002.parquet``."""
    return re.split(r'[-.]', osp.basename(path))[0]


def form_of(path: str, names: Sequence[str]) -> str:
    """Recognise a form by the columns of a file.

    Raises:
        ValueError: If it is none of them.
    """
    for form, columns in FORMS.items():
        if set(columns) <= set(names):
            return form
    known = '; '.join(f'{form}: {", ".join(columns)}'
                      for form, columns in FORMS.items())
    raise ValueError(f'{path} has the columns {", ".join(names)}, those of '
                     f'no known form. The forms are {known}')


def read_parquet(ann_file: str,
                 img_folder: str,
                 split: str | Sequence[str] | None = None) -> Records:
    """Read parquet files; see the top of readers/__init__.py.

    Where there is one pattern for all splits, the column ``split`` says which
    rows belong to one; without it the name of the file does, up to the first
    ``-``. A picture in a file is named in its record as ``picture``, ``[path,
    row]``.

    Args:
        ann_file (str): A path or glob, perhaps with ``{split}``.
        img_folder (str): For pictures that are not in the files.
    """
    builder = RecordBuilder()
    splits = wanted_splits(ann_file, split)
    seen: Counter[str] = Counter()
    digests: dict[str, bytes] = {}
    for path, name in find_shards(ann_file, split):
        file = open_parquet(path)
        form = form_of(path, file.schema_arrow.names)
        own = splits_of_rows(path, file, name)
        seen.update(own)
        reader = _Reader(form, path, img_folder, builder, digests)
        for number, row in _rows(path, file, rows_of_splits(own, splits)):
            with builder.entry(f'{path}, row {number}'):
                reader.read(number, row, own[number])
    check_splits_exist(ann_file, splits, seen)
    return builder.records()


def wanted_splits(ann_file: str,
                  split: str | Sequence[str] | None) -> list[str] | None:
    """Splits whose rows are read; None for all, if files are chosen."""
    return None if '{split}' in ann_file else as_splits(split)


def splits_of_rows(path: str, file: Any, name: str) -> list[str]:
    """The split of every row: of its column, or else of the file's name."""
    if 'split' not in file.schema_arrow.names:
        return [name] * file.metadata.num_rows
    column = read_group(path, file, None, ['split'])['split']
    return [str(value) for value in column.to_pylist()]


def rows_of_splits(own: list[str], splits: list[str] | None) -> list[bool]:
    """Whether each row is in one of the splits."""
    taken = {name: not splits or not {name, _ALIASES.get(name)}.isdisjoint(
        splits) for name in set(own)}
    return [taken[name] for name in own]


def check_splits_exist(ann_file: str, splits: list[str] | None,
                       seen: Counter[str]) -> None:
    """Refuse a split that no row has; the message lists those that exist."""
    for name in splits or ():
        if not {name, _ALIASES.get(name)} & seen.keys():
            raise ValueError(f'{ann_file} has no split {name!r}; it has ' +
                             ', '.join(f'{k} ({n} rows)'
                                       for k, n in seen.items()))


def _rows(path: str, file: Any,
          taken: list[bool]) -> Iterator[tuple[int, dict]]:
    """Number and values of the rows to take.

    Few rows are in memory at once, and no picture of another split.
    """
    first = 0
    for group, size in enumerate(row_group_sizes(file)):
        numbers = [i for i in range(size) if taken[first + i]]
        if numbers:
            table = read_group(path, file, group, None).take(numbers)
            rows = chain.from_iterable(
                batch.to_pylist() for batch in table.to_batches(_BATCH))
            for i, row in zip(numbers, rows, strict=True):
                yield first + i, row
        first += size


def read_own_row(path: str, number: int, row: dict, split: str,
                 img_folder: str) -> dict:
    """The image of one row in our own form, as in records.

    Raises:
        ValueError: If the row or one of its refs is faulty.
    """
    builder = RecordBuilder()
    where = f'{path}, row {number}'
    with builder.entry(where):
        _Reader('own', path, img_folder, builder, {}).read(number, row, split)
    raise_faults(builder.faults, where)
    (image, ) = builder.images.values()
    return image


class _Reader:
    """Adds the refs of rows to a builder.

    Args:
        form (str): A key of FORMS.
        path (str): The file.
        img_folder (str): For pictures that are not in it.
        builder (RecordBuilder): Gets the refs.
        digests (dict): Of the pictures of all files, by name.
    """

    def __init__(self, form: str, path: str, img_folder: str,
                 builder: RecordBuilder, digests: dict[str, bytes]):
        self.read = getattr(self, f'_{form}')
        self._path = path
        self._builder = builder
        self._digests = digests
        self._folder = ImageFolder(img_folder)

    def _own(self, number: int, row: dict, split: str) -> None:
        safe_join(self._folder.folder, row['file_name'])
        height, width = image_size_of(row, 'its row')
        image = dict(file_name=row['file_name'], img_id=row['img_id'],
                     height=height, width=width)
        if row.get('image'):
            found = self._image(row['image'], number, row['file_name'])
            size = [found['height'], found['width']]
            image = dict(found, img_id=row['img_id'], height=height,
                         width=width)
            if 'picture' in image and size != [height, width]:
                image['picture_size'] = size
        for ref in _dicts(row, 'refs'):
            with self._builder.entry(f'ref {ref.get("ref_id")}'):
                require(ref, 'ref_id', 'sentences', 'mask')
                ann_ids = ref.get('ann_id') or [ref['ref_id']]
                self._builder.add(
                    image, ref_id=ref['ref_id'],
                    ann_id=ann_ids if len(ann_ids) > 1 else ann_ids[0],
                    split=split, category=ref.get('category'),
                    segmentation=inline_segmentation(
                        ref['mask'], self._builder),
                    ignore=inline_segmentation(
                        ref.get('ignore'), self._builder),
                    sent_ids=ref.get('sent_ids'),
                    sentences=flatten(ref['sentences']))

    def _annotations(self, number: int, row: dict, split: str) -> None:
        ann, image = (_parse(row, key)
                      for key in ('raw_anns', 'raw_image_info'))
        name = row['image_path']
        safe_join(self._folder.folder, name)
        # In a folder of its own, a picture is found by its last part.
        if osp.isfile(osp.join(self._folder.folder, osp.basename(name))):
            name = osp.basename(name)
        entries = _dicts(row, 'sentences')
        for entry in entries:
            require(entry, 'sent_id', 'sent')
        height, width = image_size_of(image, 'its raw_image_info')
        self._builder.add(
            dict(file_name=name, img_id=row.get('image_id', name),
                 height=height, width=width),
            ref_id=row['ref_id'], ann_id=row['ann_id'], split=split,
            segmentation=inline_segmentation(
                ann.get('segmentation', []), self._builder),
            sent_ids=[entry['sent_id'] for entry in entries],
            sentences=flatten([entry['sent'] for entry in entries]))

    def _answers(self, number: int, row: dict, split: str) -> None:
        # A picture is repeated for each of its refs, and named after the ref.
        safe_join(self._folder.folder, row['file_name'])
        name = re.sub(r'(\d{12})_\d+(\.\w+)$', r'\1\2', row['file_name'])
        digest = hashlib.sha256(content_of(row['image']) or b'').digest()
        if self._digests.setdefault(name, digest) != digest:
            name = row['file_name']  # another picture after all
        ref_id = row.get('question_id', f'{self._path}, {number}')
        self._builder.add(
            self._image(row['image'], number, name), ref_id=ref_id,
            ann_id=ref_id, split=split, segmentation=inline_segmentation(
                row['segmentation'], self._builder),
            sentences=flatten(row['answer']))

    def _samples(self, number: int, row: dict, split: str) -> None:
        image = self._image(row['image'], number, row['file_name'])
        image['img_id'] = row.get('image_id', row['file_name'])
        for sample in _dicts(row, 'samples'):
            with self._builder.entry(f'sample {sample.get("id")}'):
                require(sample, 'id', 'sentences', 'mask')
                self._builder.add(
                    image, ref_id=sample['id'], ann_id=sample['id'],
                    split=split, category=sample.get('category'),
                    segmentation=inline_segmentation(
                        sample['mask'], self._builder),
                    sentences=flatten(sample['sentences']))

    def _image(self, cell: Any, number: int, name: str) -> dict:
        """The image of a cell ``{bytes, path}``."""
        content = content_of(cell)
        if content is None:
            path = cell.get('path') if isinstance(cell, dict) else None
            return self._folder.image(path or name)
        safe_join(self._folder.folder, name)  # a conversion writes it
        height, width = shown_size(
            open_image(content, f'the picture of row {number}'))
        return dict(file_name=name, img_id=name, height=height, width=width,
                    picture=[self._path, number])


def content_of(cell: Any) -> bytes | None:
    """The picture in a cell ``{bytes, path}``, if it is there."""
    content = cell.get('bytes') if isinstance(cell, dict) else None
    return content if isinstance(content, bytes) else None


def _dicts(row: dict, key: str) -> list[dict]:
    entries = row[key]
    if not isinstance(entries, list) or not all(
            isinstance(entry, dict) for entry in entries):
        raise EntryError(f'its {key} are not a list of dicts')
    return entries


def _parse(row: dict, key: str) -> dict:
    try:
        value = parse_json(row[key].encode())
    except (AttributeError, ValueError) as error:
        raise EntryError(f'its {key} is not JSON: {error}') from error
    if not isinstance(value, dict):
        raise EntryError(f'its {key} is not a JSON object')
    return value
