# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Files that are complete or absent, whenever the process is killed."""
import errno
import os
import os.path as osp
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Suffix of a file that is being written.
PARTIAL = '.partial'
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """A full disk; the message says what to do."""


@contextmanager
def atomic_write(path: str, rename: bool = True) -> Iterator[str]:
    """Write a temporary file or folder, then rename it.

    What was at the path stays until the new content is complete and on the
    disk. If the disk is full or fails, the temporary file is removed.

    Args:
        path (str): Final path.
        rename (bool): False if another process renames.

    Yields:
        str: The path to write to.
    """
    partial = path + PARTIAL
    try:
        yield partial
        if rename:
            _sync(partial)
            if osp.isdir(path):
                shutil.rmtree(path)
            os.replace(partial, path)
            with suppress(OSError):  # some file systems sync no folder
                _sync(osp.dirname(path) or '.', content=False)
    except OSError as error:
        if rename:
            remove(partial)
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(osp.dirname(path) or '.').free / 2**20
        raise DiskFullError(
            error.errno, f'{path} could not be written: '
            f'{os.strerror(error.errno)}, {free:.1f} MiB are free. What was '
            'saved before is intact: make room, then go on with --resume'
        ) from error


@contextmanager
def disk_space(folder: str, needed: int = 0,
               then: str = 'give the command again') -> Iterator[None]:
    """Raise a DiskFullError if the disk of a folder is full.

    Args:
        folder (str): An existing folder.
        needed (int): How many bytes must be free; 0 if that is not known.
        then (str): What to do when there is room.
    """
    try:
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except OSError as error:
        if error.errno not in _FULL or isinstance(error, DiskFullError):
            raise
        free = shutil.disk_usage(folder).free / 2**20
        wanted = f'{needed / 2**20:.2f} MiB are needed and ' if needed else ''
        raise DiskFullError(
            error.errno, f'the disk of {folder} is full '
            f'({os.strerror(error.errno)}): {wanted}{free:.2f} MiB are free. '
            f'What was complete is kept: make room, then {then}') from error


def write_text(path: str, text: str) -> None:
    """Write a small text file with :func:`atomic_write`."""
    with atomic_write(path) as partial, open(partial, 'w') as file:
        file.write(text)


def remove(path: str) -> None:
    """Remove a file or a folder, if it is there."""
    if osp.isdir(path):
        shutil.rmtree(path)
    elif osp.exists(path):
        os.remove(path)


def _sync(path: str, content: bool = True) -> None:
    """Flush a file, or a folder with the files in it, to the disk."""
    if content and osp.isdir(path):
        for name in os.listdir(path):
            _sync(osp.join(path, name))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
