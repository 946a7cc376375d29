# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The official repository's LMDB, read only, whichever serialiser wrote it.

``<split>.lmdb`` has the keys ``__len__``, ``__keys__`` and one per ref:
``{img, mask, cat, seg_id, img_name, num_sents, sents}`` with the contents of
the image and mask files. Versions of the code wrote them with
``pyarrow.serialize`` (which no later pyarrow has), pickle or msgpack.
"""
import os
import os.path as osp
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from cris.datasets.masks import to_mask_files
from cris.datasets.records import EntryError, RecordBuilder, Records
from cris.io.files import safe_join
from cris.io.pickles import parse_plain_pickle

from .common import flatten, sentence_ids
from .jsonl import files_of_splits

_MAX_NESTED = 1_000_000  # entries of one list or dict in msgpack


def read_official_lmdb(ann_file: str,
                       split: None | str | Sequence[str] = None
                       ) -> Records:
    """Read refs from LMDB files; images and masks stay there.

    Args:
        ann_file (str): The LMDB, with ``{split}`` in its name.
        split (str | list[str], optional): One split or several.

    Returns:
        Records: Records and faults; ``img_path`` of an image and
        ``mask_file`` of a mask are addresses that
        :func:`cris.datasets.files.read_bytes` understands.

    Raises:
        FileNotFoundError: If a file is missing.
        ImportError: If ``lmdb`` (or for some files pyarrow or msgpack) is.
        ValueError: If a file is no LMDB of this kind.
    """
    builder = RecordBuilder()
    next_id = next_sentence = 0
    for path, name in files_of_splits(ann_file, split):
        for key, value in _entries(path):
            next_id += 1
            where = f'{path}, entry {key}'
            with builder.entry(where):
                ref = parse_value(value, where)
                _check_entry(ref)
                address = f'{LMDB_SCHEME}{path}#{key}#'
                base = osp.basename(ref['img_name']).replace('#', '_')
                image = builder.images.get(ref['img_name'])
                if image is None:
                    image = _image(ref['img_name'], f'{address}img/{base}')
                sentences = flatten(ref['sents'])
                ids, next_sentence = sentence_ids(None, next_sentence,
                                                  len(sentences))
                category = ref.get('cat')
                builder.add(
                    {k: v for k, v in image.items() if k != 'refs'},
                    dict(
                        ref_id=next_id - 1,
                        ann_id=ref.get('seg_id'),
                        split=name or (
                            split if isinstance(split, str) else 'all'),
                        category=None if category is None else str(category),
                        segmentation=to_mask_files(f'{address}mask/{base}'),
                        sent_ids=ids,
                        sentences=sentences))
    return builder.records()


def read_value(address: str) -> bytes:
    """The bytes of an image or mask inside an LMDB.

    Args:
        address (str): As :func:`read_official_lmdb` makes them.
    """
    path, key, field = address[len(LMDB_SCHEME):].rsplit('#', 2)
    with _open(path, os.getpid()).begin() as transaction:
        value = transaction.get(key.encode())
        if value is None:
            raise FileNotFoundError(2, 'no such entry', address)
        content = parse_value(value, address)[field.split('/')[0]]
    return content.encode('latin-1') if isinstance(content, str) else content


def parse_value(value: bytes, where: str) -> Any:
    """A value of the LMDB; plain data only, nothing is executed.

    Args:
        value (bytes): As stored.
        where (str): Its name in messages.

    Raises:
        ImportError: If the package that reads its format is not installed.
        ValueError: If it is of no known format.
    """
    if value[:1] == b'\x80' and value[1:2] in (b'\2', b'\3', b'\4', b'\5'):
        return parse_plain_pickle(value, where)
    if value[:4] == b'\0\0\0\0' and len(value) > 16:
        return _parse_arrow(value, where)
    try:
        return _parse_msgpack(value)
    except ValueError as error:
        if value[-1:] == b'.':  # pickle's protocols 0 and 1 have no magic
            return parse_plain_pickle(value, where)
        raise ValueError(f'{where} is neither pyarrow.serialize nor pickle '
                         f'nor msgpack: {error}') from error


def _parse_arrow(value: bytes, where: str) -> Any:
    """``pyarrow.serialize``: four counts, then a stream of one batch.

    The batch has one row; dicts are lists of (keys, vals). Objects of other
    types would be dicts with ``_pytype_``, which nothing here acts on.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            f'{where} was written by pyarrow.serialize; to read it, '
            'pip install pyarrow') from error
    if value[:16] != bytes(16):
        raise ValueError(f'{where} holds arrays or tensors of pyarrow, which '
                         'are not part of the official format')
    try:
        with pyarrow.ipc.open_stream(pyarrow.py_buffer(value)[16:]) as stream:
            batch = stream.read_next_batch()
        batch.validate(full=True)
        (content, ) = batch.column(0).to_pylist()
        return _from_arrow(content)
    except Exception as error:  # whatever broken bytes provoke
        raise ValueError(
            f'{where} was written by pyarrow.serialize, but this pyarrow '
            f'({pyarrow.__version__}) cannot read it: {error}. Write the '
            'LMDB again, or read it with the pyarrow that wrote it and store '
            'pickled plain data') from error


