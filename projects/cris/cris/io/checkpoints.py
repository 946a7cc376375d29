# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Checkpoints, read without executing anything and loaded without gaps."""
import codecs
import logging
import os
import os.path as osp
import pickle
import re
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version
from safetensors.torch import load_file
from torch import nn

from .archives import check_checkpoint_file, is_torchscript, read_torchscript

try:
    from numpy._core.multiarray import _reconstruct, scalar
except ImportError:
    from numpy.core.multiarray import _reconstruct, scalar
_NUMPY_FUNCTIONS = (_reconstruct, scalar)


def _method_of_history_buffer(owner: type, name: str):
    """Stands in for getattr, which the log's pickle names its methods with."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'it asks for {owner}.{name}')
    return getattr(HistoryBuffer, name)


def _number_dtype(code: str, *_) -> np.dtype:
    """Stands in for np.dtype: its other types can hold objects.

    A copy, since a pickle could change the byte order of NumPy's own.
    """
    if not re.fullmatch('[fiu][48]', str(code)):
        raise pickle.UnpicklingError(f'it asks for numpy.dtype({code!r})')
    return np.dtype(code, copy=True)


# What mmengine stores beside the weights: the history of its log. By the
# names in the pickle; numpy._core was numpy.core before NumPy 2.
_LOG_OBJECTS = {
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    'builtins.getattr': _method_of_history_buffer,
    'numpy.ndarray': np.ndarray,
    'numpy.dtype': _number_dtype,
    **{
        f'numpy.dtypes.{type(np.dtype(code)).__name__}': type(np.dtype(code))
        for code in ('f4', 'f8', 'i4', 'i8', 'u4', 'u8')
    },
    **{
        f'numpy.{core}.multiarray.{function.__name__}': function
        for core in ('core', '_core') for function in _NUMPY_FUNCTIONS
    },
}
# mmengine's ways to fetch a checkpoint, as it matches them: from the start.
_ADDRESSES = [
    'http://', 'https://', 'pavi://', 'modelzoo://', 'torchvision://',
    'open-mmlab://', 'openmmlab://', 'mmcls://', 's3://',
    r'(\S+\:)?s3://', r'(\S+\:)?petrel://'
]
_TENSOR_OBJECTS = {
    '_codecs.encode': codecs.encode,
    'collections.OrderedDict': OrderedDict,
    'torch._utils._rebuild_tensor_v2': torch._utils._rebuild_tensor_v2,
    'torch._utils._rebuild_parameter': torch._utils._rebuild_parameter,
}


def read_checkpoint(path: str | os.PathLike,
                    trust: bool = False) -> dict:
    """Read a checkpoint; only tensors and plain data are admitted.

    Args:
        path (str | PathLike): Written by this project's runner, a state_dict,
            a TorchScript archive (its parameters and buffers are taken and
            its code is not run) or a .safetensors file.
        trust (bool): Whether to admit everything that a pickle can bring,
            code that runs at once included; a warning names the file.
            Defaults to False.

    Returns:
        dict: As saved, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint or holds other objects; nothing in
            it is executed, unless it is trusted.
    """
    path = os.fspath(path)
    if not osp.isfile(path):
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    try:
        if trust:
            print_log(
                f'{path} is trusted: whatever code it brings is run',
                'current',
                level=logging.WARNING)
        checkpoint = (_load_trusted if trust else _load)(path)
    except OSError:
        raise
    except Exception as error:  # any broken byte ends in some exception
        raise ValueError(
            f'{path} is not a checkpoint of tensors and plain data: '
            f'{_reason(error)}' +
            ('' if trust else '. Get it again from its source as plain '
             'weights; only --trust-checkpoint of train.py, test.py and the '
             'converters (trust=True) would run what it brings')) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'{path} holds a {type(checkpoint).__name__}, not a '
                         'dict of weights')
    return checkpoint


def use_safe_loader(trust: bool = False) -> None:
    """Let mmengine read checkpoints with :func:`read_checkpoint`.

    Its own loader executes what a file brings along when the safe way fails,
    and knows no safetensors. This holds for the whole process, so the tools
    ask for it and ``import cris`` does not. Addresses are refused: a file
    that was fetched can be looked at first.

    Args:
        trust (bool): See :func:`read_checkpoint`.
    """

    def load_local_file(path, map_location=None):
        return read_checkpoint(path, trust)

    def refuse_address(path, map_location=None):
        raise ValueError(f'{path} is the address of a checkpoint, not a file: '
                         'download it and name the file')

    CheckpointLoader.register_scheme('', load_local_file, force=True)
    CheckpointLoader.register_scheme(_ADDRESSES, refuse_address, force=True)


def state_dict_of(checkpoint: dict) -> dict:
    """The weights in what :func:`read_checkpoint` returns.

    Args:
        checkpoint (dict): A state_dict, or one under the key ``state_dict``.

    Returns:
        dict: Weights by name, without the ``module.`` that
        ``DataParallel`` puts before every name.

    Raises:
        ValueError: If it is no dict of names.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, dict) or not all(
            isinstance(name, str) for name in weights):
        raise ValueError('the checkpoint holds no weights by name, neither '
                         "at its top nor under 'state_dict'")
    return {name.removeprefix('module.'): w for name, w in weights.items()}


