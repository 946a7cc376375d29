# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Checkpoints: nothing in them is executed, and they fit or are refused."""
import codecs
import hashlib
import logging
import os
import os.path as osp
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, MMLogger, print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader
from mmengine.utils import digit_version
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from . import hub
from .archives import check_checkpoint_file, is_torchscript, read_torchscript
from .calibration import KEY, read_calibration
from .pickles import number_dtype

try:
    from numpy._core.multiarray import _reconstruct, scalar
except ImportError:
    from numpy.core.multiarray import _reconstruct, scalar


def _method_of_history_buffer(owner: type, name: str):
    """In place of getattr, which the pickle of a log asks for."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'it asks for {owner}.{name}')
    return getattr(HistoryBuffer, name)


# Tensors, and the history of its log, which mmengine stores with them. Keys
# are the names in the pickle; numpy._core was numpy.core before NumPy 2.
_OBJECTS = {
    '_codecs.encode': codecs.encode,
    'collections.OrderedDict': OrderedDict,
    'torch._utils._rebuild_tensor_v2': torch._utils._rebuild_tensor_v2,
    'torch._utils._rebuild_parameter': torch._utils._rebuild_parameter,
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    'builtins.getattr': _method_of_history_buffer,
    'numpy.ndarray': np.ndarray,
    'numpy.dtype': number_dtype,
    **{f'numpy.dtypes.{kind.__name__}': kind
       for kind in map(type, map(np.dtype, 'f4 f8 i4 i8 u4 u8'.split()))},
    **{f'numpy.{core}.multiarray.{function.__name__}': function
       for core in ('core', '_core') for function in (_reconstruct, scalar)},
}
# In the metadata of a file without the frozen weights: their hash.
_FROZEN = 'frozen_sha256'
# Weights of the head's classifier of existence, an option.
_EXISTENCE = 'decode_head.existence.'
# Weights that only training needs.
_AUXILIARY = 'auxiliary_head.'
# How mmengine recognises a checkpoint that is not a local file.
_URLS = [
    'http://', 'https://', 'pavi://', 'modelzoo://', 'torchvision://',
    'open-mmlab://', 'openmmlab://', 'mmcls://', 's3://',
    r'(\S+\:)?s3://', r'(\S+\:)?petrel://'
]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model."""


def read_checkpoint(path: str | os.PathLike, trust: bool = False,
                    mmap: bool = False) -> dict:
    """Read a checkpoint; only tensors and plain data are allowed.

    Args:
        path (str | PathLike): ``hf://OWNER/REPO/FILE``, a file of the Hugging
            Face Hub; or a file written by this project's runner, a state_dict,
            a TorchScript archive (its parameters and buffers are read; its
            code is not run) or a .safetensors file.
        trust (bool): Allow everything in a pickle, including code, which is
            run; a warning names the file.
        mmap (bool): Leave tensors on the disk until they are used, if the
            format allows it.

    Returns:
        dict: As saved, on the CPU.

    Raises:
        FileNotFoundError: If the file does not exist.
        CheckpointError: If it is not a checkpoint or holds other objects.
    """
    path = os.fspath(path)
    if path.startswith(hub.PREFIX):
        path = hub.fetch(path)
    if not osp.isfile(path):
        raise FileNotFoundError(f'checkpoint {path} does not exist')
    try:
        if trust:
            print_log(f'{path} is trusted: any code in it is run', 'current',
                      level=logging.WARNING)
        checkpoint = _load(path, trust, mmap)
    except OSError:
        raise
    except Exception as error:  # broken files can raise any type
        raise CheckpointError(
            f'{path} is not a checkpoint of tensors and plain data: '
            f'{_reason(error)}' +
            ('' if trust else '. Get it again from its source as plain '
             'weights; only --trust-checkpoint of train.py, test.py and the '
             'converters (trust=True) would run the code in it')) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds a {type(checkpoint).__name__}, '
                              'not a dict of weights')
    return checkpoint


def use_safe_loader(trust: bool = False) -> None:
    """Let mmengine read checkpoints with :func:`read_checkpoint`.

    mmengine's own loader executes the code in a file when the safe way fails,
    and does not read safetensors. This holds for the whole process, so the
    tools call it and ``import cris`` does not. URLs are refused: download the
    file and inspect it first.
    """

    def load_from_local(path, map_location=None):
        checkpoint = read_checkpoint(path, trust)
        if 'state_dict' in checkpoint:
            return checkpoint
        return dict(state_dict=checkpoint)  # hooks of mmengine want the key

    def load_from_url(path, map_location=None):
        raise CheckpointError(f'{path} is the URL of a checkpoint, not a '
                              'file: download it and name the file')

    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme(_URLS, load_from_url, force=True)


