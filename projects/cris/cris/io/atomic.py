# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import errno
import os
import shutil
import uuid
from contextlib import suppress

from mmengine.fileio import LocalBackend, register_backend

#: Of files that are being written.
PARTIAL = '.partial'
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class AtomicBackend(LocalBackend):
    """Local files that are there wholly or not at all, whenever one looks.

    They are written beside, flushed to the disk and renamed.
    """

    def put(self, obj: bytes, filepath: str) -> None:
        """Write a file.

        Args:
            obj (bytes): Its content.
            filepath (str): Its path; folders are made.

        Raises:
            OSError: If the disk is full or fails; a file that was there
                before is left as it was.
        """
        path = os.fspath(filepath)
        # Its own name: at times all ranks write the same file.
        partial = f'{path}.{uuid.uuid4().hex}{PARTIAL}'
        folder = os.path.dirname(path) or '.'
        os.makedirs(folder, exist_ok=True)
        try:
            with open(partial, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            _sync_folder(folder)
        except OSError as error:
            if os.path.exists(partial):
                os.remove(partial)
            if error.errno not in _FULL:
                raise
            raise OSError(
                error.errno,
                f'{path} ({len(obj) / 2**20:.1f} MiB) could not be written: '
                f'{os.strerror(error.errno)}, {_free(folder):.1f} MiB are '
                'free. What was saved before is intact: make room, then go '
                'on with --resume') from error

    def put_text(self, obj: str, filepath: str,
                 encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)


def use_atomic_files() -> None:
    """Let mmengine write local files with :class:`AtomicBackend`.

    This holds for the whole process; hooks that save checkpoints ask for it.
    """
    register_backend('local', AtomicBackend, force=True, prefixes='')


def _free(folder: str) -> float:
    return shutil.disk_usage(folder).free / 2**20


def _sync_folder(folder: str) -> None:
    """The new name, too, must survive a loss of power."""
    # Windows opens no folder, and some network file systems sync none.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
