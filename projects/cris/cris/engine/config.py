# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import os.path as osp
from argparse import Namespace
from collections.abc import Sequence

from mmengine.config import Config, DictAction


def load_config(path: str,
                options: Sequence[str] | dict | None = None,
                work_dir: str | None = None) -> Config:
    """Read a config as the tools do.

    Args:
        path (str): Config file.
        options (Sequence[str] | dict, optional): Of ``--cfg-options``:
            ``key=value`` strings as on the command line, or a dict. They
            override the config.
        work_dir (str, optional): Overrides the config's own; without
            either it is ``work_dirs/<name of the file>``.

    Returns:
        Config: With its bases merged.

    Raises:
        FileNotFoundError: If the file or a base does not exist.
        ValueError: If the file is not Python, or an option has no ``=``.
    """
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        raise ValueError(
            f'{path} is not a config file: {error}') from error
    if options and not isinstance(options, dict):
        options = _parse_options(options)
    cfg.merge_from_dict(options or {})
    stem = osp.splitext(osp.basename(path))[0]
    cfg.work_dir = (
        work_dir or cfg.get('work_dir') or osp.join('work_dirs', stem))
    return cfg


def _parse_options(options: Sequence[str]) -> dict:
    """As mmengine's own command lines do."""
    for option in options:
        if '=' not in option:
            raise ValueError(
                f'--cfg-options takes key=value, not {option!r}')
    namespace = Namespace()
    DictAction(['--cfg-options'], 'options')(None, namespace, options)
    return namespace.options
