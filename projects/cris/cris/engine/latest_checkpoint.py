# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import logging
import os.path as osp
import zipfile
from glob import escape, glob

from mmengine.logging import print_log

from cris.io.checkpoints import read_checkpoint


def latest_checkpoint(work_dir: str) -> str | None:
    """The newest checkpoint from which a run can go on.

    Broken files, and those without the state of the optimizer such as the
    best of a run, are passed over; the former with a warning.

    Args:
        work_dir (str): Of the run.

    Returns:
        str: Its path, or None if there is none.

    Raises:
        ValueError: If there are checkpoints, but not a readable one.
    """
    broken = []
    for path in _candidates(work_dir):
        try:
            usable = can_resume(path)
        except ValueError as error:
            broken.append(path)
            print_log(
                f'{error}; it is skipped', 'current', level=logging.WARNING)
            continue
        if usable:
            return path
    if broken:
        raise ValueError(
            f'every checkpoint in {work_dir} is broken: {", ".join(broken)}. '
            'Get one from elsewhere, or train without --resume')
    return None


def can_resume(path: str) -> bool:
    """Whether a checkpoint holds a whole run, not only weights.

    Raises:
        ValueError: If the file is broken.
    """
    if osp.isdir(path):  # one file per rank, written by FSDP or DeepSpeed
        return True
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch would read flipped bits as numbers.
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f'{path} is damaged: the checksum of '
                                 f'{damaged} is wrong')
    checkpoint = read_checkpoint(path)
    return {'meta', 'state_dict', 'optimizer'} <= checkpoint.keys()


def _candidates(work_dir: str) -> list[str]:
    """Newest first."""
    paths = glob(osp.join(escape(work_dir), '*.pth'))
    pointer = osp.join(work_dir, 'last_checkpoint')
    if osp.isfile(pointer):  # it may name another folder
        with open(pointer) as file:
            named = file.read().strip()
        if osp.exists(named):
            paths.append(named)
    unique = {osp.realpath(path): path for path in paths}.values()
    return sorted(unique, key=osp.getmtime, reverse=True)