def load_weights(model: nn.Module,
                 path: str | os.PathLike,
                 trust: bool = False) -> None:
    """Load a checkpoint into a model of exactly that shape.

    Args:
        model (nn.Module): Where to.
        path (str | PathLike): See :func:`read_checkpoint`.
        trust (bool): See :func:`read_checkpoint`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or a name or shape does not fit.
    """
    if is_model_wrapper(model):
        model = model.module
    checkpoint = read_checkpoint(path, trust)
    weights = state_dict_of(checkpoint)
    differences = compare_weights(weights, model.state_dict())
    if differences:
        raise ValueError(f'{path} does not fit the model of this config:\n'
                         f'{differences}\nUse the config it was trained with.')
    model.load_state_dict(weights)


def compare_weights(weights: dict, wanted: dict, most: int = 8) -> str:
    """Names and shapes in which a file differs from a model.

    Args:
        weights (dict): Of the file.
        wanted (dict): state_dict of the model.
        most (int): How many are listed. Defaults to 8.

    Returns:
        str: One a line; empty if there is none.
    """
    faults = [f'missing: {name}' for name in wanted if name not in weights]
    faults += [f'not in the model: {k}' for k in weights if k not in wanted]
    faults += [
        f'{name}: {_shape(weights[name])} in the file, {tuple(own.shape)} in '
        'the model' for name, own in wanted.items()
        if name in weights and _shape(weights[name]) != tuple(own.shape)
    ]
    if len(faults) > most:
        faults[most:] = [f'... and {len(faults) - most} more']
    return '\n'.join(f'  {fault}' for fault in faults)


def _shape(value) -> tuple:
    return tuple(getattr(value, 'shape', ('no tensor', )))


def _reason(error: Exception) -> str:
    """torch's own text suggests to load unsafely; take what it found."""
    text = str(error)
    asked = re.search(r'it asks for [^\n]+', text)
    if asked:
        return asked[0]
    unknown = re.search(r'GLOBAL ([\w.]+)', text)
    if unknown:
        return f'it asks for {unknown[1]}'
    return text.splitlines()[0] if text else type(error).__name__


def _load_trusted(path: str):
    if path.endswith('.safetensors') or is_torchscript(path):
        return _load(path)
    return torch.load(path, map_location='cpu', weights_only=False)


def _load(path: str):
    if path.endswith('.safetensors'):
        return load_file(path)
    check_checkpoint_file(path)
    if is_torchscript(path):
        return read_torchscript(path)
    if digit_version(torch.__version__) < digit_version('2.6'):
        return _load_before_torch_2_6(path)
    admitted = [(value, name) for name, value in _LOG_OBJECTS.items()]
    with torch.serialization.safe_globals(admitted):
        return torch.load(path, map_location='cpu', weights_only=True)


class _AllowlistUnpickler(pickle.Unpickler):

    def find_class(self, module: str, name: str):
        full = f'{module}.{name}'.replace('__builtin__', 'builtins')
        try:
            return {**_LOG_OBJECTS, **_TENSOR_OBJECTS}[full]
        except KeyError:
            raise pickle.UnpicklingError(f'it asks for {full}') from None


def _load_before_torch_2_6(path: str):
    """weights_only=True, which cannot be told of mmengine's objects there."""
    pickle_module = SimpleNamespace(
        __name__=__name__,
        Unpickler=_AllowlistUnpickler,
        load=lambda file, **kwargs: _AllowlistUnpickler(file, **kwargs).load())
    return torch.load(
        path,
        map_location='cpu',
        pickle_module=pickle_module,
        weights_only=False)
