# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Checkpoints, read without executing anything and loaded without gaps."""
import contextlib
import os.path as osp

import torch
from mmengine.model import is_model_wrapper
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn


def read_checkpoint(path: str) -> dict:
    """Read a PyTorch checkpoint; only tensors and plain data are admitted.

    Args:
        path (str): Written by this project's runner, or a state_dict.

    Returns:
        dict: As saved, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint or holds other objects; nothing in
            it is executed.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    try:
        with _mmengine_objects():
            checkpoint = torch.load(
                path, map_location='cpu', weights_only=True)
    except OSError:
        raise
    except Exception as error:  # any broken byte ends in some exception
        raise ValueError(
            f'{path} is not a checkpoint of tensors and plain data: '
            f'{str(error).splitlines()[0]}') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} holds a {type(checkpoint).__name__}, not a '
                         'dict of weights')
    return checkpoint


def load_weights(model: nn.Module, path: str) -> None:
    """Load a checkpoint into a model of exactly that shape.

    Args:
        model (nn.Module): Where to.
        path (str): See :func:`read_checkpoint`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or a name or shape does not fit.
    """
    if is_model_wrapper(model):
        model = model.module
    checkpoint = read_checkpoint(path)
    weights = checkpoint.get('state_dict', checkpoint)
    wanted = model.state_dict()
    faults = [f'missing: {name}' for name in wanted if name not in weights]
    faults += [f'not in the model: {k}' for k in weights if k not in wanted]
    faults += [
        f'{name}: {_shape(weights[name])} in the file, {tuple(own.shape)} in '
        'the model' for name, own in wanted.items()
        if name in weights and _shape(weights[name]) != tuple(own.shape)
    ]
    if faults:
        more = f'\n  ... and {len(faults) - 8} more' if len(faults) > 8 else ''
        raise ValueError(
            f'{path} does not fit the model of this config:\n  ' +
            '\n  '.join(faults[:8]) + more +
            '\nUse the config it was trained with. To start from a part of '
            "it, give model.init_cfg=dict(type='Pretrained', ...) instead.")
    model.load_state_dict(weights)


def _shape(value) -> tuple:
    return tuple(getattr(value, 'shape', ('no tensor', )))


def _mmengine_objects():
    """Admit what mmengine itself stores beside the weights (its log)."""
    allowlist = getattr(mmengine_checkpoint, 'get_torch_safe_globals', None)
    safe_globals = getattr(torch.serialization, 'safe_globals', None)
    if allowlist is None or safe_globals is None:
        return contextlib.nullcontext()
    return safe_globals(allowlist())
