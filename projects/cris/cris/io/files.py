# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Reading files of unknown origin: nothing outside their folder is read."""


import gc
import json
import ntpath
import os
import os.path as osp
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

try:
    import orjson
except ImportError:  # the standard library does it, too, more slowly
    orjson = None

#: Nor are larger files of pictures and masks read.
MAX_BYTES = 1 << 30
_LARGE = 64 << 20  # bytes


@contextmanager
def without_gc() -> Iterator[None]:
    """Millions of new objects would be searched for cycles, in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def load_json(path: str) -> Any:
    """Read a JSON file; a broken one is a ValueError that names it."""
    try:
        if osp.getsize(path) > _LARGE:
            # orjson would be faster, but takes twice the memory meanwhile.
            with open(path, encoding='utf-8-sig') as file, without_gc():
                return json.load(file)
        with open(path, 'rb') as file:
            return parse_json(file.read())
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not valid JSON: {error}. Get the '
                         'file again from its source.') from error


def parse_json(content: bytes) -> Any:
    """Like ``json.loads``, faster where orjson is installed."""
    with without_gc():
        if orjson:
            try:
                return orjson.loads(content)
            except ValueError:
                pass  # NaN, huge numbers: or an error that json words better
        return json.loads(content.decode('utf-8-sig'))


def dump_json(value: Any) -> bytes:
    """Like ``json.dumps``, faster where orjson is installed.

    Raises:
        TypeError: If the value is not of JSON's types.
    """
    if orjson:
        return orjson.dumps(value)
    return json.dumps(value, separators=(',', ':')).encode()


def read_bytes(path: str) -> bytes:
    """The content of a file that :func:`check_file` admits."""
    check_file(path)
    with open(path, 'rb') as file:
        return file.read()


def check_file(path: str) -> None:
    """Refuse what would block for ever or fill the memory when it is read.

    Raises:
        OSError: If it is not there.
        ValueError: If it is no regular file (a pipe, for instance) or larger
            than ``MAX_BYTES``.
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError(f'{path} is no regular file')
    if state.st_size > MAX_BYTES:
        raise ValueError(f'{path} has {state.st_size} bytes, more than the '
                         f'limit of {MAX_BYTES}')


def safe_join(folder: str, name: Any) -> str:
    """The path of a file that an annotation names, inside its folder.

    Args:
        folder (str): The folder of images or masks. It may be a link itself.
        name (str): What the annotation says, relative to the folder.

    Returns:
        str: The path.

    Raises:
        ValueError: If the name is none, is absolute, holds ``..``, or a link
            on the way leads out of the folder.
    """
    if not isinstance(name, str) or not name.strip() or '\0' in name:
        raise ValueError(f'the file name {name!r} is none')
    parts = name.replace('\\', '/').split('/')
    if (osp.isabs(name) or ntpath.splitdrive(name)[0] or '..' in parts
            or '://' in name):
        raise ValueError(f'the file name {name!r} leaves the folder {folder}; '
                         'it must be relative to it, without ".."')
    path = osp.join(folder, name)
    if _has_link(folder, parts):
        real, root = osp.realpath(path), osp.realpath(folder)
        if osp.commonpath([real, root]) != root:
            raise ValueError(
                f'the file {path} is a link that leads out of {folder}, to '
                f'{real}; put the file itself there, or make the folder a '
                'link')
    return path


def _has_link(folder: str, parts: list[str]) -> bool:
    for part in parts:
        folder = osp.join(folder, part)
        if osp.islink(folder):
            return True
    return False
