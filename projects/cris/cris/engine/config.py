# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import argparse
import os.path as osp
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.config import Config, DictAction

# Top-level setting: (transform, argument) that takes its value.
_SETTINGS = dict(
    image_size=('Letterbox', 'size'),
    context_length=('TokenizeExpressions', 'context_length'))


def load_config(path: str, options: Sequence[str] | dict | None = None,
                work_dir: str | None = None) -> Config:
    """Read a config as the tools do.

    ``image_size`` and ``context_length`` of the config, or of the options,
    hold for every ``Letterbox`` and ``TokenizeExpressions`` in it: a config
    file is run before its child is read, so the child's value would not reach
    the pipelines otherwise. An option that names one transform
    (``test_dataloader.dataset.pipeline.2.size=320``) has priority, and the
    alternatives of a ``RandomChoice`` or ``TestTimeAug`` are kept. A Letterbox
    with the config's ``border_value`` gets the mean of the model's
    data_preprocessor for it, which becomes 0. ``train_image_size``, unless
    it is None, holds for the training pipeline in place of image_size. It
    warns if image_size is far from ``model_image_size``, what the model is
    made for.
    Where there is a GPU, data loaders pin their memory, unless the config says
    otherwise.

    Args:
        path (str): The file.
        options (Sequence[str] | dict, optional): The ``key=value`` strings of
            ``--cfg-options``, or a dict of them. They come last.
        work_dir (str, optional): Overrides the config's. The default of both
            is ``work_dirs/<name of the file>``.

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
    for name, (kind, argument) in _SETTINGS.items():
        if name in cfg:
            for transform in _transforms(dict(cfg.items()), kind):
                transform[argument] = cfg[name]
    if cfg.get('train_image_size') is not None:
        _area(cfg.train_image_size, 'train_image_size')
        training = {name: cfg.get(name)
                    for name in ('train_dataloader', 'train_pipeline')}
        for letterbox in _transforms(training, 'Letterbox'):
            letterbox['size'] = cfg.train_image_size
    _set_border(cfg)
    cfg.merge_from_dict(options)
    if torch.cuda.is_available():
        for loader in ('train_dataloader', 'val_dataloader',
                       'test_dataloader'):
            if cfg.get(loader):
                cfg[loader].setdefault('pin_memory', True)
    _check_image_size(cfg)
    default = osp.join('work_dirs', osp.splitext(osp.basename(path))[0])
    cfg.work_dir = work_dir or cfg.get('work_dir') or default
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


def _transforms(node: Any, kind: str) -> Iterator[dict]:
    """Configs of this type; not in lists of lists, which are alternatives."""
    if isinstance(node, dict):
        name = node.get('type')
        name = name if isinstance(name, str) else getattr(name, '__name__', '')
        if name.rpartition('.')[2] == kind:
            yield node
        children = node.values()
    else:
        children = (i for i in node if isinstance(i, dict))
    for child in children:
        if isinstance(child, (dict, list, tuple)):
            yield from _transforms(child, kind)


def _set_border(cfg: Config) -> None:
    preprocessor = cfg.get('model', {}).get('data_preprocessor') or {}
    mean = preprocessor.get('mean')
    if mean is None:
        return
    border = mean[::-1] if preprocessor.get('bgr_to_rgb') else mean
    for letterbox in _transforms(dict(cfg.items()), 'Letterbox'):
        if letterbox.get('border_value') == cfg.get('border_value'):
            letterbox['border_value'] = border


def _check_image_size(cfg: Config) -> None:
    if 'image_size' not in cfg:
        return
    made_for = cfg.get('model_image_size', cfg.image_size)
    ratio = _area(cfg.image_size) / _area(made_for)
    if not 1 / 2 <= ratio <= 2:
        warnings.warn(
            f'image_size={cfg.image_size} has {ratio:.2g} times the pixels of '
            f'model_image_size={made_for}, the size that this model was made '
            'for: masks may be poor', stacklevel=3)


def _area(size: Any, name: str = 'image_size') -> int:
    sides = [size, size] if isinstance(size, int) else size
    try:
        height, width = map(int, sides)
        if height > 0 and width > 0:
            return height * width
    except (TypeError, ValueError):
        pass
    raise ValueError(f'{name}={size!r} must be the side of a square or '
                     '(height, width), in pixels')
