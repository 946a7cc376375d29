# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Weights of a TorchScript archive, read without running its code, and the
limits of checkpoint files (:func:`check_checkpoint_file`).

OpenAI publishes CLIP as TorchScript. ``torch.jit.load`` runs the code in an
archive; here only its tensors are read.
"""
import mmap
import os.path as osp
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO

import torch
from torch import Tensor

from .pickles import check_pickle

_PICKLES = 5  # of the format before zip: magic, version, system, data, keys


def is_torchscript(path: str) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith('/constants.pkl')
                   for name in archive.namelist())


def read_torchscript(path: str) -> dict[str, Tensor]:
    """Parameters and buffers of an archive's module, by name, on the CPU.

    Raises:
        pickle.UnpicklingError: If the archive contains anything but modules
            and tensors.
    """
    with zipfile.ZipFile(path) as archive:
        # All records are in one folder, which has the file's first name.
        (data, ) = (name for name in archive.namelist()
                    if name.count('/') == 1 and name.endswith('/data.pkl'))
        root = data.rsplit('/', 1)[0]
        module = _ArchiveUnpickler(archive, root).load()
    if not isinstance(module, _Module):
        raise pickle.UnpicklingError(f'it holds a {type(module).__name__}, '
                                     'not a module')
    return dict(_tensors(module))


class _Module:
    """Replaces every class of the archive; it only keeps attributes."""


def _tensors(module: _Module, prefix: str = '') -> Iterator[tuple]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f'{prefix}{name}.')


def _first(value, *_):
    return value


def _rebuild(storage: Tensor, offset: int, size: tuple, stride: tuple,
             *_) -> Tensor:
    return storage.as_strided(size, stride, offset)


_OBJECTS = {
    'collections.OrderedDict': OrderedDict,
    'torch._utils._rebuild_tensor_v2': _rebuild,
    'torch.CharStorage': torch.int8,
    'torch.ByteStorage': torch.uint8,
    **{f'torch.{name}Storage': getattr(torch, name.lower()) for name in (
        'Float', 'Half', 'BFloat16', 'Double', 'Long', 'Int', 'Short', 'Bool')}
}


class _ArchiveUnpickler(pickle.Unpickler):

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(BytesIO(archive.read(f'{root}/data.pkl')))
        self.archive, self.root, self.storages = archive, root, {}

    def find_class(self, module: str, name: str):
        if module.split('.')[0] == '__torch__':
            # A new class for each, so that their attributes are not mixed.
            return type(name, (_Module, ), {})
        if module == 'torch.jit._pickle':  # typed lists and dicts
            return _first
        if (full := f'{module}.{name}') in _OBJECTS:
            return _OBJECTS[full]
        raise pickle.UnpicklingError(f'it asks for {full}')

    def persistent_load(self, pid: tuple) -> Tensor:
        """All elements of a storage, flat."""
        _, dtype, key, _, numel = pid
        if key not in self.storages:
            name = f'{self.root}/data/{key}'
            if self.archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError(
                    f'{name} is compressed; PyTorch does not compress')
            record = bytearray(self.archive.read(name))
            self.storages[key] = (
                torch.frombuffer(record, dtype=dtype, count=numel)
                if numel else torch.empty(0, dtype=dtype))
        return self.storages[key]


def check_checkpoint_file(path: str) -> None:
    """Refuse a file that would take more memory than it is large.

    Raises:
        ValueError: If records of a zip (also TorchScript) are compressed or
            overlap, a pickle asks for too much, or it is a tar, whose links
            PyTorch would follow.
    """
    size = osp.getsize(path)
    if not size:
        raise ValueError('it is empty')
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_zip(archive, size)
        return
    with suppress(tarfile.TarError):
        tarfile.open(path, 'r:').close()
        raise ValueError('it is a tar, as PyTorch wrote before 2017; load and '
                         'save it with an old PyTorch that you isolate')
    with open(path, 'rb') as file, mmap.mmap(
            file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = 0
        for _ in range(_PICKLES):
            end = check_pickle(content, end)


def _check_zip(archive: zipfile.ZipFile, size: int) -> None:
    # The code of a TorchScript archive is compressed; it is not read.
    records = [info for info in archive.infolist()
               if '/code/' not in info.filename]
    for info in records:
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f'its record {info.filename} is compressed; '
                             'PyTorch does not compress')
    if sum(info.file_size for info in records) > size:
        raise ValueError('its records overlap')
    for info in records:
        if info.filename.endswith('.pkl'):
            check_pickle(archive.read(info))
