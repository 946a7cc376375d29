# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Records -> parquet files, in the form *own* of readers/parquet.py."""
import os
import os.path as osp
import random
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
from pyarrow import parquet

from cris.datasets.records import plain_rle

# A row group is read at once: rows of about this size, in bytes.
_GROUP = 1 << 20
_MAX_ROWS = 512


def write_shards(rows: Iterable[tuple[dict, dict]], dst: str, split: str,
                 shards: int, read: Callable[[dict], bytes] | None,
                 shuffle: bool = False) -> None:
    """``data/<split>-<i>-of-<shards>.parquet``; a row is an image.

    Args:
        rows (Iterable[tuple[dict, dict]]): Images, each with a ref of the
            split.
        dst (str): Folder to write to.
        split (str): Its name.
        shards (int): Number of files; neighbours are in the same file.
        read (Callable, optional): The content of an image's file, to be
            embedded. None writes only its name.
        shuffle (bool): Write the images in random order, always the same.
    """
    by_image: dict = {}
    for image, ref in rows:
        by_image.setdefault(image['img_id'], dict(image, refs=[]))[
            'refs'].append(ref)
    images = list(by_image.values())
    if shuffle:
        random.Random(0).shuffle(images)
    schema = _schema(images)
    os.makedirs(osp.join(dst, 'data'), exist_ok=True)
    for shard in range(shards):
        begin, end = (len(images) * (shard + i) // shards for i in (0, 1))
        path = osp.join(
            dst, 'data', f'{split}-{shard:05d}-of-{shards:05d}.parquet')
        with parquet.ParquetWriter(
                path, schema, use_dictionary=False,
                compression={name: 'zstd' for name in _leaves(schema)},
                write_statistics=False) as writer:
            for rows in _groups(images[begin:end], split, read):
                writer.write_table(pa.Table.from_pylist(rows, schema))


def _leaves(schema: pa.Schema) -> list[str]:
    """Columns to compress: all but the pictures, which are compressed."""
    table = schema.empty_table()
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    columns = parquet.read_metadata(pa.BufferReader(sink.getvalue())).schema
    paths = [columns.column(i).path for i in range(len(columns))]
    return [path for path in paths if path != 'image.bytes']


def _groups(images: list[dict], split: str,
            read: Callable[[dict], bytes] | None) -> Iterator[list[dict]]:
    rows, size = [], 0
    for image in images:
        content = read(image) if read else None
        rows.append(dict(
            {key: image[key] for key in ('file_name', 'img_id', 'height',
                                         'width')},
            image=dict(bytes=content, path=image['file_name']), split=split,
            refs=[_ref(ref, image['height'], image['width'])
                  for ref in image['refs']]))
        size += len(content or b'')
        if size >= _GROUP or len(rows) >= _MAX_ROWS:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _ref(ref: dict, height: int, width: int) -> dict:
    masks = {
        key: plain_rle(region, height, width)
        for key, region in (('mask', ref['segmentation']),
                            ('ignore', ref.get('ignore')))
        if region is not None}
    ann_ids = ref['ann_id']
    ann_ids = ann_ids if isinstance(ann_ids, list) else [ann_ids]
    return dict(
        {key: ref[key] for key in ('ref_id', 'sentences', 'sent_ids',
                                   'category')},
        ann_id=[i for i in ann_ids if isinstance(i, int)], **masks)


def _schema(images: list[dict]) -> pa.Schema:
    refs = [ref for image in images for ref in image['refs']]
    mask = pa.struct([('size', pa.list_(pa.int32())), ('counts', pa.string())])
    ref = pa.struct([
        ('ref_id', _id_type(ref['ref_id'] for ref in refs)),
        ('ann_id', pa.list_(pa.int64())), ('category', pa.string()),
        ('sentences', pa.list_(pa.string())),
        ('sent_ids', pa.list_(_id_type(i for r in refs
                                       for i in r['sent_ids']))),
        ('mask', mask), ('ignore', mask)])
    return pa.schema([
        ('image', pa.struct([('bytes', pa.binary()), ('path', pa.string())])),
        ('file_name', pa.string()),
        ('img_id', _id_type(image['img_id'] for image in images)),
        ('height', pa.int32()), ('width', pa.int32()), ('split', pa.string()),
        ('refs', pa.list_(ref))])


def _id_type(ids: Iterable) -> pa.DataType:
    return pa.int64() if all(isinstance(i, int) for i in ids) else pa.string()
