# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import argparse
import os.path as osp
from collections.abc import Sequence

from mmengine.config import Config, DictAction


def load_config(path: str,
                options: Sequence[str] | dict | None = None,
                work_dir: str | None = None) -> Config:
    """Read a config as the tools do.

    Args:
        path (str): Config file.
        options (Sequence[str] | dict, optional): The ``key=value`` strings of
            ``--cfg-options``, or a dict of them. They come last.
        work_dir (str, optional): Goes before the config's own; without
            either it is ``work_dirs/<name of the file>``.

    Returns:
        Config: With its bases and the options merged.

    Raises:
        FileNotFoundError: If the file or one of its bases does not exist.
        ValueError: If the file is not a config, or an option cannot be used.
    """
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        raise ValueError(f'{path} is not a config file: {error}') from error
    if not isinstance(options, dict):
        options = _parse_options(options or ())
    cfg.merge_from_dict(options)
    stem = osp.splitext(osp.basename(path))[0]
    cfg.work_dir = (
        work_dir or cfg.get('work_dir') or osp.join('work_dirs', stem))
    return cfg


def _parse_options(options: Sequence[str]) -> dict:
    for option in options:
        if '=' not in option:
            raise ValueError(
                f'{option!r} in --cfg-options is not of the form key=value')
    parser = argparse.ArgumentParser()
    parser.add_argument('options', nargs='*', action=DictAction)
    try:
        return parser.parse_args(['--', *options]).options or {}
    except AssertionError as error:  # brackets that are not closed
        raise ValueError(f'--cfg-options: {error}') from error