def state_dict_of(checkpoint: dict, auxiliary: bool = False) -> dict:
    """The weights, by name, without ``module.``, in what was read.

    Those of an auxiliary head, which only training needs, are left out unless
    ``auxiliary`` is True.

    Raises:
        CheckpointError: If neither the checkpoint nor its ``state_dict`` has
            names as keys.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, dict) or not all(
            isinstance(name, str) for name in weights):
        raise CheckpointError('the checkpoint holds no weights by name, '
                              "neither at its top nor under 'state_dict'")
    weights = {name.removeprefix('module.'): w for name, w in weights.items()}
    return weights if auxiliary else _without(_AUXILIARY, weights)


def load_weights(model: nn.Module, path: str | os.PathLike,
                 trust: bool = False) -> None:
    """Load a checkpoint into a model of exactly that shape.

    If it holds only what was trained, its init_cfg gives the frozen weights.

    Args and errors as of :func:`read_checkpoint` and :func:`check_fit`.
    """
    if is_model_wrapper(model):
        model = model.module
    checkpoint = read_checkpoint(path, trust)
    if holds_trained_only(checkpoint):
        with _quiet():  # mmengine logs every weight
            model.init_weights()
        add_frozen(checkpoint, model, path)
    check_fit(checkpoint, model.state_dict(), path)
    weights = state_dict_of(checkpoint)
    model.load_state_dict(weights, strict=False)  # all but an auxiliary head
    calibration = read_calibration(checkpoint, path)
    if calibration is not None and holds_existence(weights):
        model.decode_head.set_calibration(calibration)


def metadata_of(checkpoint: dict) -> dict[str, str]:
    """The part of its meta that a .safetensors file must keep."""
    meta = checkpoint.get('meta')
    return {key: meta[key] for key in (_FROZEN, KEY)
            if key in meta} if isinstance(meta, dict) else {}


def holds_trained_only(checkpoint: dict) -> bool:
    """Whether it was written by ``publish_model.py --adapters``."""
    meta = checkpoint.get('meta')
    return isinstance(meta, dict) and _FROZEN in meta


def trained_only(checkpoint: dict) -> tuple[dict, dict[str, str]]:
    """Weights that a run did not freeze, and the metadata of their file.

    Raises:
        CheckpointError: If the run, which names them, froze none.
    """
    weights = state_dict_of(checkpoint)
    meta = checkpoint.get('meta')
    names = meta.get('frozen') if isinstance(meta, dict) else None
    if not names or not set(names) <= weights.keys():
        raise CheckpointError(
            'no weights were frozen in the run of this checkpoint (it would '
            'name them): publish it without --adapters')
    frozen = {name: weights.pop(name) for name in names}
    return weights, {_FROZEN: hash_weights(frozen)}


def add_frozen(checkpoint: dict, model: nn.Module,
               path: str | os.PathLike) -> None:
    """Complete what was trained by the frozen weights of a model, in place.

    Raises:
        CheckpointError: If it does not fit the model, or was trained with
            other frozen weights.
    """
    wanted = model.state_dict(keep_vars=True)
    weights = state_dict_of(checkpoint)
    frozen = {name: weight.detach() for name, weight in wanted.items()
              if isinstance(weight, nn.Parameter)
              and not weight.requires_grad and name not in weights}
    weights |= frozen
    check_fit(dict(checkpoint, state_dict=weights), wanted, path)
    if hash_weights(frozen) != checkpoint['meta'][_FROZEN]:
        raise CheckpointError(
            f'{path} holds only what was trained, on other frozen weights '
            'than those that init_cfg gives this model: name the file that '
            'the training started from there')
    checkpoint['state_dict'] = weights


def hash_weights(weights: dict[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values in fp32."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(f'{name}{tuple(weight.shape)}'.encode())
        digest.update(weight.detach().cpu().float().contiguous().numpy())
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def check_fit(checkpoint: dict, wanted: dict, path: str | os.PathLike,
              auxiliary: bool = False) -> None:
    """Refuse a checkpoint if any name or shape is not that of ``wanted``.

    An auxiliary head is compared only if ``auxiliary`` is True.

    Raises:
        CheckpointError: It names the config that the checkpoint was trained
            with, if the checkpoint does.
    """
    weights = state_dict_of(checkpoint, auxiliary)
    if not auxiliary:
        wanted = _without(_AUXILIARY, wanted)
    if holds_existence(wanted) and not holds_existence(weights):
        raise CheckpointError(
            f'{path} has no weights of the classifier of existence '
            f'({_EXISTENCE}*), which this config has: train it, starting from '
            f'this file with load_from={path}, or leave it out with '
            '--cfg-options model.decode_head.existence=False')
    if holds_existence(weights) and not holds_existence(wanted):
        raise CheckpointError(
            f'{path} has weights of a classifier of existence '
            f'({_EXISTENCE}*), which this config does not have: add it with '
            '--cfg-options model.decode_head.existence=True')
    if differences := compare_weights(weights, wanted):
        raise CheckpointError(
            f'{path} does not fit the model of this config:\n{differences}\n'
            f'Use the config it was trained with{_trained_with(checkpoint)}.')


def holds_existence(weights: dict) -> bool:
    """Whether weights by name include a classifier of existence."""
    return any(name.startswith(_EXISTENCE) for name in weights)


def without_existence(weights: dict) -> dict:
    """Weights by name without those of the classifier of existence."""
    return _without(_EXISTENCE, weights)


def _without(prefix: str, weights: dict) -> dict:
    return {name: weight for name, weight in weights.items()
            if not name.startswith(prefix)}


def compare_weights(weights: dict, wanted: dict, most: int = 8) -> str:
    """Up to ``most`` differences of a file from a state_dict, a line each."""
    faults = [f'missing: {name}' for name in wanted if name not in weights]
    faults += [f'not in the model: {k}' for k in weights if k not in wanted]
    faults += [
        f'{name}: {_shape(weights[name])} in the file, {tuple(w.shape)} in '
        'the model' for name, w in wanted.items()
        if name in weights and _shape(weights[name]) != tuple(w.shape)
    ]
    if len(faults) > most:
        faults[most:] = [f'... and {len(faults) - most} more']
    return '\n'.join(f'  {fault}' for fault in faults)


def _trained_with(checkpoint: dict) -> str:
    """The config's name; mmengine saves it before the start time."""
    meta = checkpoint.get('meta')
    name = meta.get('experiment_name') if isinstance(meta, dict) else None
    match = re.fullmatch(r'([\w.-]{1,200})_\d{8}_\d{6}', str(name))
    return f", {match[1]} (its text is in meta['cfg'])" if match else ''


