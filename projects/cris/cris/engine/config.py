# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import os.path as osp

from mmengine.config import Config


def load_config(path: str,
                options: dict | None = None,
                work_dir: str | None = None) -> Config:
    """Read a config as the tools do.

    Args:
        path (str): Config file.
        options (dict, optional): Of ``--cfg-options``; they come last.
        work_dir (str, optional): Goes before the config's own; without
            either it is ``work_dirs/<name of the file>``.

    Returns:
        Config: With its bases merged.

    Raises:
        FileNotFoundError: If it or a base does not exist.
        ValueError: If it is no Python.
    """
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        raise ValueError(f'{path} is no config file: {error}') from error
    cfg.merge_from_dict(options or {})
    stem = osp.splitext(osp.basename(path))[0]
    cfg.work_dir = (
        work_dir or cfg.get('work_dir') or osp.join('work_dirs', stem))
    return cfg
