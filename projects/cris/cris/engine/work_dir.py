# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""One training at a time in a work dir."""
import errno
import logging
import os
import os.path as osp
import socket
import time
from contextlib import suppress

from mmengine.config import Config
from mmengine.dist import all_gather_object
from mmengine.logging import print_log

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_LOCK = 'train.lock'
_HELD = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_PATIENCE = 5  # seconds; a run that was stopped may still be ending


def lock_work_dir(cfg: Config) -> None:
    """Refuse a work dir in which another run trains, on this node or another.

    The first rank holds ``train.lock`` until its process ends, in whatever
    way. Call it after :func:`init_ranks`: all ranks of a group raise. On GPUs
    there is no group yet, and the launcher ends the others.

    Args:
        cfg (Config): Of the run, with ``launcher`` and ``work_dir``.

    Raises:
        OSError: It names the host and the process of the other run; or if the
            file cannot be written.
    """
    fault = None
    try:
        os.makedirs(cfg.work_dir, exist_ok=True)
        if fcntl and (cfg.launcher == 'none'
                      or os.environ['RANK'] == '0'):
            _lock(cfg.work_dir)
    except OSError as error:
        fault = error
    faults = [fault for fault in all_gather_object(fault) if fault]
    if faults:
        raise faults[0]


def _lock(work_dir: str) -> None:
    path = osp.join(work_dir, _LOCK)
    # Never closed: closing any descriptor of the file releases the lock.
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            # Not flock: data workers would inherit it, and may live on after
            # this process was killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in _NO_LOCKS:
                print_log(f'{path} cannot be locked ({error}): do not start '
                          'another run in this folder', 'current',
                          logging.WARNING)
                return
            if error.errno not in _HELD:
                raise
            if time.monotonic() > deadline:
                owner = os.read(file, 999).decode(errors='replace').strip()
                os.close(file)
                raise OSError(
                    f'another run ({owner or "of unknown host"}) trains in '
                    f'{work_dir}: wait for its end, or give this one another '
                    '--work-dir') from None
        time.sleep(0.1)
    with suppress(OSError):  # a full disk
        os.ftruncate(file, 0)
        os.write(file, f'host {socket.gethostname()}, process {os.getpid()}\n'
                 .encode())