def _shape(value) -> tuple:
    return tuple(getattr(value, 'shape', ('no tensor', )))


def _reason(error: Exception) -> str:
    """The cause in torch's message; its advice is to load unsafely."""
    text = str(error)
    if refused := re.search(r'it asks for [^\n]+', text):
        return refused[0]
    if unknown := re.search(r'GLOBAL ([\w.]+)', text):
        return f'it asks for {unknown[1]}'
    return text.splitlines()[0] if text else type(error).__name__


def _load(path: str, trust: bool, mmap: bool) -> Any:
    if path.endswith('.safetensors'):
        with safe_open(path, 'pt') as file:
            metadata = file.metadata() or {}
        weights = load_file(path)
        meta = metadata_of(dict(meta=metadata))
        return dict(state_dict=weights, meta=meta) if meta else weights
    torchscript = is_torchscript(path)
    if torchscript or not trust:
        check_checkpoint_file(path)
    if torchscript:
        return read_torchscript(path)
    # The older format, which is not a zip, cannot be mapped.
    options = dict(map_location='cpu', mmap=mmap and is_zipfile(path))
    if trust:
        return torch.load(path, weights_only=False, **options)
    if digit_version(torch.__version__) < digit_version('2.6'):
        return _load_before_torch_2_6(path, **options)
    admitted = [(value, name) for name, value in _OBJECTS.items()]
    with torch.serialization.safe_globals(admitted):
        return torch.load(path, weights_only=True, **options)


class _AllowlistUnpickler(pickle.Unpickler):

    def find_class(self, module: str, name: str):
        full = f'{module}.{name}'.replace('__builtin__', 'builtins')
        if full not in _OBJECTS:
            raise pickle.UnpicklingError(f'it asks for {full}')
        return _OBJECTS[full]


def _load_before_torch_2_6(path: str, **options) -> Any:
    """Like weights_only=True, which old versions cannot extend."""
    pickle_module = SimpleNamespace(
        __name__=__name__, Unpickler=_AllowlistUnpickler,
        load=lambda file, **kwargs: _AllowlistUnpickler(file, **kwargs).load())
    return torch.load(path, pickle_module=pickle_module, weights_only=False,
                      **options)
