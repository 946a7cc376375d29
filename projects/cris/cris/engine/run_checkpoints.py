# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Save the checkpoints of a run atomically, and find the latest one."""
import logging
import os.path as osp
import zipfile
from glob import escape, glob

from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner

from cris.io.atomic import PARTIAL, atomic_write
from cris.io.checkpoints import read_checkpoint


def save_checkpoint(runner: Runner, out_dir: str, filename: str,
                    *args, **kwargs) -> None:
    """Save atomically: write a temporary file, verify it, rename it.

    Raises:
        OSError: If the disk is full or the written file cannot be read. An
            existing checkpoint of that name stays as it was.
    """
    path = osp.join(out_dir, filename)
    with atomic_write(path, rename=is_main_process()) as partial:
        runner.save_checkpoint(out_dir, filename + PARTIAL, *args, **kwargs)
        if osp.isdir(partial):  # every rank writes its part
            barrier()
        if is_main_process():
            try:
                verify_checkpoint(partial)
            except ValueError as error:
                raise OSError(
                    f'{path} was written but cannot be read back ({error}): '
                    'check the disk. The checkpoint before it is kept'
                ) from error


def verify_checkpoint(path: str) -> bool:
    """Read a checkpoint; say whether a run can be resumed from it.

    Raises:
        ValueError: If it is damaged.
    """
    if osp.isdir(path):  # one file per rank, by FSDP or DeepSpeed
        return True
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch.load does not verify checksums.
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f'{path} is damaged: the checksum of '
                                 f'{damaged} is wrong')
    checkpoint = read_checkpoint(path, mmap=True)
    return {'meta', 'state_dict', 'optimizer'} <= checkpoint.keys()


def latest_checkpoint(work_dir: str) -> str | None:
    """The newest checkpoint from which a run can be resumed.

    Those without the state of the optimizer, such as the best of a run, are
    passed over, damaged ones with a warning.

    Raises:
        ValueError: If there are checkpoints, but all are damaged.
    """
    damaged = []
    for path in _newest_first(work_dir):
        try:
            if verify_checkpoint(path):
                return path
        except ValueError as error:
            damaged.append(path)
            print_log(f'{error}; it is skipped', 'current', logging.WARNING)
    if damaged:
        raise ValueError(
            f'every checkpoint in {work_dir} is damaged: '
            f'{", ".join(damaged)}. Get one from elsewhere, or train without '
            '--resume')
    return None


def _newest_first(work_dir: str) -> list[str]:
    paths = glob(osp.join(escape(work_dir), '*.pth'))
    pointer = osp.join(work_dir, 'last_checkpoint')
    if osp.isfile(pointer):  # it may name another folder
        with open(pointer) as file:
            named = file.read().strip()
        if osp.exists(named):
            paths.append(named)
    unique = {osp.realpath(path): path for path in paths}.values()
    return sorted(unique, key=osp.getmtime, reverse=True)
