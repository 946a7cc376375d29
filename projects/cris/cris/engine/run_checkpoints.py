# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Save the checkpoints of a run atomically, and find the latest one."""
import logging
import os.path as osp
import re
import zipfile
from collections.abc import Iterator
from glob import escape, glob

from mmengine.dist import barrier, is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner

from cris.io.atomic import PARTIAL, atomic_write, write_text
from cris.io.checkpoints import read_checkpoint

_LAST = 'last_checkpoint'  # mmengine's name


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

    It is the one that was saved last, which ``last_checkpoint`` names; without
    it, the one with the most iterations. Times of files are not used: clocks
    differ, and copies are new. Checkpoints without the state of the optimizer,
    such as the best of a run, are passed over, damaged ones with a warning.

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


def note_last_checkpoint(work_dir: str, path: str) -> None:
    """Say that this checkpoint of the run was saved last."""
    write_text(osp.join(work_dir, _LAST), path)


def _newest_first(work_dir: str) -> Iterator[str]:
    last = None
    pointer = osp.join(work_dir, _LAST)
    if osp.isfile(pointer):  # it may name another folder
        with open(pointer) as file:
            last = file.read().strip()
        if osp.exists(last):
            yield last
    others = [path for path in glob(osp.join(escape(work_dir), '*.pth'))
              if last is None or osp.realpath(path) != osp.realpath(last)]
    if len(others) > 1:  # else it need not be read for its iteration
        others.sort(key=lambda path: (_iteration(path), path), reverse=True)
    yield from others


def _iteration(path: str) -> float:
    """After which a checkpoint was saved; infinite if it is damaged."""
    if osp.isdir(path):  # one file per rank: only the name says it
        return float(([-1] + re.findall(r'\d+', osp.basename(path)))[-1])
    try:
        meta = read_checkpoint(path, mmap=True).get('meta')
    except ValueError:
        return float('inf')
    return meta.get('iter', -1) if isinstance(meta, dict) else -1