def _from_arrow(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    if content and all(
            isinstance(item, dict) and item.keys() == {'keys', 'vals'}
            for item in content):
        return {item['keys']: _from_arrow(item['vals']) for item in content}
    return [_from_arrow(item) for item in content]


def _parse_msgpack(value: bytes) -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise ImportError('this LMDB seems to be written by msgpack; to read '
                          'it, pip install msgpack') from error
    limits = dict(
        max_str_len=len(value),
        max_bin_len=len(value),
        max_array_len=_MAX_NESTED,
        max_map_len=_MAX_NESTED,
        max_ext_len=0)
    try:
        try:
            return msgpack.unpackb(value, raw=False, **limits)
        except UnicodeDecodeError:
            # Written without a type of its own for bytes.
            return _with_text(msgpack.unpackb(value, raw=True, **limits))
    except Exception as error:  # whatever broken bytes provoke
        raise ValueError(str(error) or type(error).__name__) from error


def _with_text(value: Any) -> Any:
    """Bytes -> text, but for what img and mask hold."""
    if isinstance(value, dict):
        return {
            k.decode(): v if k in (b'img', b'mask') else _with_text(v)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [_with_text(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


@lru_cache(maxsize=8)
def _open(path: str, process: int) -> Any:
    """An environment of LMDB, which may not be used across a fork."""
    try:
        import lmdb
    except ImportError as error:
        raise ImportError(
            f'to read {path}, pip install lmdb') from error
    try:
        return lmdb.open(
            path,
            subdir=osp.isdir(path),
            readonly=True,
            create=False,
            lock=False,
            readahead=False,
            meminit=False)
    except lmdb.Error as error:
        raise ValueError(f'{path} is no LMDB, or broken: {error}. Get the '
                         'file again from its source.') from error


# Nor may a file be open already in the process that opens it.
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(before=_open.cache_clear)


def _entries(path: str) -> Iterator[tuple[str, bytes]]:
    """Keys and values in the order of the file's own list of keys."""
    with _open(path, os.getpid()).begin() as transaction:
        stored = transaction.get(b'__keys__')
        if stored is None:
            raise ValueError(f'{path} has no entry __keys__: it is not the '
                             'LMDB of the official code, or incomplete')
        keys = parse_value(stored, f'{path}, entry __keys__')
        if not isinstance(keys, (list, tuple)):
            raise ValueError(f'{path}, entry __keys__ is no list')
        for key in keys:
            key = key.decode() if isinstance(key, bytes) else str(key)
            # LMDB itself refuses keys of other lengths.
            value = transaction.get(
                key.encode()) if 0 < len(key.encode()) < 512 else None
            yield key, b'' if value is None else value


def _check_entry(ref: Any) -> None:
    if not isinstance(ref, dict):
        raise EntryError('bad-entry', 'it holds no dict')
    missing: list[str] = [
        key for key in ('img', 'mask', 'img_name', 'sents') if key not in ref
    ]
    if missing:
        raise EntryError('bad-entry', f'it has no {", ".join(missing)}')
    try:
        safe_join('images', ref['img_name'])
    except ValueError as error:
        raise EntryError('unsafe-name', f'its image: {error}') from error


def _image(name: str, path: str) -> dict:
    try:
        height, width = image_size(path)
    except ValueError as error:
        kind = 'image-too-large' if 'limit' in str(error) else 'bad-image'
        raise EntryError(kind, str(error)) from error
    return dict(
        file_name=name, img_id=name, height=height, width=width,
        img_path=path)
