# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The official repository's LMDB -> its JSON form.

``<split>.lmdb`` has the keys ``__len__``, ``__keys__`` and one per ref:
``{img, mask, cat, seg_id, img_name, num_sents, sents}`` with the contents of
the image and mask files. Versions of the official code wrote it with
``pyarrow.serialize`` (which newer pyarrow lacks), pickle or msgpack.
"""
import glob
import hashlib
import importlib
import json
import os
import os.path as osp
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from types import ModuleType
from typing import Any

from cris.datasets.masks import to_mask_files
from cris.datasets.readers.shared import flatten, require
from cris.datasets.records import EntryError, Fault, RecordBuilder, short
from cris.io.files import FileError, safe_join
from cris.io.images import image_size
from cris.io.pickles import parse_plain_pickle

from .writers import check_new_folder, official_entry, write_json

_MAX_NESTED = 1_000_000  # entries of a list or dict in msgpack


def convert_lmdb(src: str, dst: str) -> tuple[dict[str, int], list[Fault]]:
    """Write ``anns/<split>.json``, ``masks/`` and ``images/``.

    Image and mask files are copied byte for byte. A mask file is named by its
    ``seg_id`` if that is a free number. An image whose name belongs to a
    different image already goes to a subfolder.

    Args:
        src (str): Folder of ``<split>.lmdb``, or one of them; only read.
        dst (str): Folder to write to; new or empty.

    Returns:
        tuple: Refs by split, and a fault for each broken entry, left out.

    Raises:
        ImportError: If lmdb, pyarrow or msgpack is needed and missing.
        OSError: If there is no LMDB, or ``dst`` is not empty.
        ValueError: If a file is not such an LMDB.
    """
    paths = [osp.normpath(src)]
    if not paths[0].endswith('.lmdb'):
        paths = sorted(glob.glob(osp.join(glob.escape(src), '*.lmdb')))
    if not paths or not osp.exists(paths[0]):
        raise FileNotFoundError(
            f'{src} does not exist, or has no <split>.lmdb')
    check_new_folder(dst)
    for folder in ('anns', 'masks', 'images'):
        os.makedirs(osp.join(dst, folder), exist_ok=True)
    writer, counts = _EntryWriter(dst), {}
    for path in paths:
        split = osp.splitext(osp.basename(path))[0]
        entries = []
        for number, (key, value) in enumerate(_read_values(path)):
            where = f'{path}, entry {key}'
            # On an error, the files that it has written are removed.
            with writer.builder.entry(where), ExitStack() as undo:
                entry = _check_entry(parse_value(value, where))
                entries.append(writer.write(entry, split, number, undo))
                undo.pop_all()
        write_json(osp.join(dst, 'anns', f'{split}.json'), entries)
        counts[split] = len(entries)
    return counts, writer.builder.faults


class _EntryWriter:

    def __init__(self, dst: str):
        self.builder = RecordBuilder()
        self._dst = dst
        self._digests: dict[str, bytes] = {}  # by name of the image
        self._ref_ids = count()

    def write(self, entry: dict, split: str, number: int,
              undo: ExitStack) -> dict:
        """Write the files of an entry; return it in the JSON form."""
        name, digest = entry['img_name'], hashlib.sha256(entry['img']).digest()
        path = safe_join(osp.join(self._dst, 'images'), name)
        if self._digests.get(name, digest) != digest:
            name = f'{split}_{number}/{name}'
            path = osp.join(self._dst, 'images', name)
        if name not in self._digests:
            _write(path, entry['img'], undo)
        height, width = image_size(path)
        seg_id, category = entry.get('seg_id'), entry.get('cat')
        mask_name = seg_id
        if not isinstance(seg_id, int) or abs(seg_id) >> 63 or osp.exists(
                osp.join(self._dst, 'masks', f'{seg_id}.png')):
            mask_name = f'{split}_{number}'
        mask_path = osp.join(self._dst, 'masks', f'{mask_name}.png')
        _write(mask_path, entry['mask'], undo)
        self.builder.add(
            dict(file_name=name, img_id=name, height=height, width=width),
            ref_id=next(self._ref_ids), ann_id=seg_id, split=split,
            category=None if category is None else short(category),
            segmentation=to_mask_files(mask_path),
            sentences=flatten(entry['sents']))
        self._digests[name] = digest
        image = self.builder.images[name]
        return official_entry(image, image['refs'][-1], mask_name)


def _write(path: str, content: bytes, undo: ExitStack) -> None:
    os.makedirs(osp.dirname(path), exist_ok=True)
    with open(path, 'xb') as file:
        undo.callback(os.remove, path)
        file.write(content)


def _check_entry(entry: Any) -> dict:
    if not isinstance(entry, dict):
        raise EntryError('it is not a dict', 'bad-entry')
    require(entry, 'img', 'mask', 'img_name', 'sents')
    for key in ('img', 'mask'):
        if not isinstance(entry[key], bytes):
            raise EntryError(
                f'its {key} is a {type(entry[key]).__name__}, not bytes',
                'bad-entry')
    for key in ('seg_id', 'cat'):
        try:
            json.dumps(entry.get(key))
        except (TypeError, ValueError) as error:
            raise EntryError(
                f'its {key} cannot be written as JSON: {error}',
                'bad-entry') from error
    return entry


def _read_values(path: str) -> Iterator[tuple[str, bytes]]:
    """Keys and values, in the order of the file's own list of keys."""
    lmdb = _import('lmdb', path)
    try:
        with lmdb.open(
                path, subdir=osp.isdir(path), readonly=True, create=False,
                lock=False) as environment, environment.begin() as transaction:
            stored = transaction.get(b'__keys__')
            if stored is None:
                raise ValueError(f'{path} has no entry __keys__: it is not an '
                                 'LMDB of the official code, or incomplete')
            keys = parse_value(stored, f'{path}, entry __keys__')
            if not isinstance(keys, (list, tuple)):
                raise ValueError(f'{path}, entry __keys__ is not a list')
            for key in keys:
                if not isinstance(key, bytes):
                    key = str(key).encode(errors='replace')
                # LMDB itself refuses keys of other lengths.
                found = 0 < len(key) < 512 and transaction.get(key)
                yield key.decode(errors='replace'), found or b''
    except lmdb.Error as error:
        raise ValueError(f'{path} is not an LMDB, or broken: {error}. Get the '
                         'file again from its source.') from error


