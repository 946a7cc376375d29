# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The models of model-index.yml, from a checkout or an installed wheel."""
import difflib
import fnmatch
import os.path as osp
from collections.abc import Iterable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

from cris.engine.config import load_config
from cris.io.checkpoints import load_weights

#: The default model; its weights come with the package.
DEFAULT_MODEL = 'cris_tiny_1xb8-6e_refshapes-128x128'

_PACKAGE = Path(__file__).parents[1]


def default_model_note(model: str | None) -> str | None:
    """What a user of the default model must know; None for other models."""
    if model and model != DEFAULT_MODEL:
        return None
    return ('the default model knows coloured shapes only; for street scenes '
            'there is --model street, for other photographs give a model of '
            'your own')


def _zoo_root() -> Path:
    """Folder of model-index.yml, configs/, tools/ and checkpoints/."""
    # A wheel carries them in .mim, a checkout at its top.
    for root in (_PACKAGE / '.mim', _PACKAGE.parents[2]):
        if (root / 'model-index.yml').is_file():
            return root
    raise FileNotFoundError(
        f'model-index.yml is neither in {_PACKAGE}/.mim nor in a checkout: '
        'install the project again, from its wheel or with pip install -e .')


def read_model_index() -> dict[str, dict]:
    """Entries of the model zoo by name, as in configs/cris/metafile.yml."""
    root = _zoo_root()
    files = load(root / 'model-index.yml')['Import']
    return {model['Name']: model
            for file in files for model in load(root / file)['Models']}


def list_models(pattern: str | None = None,
                pretrained: bool = False) -> list[str]:
    """Names of the models that :func:`init_model` can build.

    Args:
        pattern (str, optional): Only names that match, with ``*`` and ``?``;
            without either, names that contain it.
        pretrained (bool): Only models with weights.
    """
    pattern = pattern or '*'
    if not set(pattern) & set('*?['):
        pattern = f'*{pattern}*'
    return sorted(fnmatch.filter((
        name for name, model in read_model_index().items()
        if 'Weights' in model or not pretrained), pattern))


def config_file(name: str) -> str:
    """Absolute path of a config, to be the base of another one.

    Args:
        name (str): Name of a config file below configs/: a model of
            :func:`list_models`, or a part of ``_base_``, such as
            ``'own_coco'`` or ``'_base_/datasets/own_coco'``.

    Raises:
        ValueError: If there is no such config.
    """
    name = name.removesuffix('.py')
    paths = sorted((_zoo_root() / 'configs').rglob('*.py'))
    for path in paths:
        if path.as_posix().endswith(f'/{name}.py'):
            return str(path)
    raise ValueError(
        f'no config {name!r}; {_near(name, [path.stem for path in paths])}')


def init_model(model: str | Path | Config,
               checkpoint: str | Path | None = None,
               device: str | torch.device | None = None,
               pretrained: bool = True) -> nn.Module:
    """Build a model and load its weights.

    Args:
        model (str | Path | Config): A name of :func:`list_models` or its
            alias (``'street'``), a config file, or a config.
        checkpoint (str | Path, optional): Weights. None means those of the
            model zoo.
        device (str | torch.device, optional): Defaults to the GPU if there
            is one.
        pretrained (bool): False keeps random weights if checkpoint is None.

    Returns:
        nn.Module: In eval mode, with its config as ``cfg`` and without an
        auxiliary head, which only training needs.

    Raises:
        ValueError: If the model or the device does not exist, the model zoo
            has no weights for the model, or the checkpoint does not fit.
        FileNotFoundError: If the config or the checkpoint does not exist.
    """
    name = 'this config'
    if not isinstance(model, Config):
        name = str(model)
        model, weights = _find(name)
        if checkpoint is None and pretrained:
            checkpoint = weights
    if checkpoint is None and pretrained:
        raise ValueError(
            f'no weights come with {name}: give a checkpoint, or a model of '
            f'the zoo with weights ({", ".join(list_models(pretrained=True))})'
            '; in Python, pretrained=False keeps random weights')
    if 'model' not in model:
        raise ValueError(f'{name} defines no model: is it a complete config?')
    device = _usable_device(device)
    init_default_scope(model.get('default_scope', 'mmseg'))
    built = MODELS.build({key: value for key, value in model.model.items()
                          if key != 'auxiliary_head'})
    if checkpoint is not None:
        load_weights(built, checkpoint)
    built.cfg = model
    return built.to(device).eval()


def _usable_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        return torch.empty(1, device=device).device
    except (AssertionError, RuntimeError) as error:  # torch without CUDA
        raise ValueError(
            f'the device {str(device)!r} cannot be used; there are '
            f'{torch.cuda.device_count()} GPUs: {error}') from error


def _find(model: str) -> tuple[Config, str | None]:
    """Config and, for a name of the model zoo, path of the weights."""
    if model.endswith('.py'):
        if not osp.isfile(model):
            raise FileNotFoundError(f'config file {model} does not exist')
        return load_config(model), None
    zoo, root = read_model_index(), _zoo_root()
    aliases = {entry['Alias']: name for name, entry in zoo.items()
               if 'Alias' in entry}
    model = aliases.get(model, model)
    if model not in zoo:
        raise ValueError(f'no model {model!r} in the model zoo; '
                         f'{_near(model, [*aliases, *zoo])}')
    weights = zoo[model].get('Weights')
    return (load_config(str(root / zoo[model]['Config'])),
            str(root / weights) if weights else None)


def _near(name: str, names: Iterable[str]) -> str:
    """Hint at names that contain or resemble a name."""
    close = dict.fromkeys([
        *sorted((n for n in names if name in n), key=len)[:3],
        *difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    ])
    return (f'near it: {", ".join(close) or "none"}. cris.list_models() lists '
            'the models.')
