# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Weights of a TorchScript archive, read without running its code.

OpenAI publishes CLIP as TorchScript. ``torch.jit.load`` runs what an archive
brings with it; here only its tensors are taken.
"""
import pickle
import zipfile
from collections import OrderedDict
from io import BytesIO
from typing import Dict, Iterator, Tuple

import torch
from torch import Tensor

_DTYPES = {
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'DoubleStorage': torch.float64,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
}


def is_torchscript(path: str) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(
            name.endswith('/constants.pkl') for name in archive.namelist())


def read_torchscript(path: str) -> Dict[str, Tensor]:
    """Parameters and buffers of an archive's module.

    Args:
        path (str): TorchScript archive.

    Returns:
        dict[str, Tensor]: By their names in the module, on the CPU.

    Raises:
        pickle.UnpicklingError: If the archive asks for anything but modules
            and tensors.
    """
    with zipfile.ZipFile(path) as archive:
        # All records are under one folder, named like the file once was.
        (data, ) = (
            name for name in archive.namelist()
            if name.count('/') == 1 and name.endswith('/data.pkl'))
        root = data.rsplit('/', 1)[0]
        module = _ArchiveUnpickler(archive, root).load()
    if not isinstance(module, _Module):
        raise pickle.UnpicklingError(f'it holds a {type(module).__name__}, '
                                     'not a module')
    return dict(_tensors(module))


class _Module:
    """Stands in for every class of the archive; it only keeps attributes."""


def _tensors(module: _Module, prefix: str = '') -> Iterator[Tuple]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f'{prefix}{name}.')


def _first(value, *_):
    return value


class _ArchiveUnpickler(pickle.Unpickler):

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(BytesIO(archive.read(f'{root}/data.pkl')))
        self.archive = archive
        self.root = root
        self.storages = {}

    def find_class(self, module: str, name: str):
        if module.split('.')[0] == '__torch__':
            # Every class its own, or their attributes would be mixed up.
            return type(name, (_Module, ), {})
        if module == 'torch' and name in _DTYPES:
            return _DTYPES[name]
        if module == 'torch.jit._pickle':  # typed lists and dicts
            return _first
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
            return _rebuild
        if (module, name) == ('collections', 'OrderedDict'):
            return OrderedDict
        raise pickle.UnpicklingError(f'it asks for {module}.{name}')

    def persistent_load(self, pid: tuple) -> Tensor:
        """All elements of a storage, flat."""
        _, dtype, key, _, numel = pid
        if key not in self.storages:
            name = f'{self.root}/data/{key}'
            if self.archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError(
                    f'{name} is compressed; PyTorch stores tensors as they '
                    'are')
            record = bytearray(self.archive.read(name))
            self.storages[key] = (
                torch.frombuffer(record, dtype=dtype, count=numel)
                if numel else torch.empty(0, dtype=dtype))
        return self.storages[key]


def _rebuild(storage: Tensor, offset: int, size: tuple, stride: tuple,
             *_) -> Tensor:
    return storage.as_strided(size, stride, offset)