def _import(name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f'to read {where}, pip install {name}') from error


def parse_value(value: bytes, where: str) -> Any:
    """Parse a stored value: plain data only, nothing is executed.

    Raises:
        ImportError: If the package that reads its format is not installed.
        FileError: If it is broken or its format unknown; ``where`` is its
            name in the message.
    """
    if value[:1] == b'\x80' and value[1:2] in (b'\2', b'\3', b'\4', b'\5'):
        return parse_plain_pickle(value, where)
    if value[:4] == b'\0\0\0\0' and len(value) > 16:
        return _parse_arrow(value, where)
    msgpack = _import('msgpack', where)
    # Texts and bytes are no longer than the value by default.
    limits = dict(max_ext_len=0, max_array_len=_MAX_NESTED,
                  max_map_len=_MAX_NESTED)
    try:
        try:
            return msgpack.unpackb(value, **limits)
        except UnicodeDecodeError:
            # Old versions have one type for text and bytes.
            return _decode_texts(msgpack.unpackb(value, raw=True, **limits))
    except Exception as error:  # msgpack raises all kinds on broken bytes
        if value[-1:] == b'.':  # pickle's protocols 0 and 1 have no magic
            return parse_plain_pickle(value, where)
        raise FileError(f'{where} is neither pyarrow.serialize nor pickle nor '
                        f'msgpack: {error!r}') from error


def _parse_arrow(value: bytes, where: str) -> Any:
    """``pyarrow.serialize``: four counts, then a stream of one batch.

    The batch has one row; dicts are lists of (keys, vals). Objects of other
    types would be dicts with ``_pytype_``, which nothing here acts on.
    """
    pyarrow = _import('pyarrow', where)
    if value[:16] != bytes(16):
        raise FileError(f'{where} holds arrays or tensors of pyarrow, which '
                        'are not part of the official format')
    try:
        with pyarrow.ipc.open_stream(pyarrow.py_buffer(value)[16:]) as stream:
            batch = stream.read_next_batch()
        batch.validate(full=True)
        return _from_arrow(*batch.column(0).to_pylist())
    except Exception as error:  # pyarrow raises all kinds on broken bytes
        raise FileError(
            f'{where} was written by pyarrow.serialize, but this pyarrow '
            f'({pyarrow.__version__}) cannot read it: {error}. Write the LMDB '
            'again, with pickled plain data for instance.') from error


def _from_arrow(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    if content and all(
            isinstance(item, dict) and item.keys() == {'keys', 'vals'}
            for item in content):
        return {item['keys']: _from_arrow(item['vals']) for item in content}
    return [_from_arrow(item) for item in content]


def _decode_texts(value: Any) -> Any:
    """Bytes -> text, except in ``img`` and ``mask``."""
    if isinstance(value, dict):
        return {k.decode(): v if k in (b'img', b'mask') else _decode_texts(v)
                for k, v in value.items()}
    if isinstance(value, list):
        return [_decode_texts(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value
