# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The models of model-index.yml, from a checkout or an installed wheel."""
import difflib
import fnmatch
import os.path as osp
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

from cris.engine import load_config
from cris.io.checkpoints import load_weights

_PACKAGE = Path(__file__).parents[1]


def zoo_root() -> Path:
    """Folder of model-index.yml, configs/, tools/ and checkpoints/.

    Raises:
        FileNotFoundError: If the installation does not have it.
    """
    # A wheel carries them in .mim, a checkout has them at its top.
    for root in (_PACKAGE / '.mim', _PACKAGE.parents[2]):
        if (root / 'model-index.yml').is_file():
            return root
    raise FileNotFoundError(
        f'neither {_PACKAGE}/.mim nor a checkout around it has '
        'model-index.yml: install the project again, from its wheel or with '
        'pip install -e .')


def read_model_index() -> dict[str, dict]:
    """Entries of the model zoo.

    Returns:
        dict[str, dict]: By name, as in configs/cris/metafile.yml.
    """
    root = zoo_root()
    files = load(root / 'model-index.yml')['Import']
    return {
        model['Name']: model
        for file in files for model in load(root / file)['Models']
    }


def list_models(pattern: str | None = None,
                pretrained: bool = False) -> list[str]:
    """Names of the models that :func:`init_model` can make.

    Args:
        pattern (str, optional): Only those that match, with ``*`` and ``?``;
            without either, those whose name has it in it.
        pretrained (bool): Only those with weights. Defaults to False.

    Returns:
        list[str]: Sorted.
    """
    pattern = pattern or '*'
    if not set(pattern) & set('*?['):
        pattern = f'*{pattern}*'
    return sorted(
        name for name, model in read_model_index().items()
        if fnmatch.fnmatch(name, pattern) and (
            'Weights' in model or not pretrained))


def config_file(name: str) -> str:
    """Path of a model's config, to be the base of another one.

    Args:
        name (str): Of :func:`list_models`.

    Returns:
        str: Absolute, in a checkout or an installed wheel.

    Raises:
        ValueError: If there is no such model.
    """
    return str(zoo_root() / _entry(name)['Config'])


def init_model(model: str | Path | Config,
               checkpoint: str | Path | None = None,
               device: str | torch.device | None = None,
               pretrained: bool = True) -> nn.Module:
    """Make a model and load its weights.

    Args:
        model (str | Path | Config): A name of :func:`list_models`, a config
            file, or a config.
        checkpoint (str | Path, optional): Weights. None takes those of the
            model zoo. Defaults to None.
        device (str | torch.device, optional): Defaults to the GPU if there
            is one.
        pretrained (bool): False leaves the weights random where checkpoint
            is None. Defaults to True.

    Returns:
        nn.Module: In eval mode, with its config as ``cfg``.

    Raises:
        ValueError: If there is no such model, it has no weights in the zoo,
            the checkpoint does not fit, or there is no such device.
        FileNotFoundError: If the checkpoint does not exist.
    """
    name = 'this config'
    if not isinstance(model, Config):
        name = str(model)
        model, weights = _find(name)
        if checkpoint is None and pretrained:
            checkpoint = weights
    if checkpoint is None and pretrained:
        raise ValueError(
            f'no weights come with {name}: name a checkpoint, or a model of '
            f'the zoo with weights ({", ".join(list_models(pretrained=True))})'
            '; in Python pretrained=False leaves them random')
    if 'model' not in model:
        raise ValueError(f'{name} defines no model: is it a whole config?')
    if device is None:
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    _check_device(device)
    init_default_scope(model.get('default_scope', 'mmseg'))
    built = MODELS.build(model.model)
    if checkpoint is not None:
        load_weights(built, checkpoint)
    built.cfg = model
    return built.to(device).eval()


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError) as error:  # torch without CUDA
        raise ValueError(f'the device {str(device)!r} cannot be used '
                         f'({torch.cuda.device_count()} GPUs are there; cpu '
                         f'always is): {error}') from error


def _find(model: str):
    """Config and, for a name of the zoo, the path of its weights."""
    if model.endswith('.py'):
        if not osp.isfile(model):
            raise FileNotFoundError(f'config file {model} does not exist')
        return load_config(model), None
    weights = _entry(model).get('Weights')
    return (load_config(config_file(model)),
            str(zoo_root() / weights) if weights else None)


def _entry(name: str) -> dict:
    zoo = read_model_index()
    if name not in zoo:
        close = list_models(name)[:3] or difflib.get_close_matches(
            name, zoo, n=3, cutoff=0.4)
        raise ValueError(f'no model {name!r} in the model zoo; '
                         f'near it: {", ".join(close) or "none"}. '
                         'cris.list_models() shows all of them.')
    return zoo[name]
