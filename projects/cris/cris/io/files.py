# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Checks for files of unknown origin."""
import gc
import json
import ntpath
import os
import os.path as osp
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

try:
    import orjson
except ImportError:  # optional; the standard library is slower
    orjson = None

#: Larger image and mask files are refused.
MAX_BYTES = 1 << 30
_LARGE = 64 << 20  # bytes


class FileError(ValueError):
    """A file that cannot be used; ``kind`` is, for example, 'bad-image'."""

    def __init__(self, message: str, kind: str = 'bad-file'):
        super().__init__(message)
        self.kind = kind


@contextmanager
def without_gc() -> Iterator[None]:
    """Do not search millions of new objects for cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_json(path: str) -> Any:
    """Read a JSON file; a broken one is a FileError ('bad-json')."""
    try:
        if osp.getsize(path) > _LARGE:
            # orjson is faster, but takes twice the memory meanwhile.
            with open(path, encoding='utf-8-sig') as file, without_gc():
                return json.load(file)
        with open(path, 'rb') as file:
            return parse_json(file.read())
    except (ValueError, RecursionError) as error:
        raise FileError(
            f'{path} is not valid JSON: {error}. Get the file again from its '
            'source.', 'bad-json') from error


def parse_json(content: bytes) -> Any:
    """``json.loads``, faster where orjson is installed."""
    with without_gc():
        if orjson:
            try:
                return orjson.loads(content)
            except ValueError:
                pass  # json reads NaN and huge numbers; its errors are clearer
        return json.loads(content.decode('utf-8-sig'))


def dump_json(value: Any) -> bytes:
    """``json.dumps``, faster where orjson is installed."""
    if orjson:
        return orjson.dumps(value)
    return json.dumps(value, separators=(',', ':')).encode()


def read_bytes(path: str) -> bytes:
    """Read a file that :func:`check_file` accepts."""
    check_file(path)
    with open(path, 'rb') as file:
        return file.read()


def check_file(path: str) -> None:
    """Refuse files that would block the reader or fill the memory.

    Raises:
        FileError: If it is not a regular file, e.g. a pipe ('bad-file'), or
            has more than ``MAX_BYTES`` ('file-too-large').
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise FileError(f'{path} is not a regular file')
    if state.st_size > MAX_BYTES:
        raise FileError(
            f'{path} has {state.st_size} bytes, more than the limit of '
            f'{MAX_BYTES}', 'file-too-large')


def safe_join(folder: str, name: Any) -> str:
    """Path of a file that an annotation names, inside its folder.

    Raises:
        FileError: If the name is not a file name, is absolute or contains
            ``..``, or if a link in the folder, which may be a link itself,
            leads out of it ('unsafe-name').
    """
    if not _is_name(name):
        raise FileError(f'{reprlib.repr(name)} is not a file name',
                        'unsafe-name')
    if (osp.isabs(name) or ntpath.splitdrive(name)[0] or '://' in name
            or '..' in name.replace('\\', '/').split('/')):
        raise FileError(
            f'the file name {name!r} leaves the folder {folder}; it must be '
            'relative to the folder, without ".."', 'unsafe-name')
    path = step = osp.join(folder, name)
    while len(step) > len(folder) and not osp.islink(step):
        step = osp.dirname(step)
    if len(step) > len(folder):  # a link
        real, root = osp.realpath(path), osp.realpath(folder)
        if osp.commonpath([real, root]) != root:
            raise FileError(
                f'the file {path} is a link that leads out of {folder}, to '
                f'{real}; put the file itself there, or make the folder a '
                'link', 'unsafe-name')
    return path


def _is_name(name: Any) -> bool:
    try:
        return (isinstance(name, str) and bool(name.strip())
                and b'\0' not in os.fsencode(name))
    except UnicodeEncodeError:
        return False
