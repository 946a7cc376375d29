# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Limits of a checkpoint file, looked at before PyTorch reads it."""
import mmap
import os.path as osp
import tarfile
import zipfile

from cris.pickles import check_pickle

_PICKLES = 5  # of the format before zip: magic, version, system, data, keys


def check_checkpoint_file(path: str) -> None:
    """Refuse a file that would take more memory than it is large.

    Args:
        path (str): In PyTorch's zip format (also TorchScript) or in the one
            before it.

    Raises:
        ValueError: If records of a zip are compressed or overlap, a pickle
            asks for too much, or it is a tar, whose links PyTorch would
            follow.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_zip(archive, osp.getsize(path))
        return
    try:
        tarfile.open(path, 'r:').close()
    except tarfile.TarError:
        _check_legacy(path)
        return
    raise ValueError('it is a tar, as PyTorch wrote before 2017; load and '
                     'save it with an old PyTorch that you isolate')


def _check_zip(archive: zipfile.ZipFile, size: int) -> None:
    records = [
        info for info in archive.infolist()
        # The code of a TorchScript archive is compressed; nobody reads it.
        if '/code/' not in info.filename
    ]
    for info in records:
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f'its record {info.filename} is compressed; '
                             'PyTorch stores tensors as they are')
    if sum(info.file_size for info in records) > size:
        raise ValueError('its records overlap')
    for info in records:
        if info.filename.endswith('.pkl'):
            check_pickle(archive.read(info))


def _check_legacy(path: str) -> None:
    if not osp.getsize(path):
        raise ValueError('it is empty')
    with open(path, 'rb') as file, mmap.mmap(
            file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = 0
        for _ in range(_PICKLES):
            end = check_pickle(content, end)
