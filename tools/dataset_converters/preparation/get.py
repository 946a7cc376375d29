# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Downloads annotations from the Hugging Face Hub."""
import fnmatch
import os
import os.path as osp
import shutil
import zipfile
from collections import defaultdict

from cris.datasets.readers import READERS
from cris.datasets.records import raise_faults
from cris.io.files import safe_join
from cris.io.hub import download, list_files

from .known_sets import DATASETS, HUB
from .writers import write_refer


def get(name: str, out: str, form: str, images: str | None = None) -> str:
    """Download a set; what was downloaded before is kept.

    Args:
        name (str): A key of ``known_sets.HUB``, or grefcoco, whose authors'
            page must be used by hand.
        out (str): Folder to write to. The files of the Hub go to ``hub/``.
        form (str): 'parquet' keeps them; 'refer' also writes
            ``instances.json`` and ``refs(<split_by>).p``.
        images (str, optional): COCO's train2014, a folder or its zip. A
            folder is linked; of a zip the pictures of the set are unpacked.

    Returns:
        str: What to do next.

    Raises:
        FileNotFoundError: If the Hub has no such repository or files.
        ConnectionError: If it does not answer.
        OSError: If the disk is too small.
        ValueError: If a file is not that of the Hub, or faulty.
    """
    if name not in HUB:
        raise ValueError(
            f'{name} cannot be downloaded by a program: save '
            f'{DATASETS[name].source} in {out}, then run prepare.py check')
    repo, pattern, split_by = HUB[name]
    files = {file: size for file, size in list_files(repo).items()
             if fnmatch.fnmatch(file, pattern)}
    if not files:
        raise FileNotFoundError(f'{repo} has no files {pattern}: it was '
                                'changed, or is another one')
    os.makedirs(out, exist_ok=True)
    folder = osp.join(out, 'hub')
    missing = sum(size for file, size in files.items()
                  if not osp.isfile(osp.join(folder, file)))
    free = shutil.disk_usage(out).free
    if missing > free:
        raise OSError(f'{name} needs {missing / 1e9:.2f} GB more in {out}, '
                      f'where {free / 1e9:.2f} GB are free')
    for number, file in enumerate(sorted(files), 1):
        print(f'{number} of {len(files)}: {file}, {files[file] / 1e6:.1f} MB')
        download(repo, file, folder=folder)
    if split_by is None or form == 'parquet':
        return (f'{len(files)} files of {repo} are in {folder}. To use '
                f'parquet files: data_root={folder!r}, or prepare.py check '
                f'{folder} --dataset hub')
    return _write_refer(name, out, split_by, images)


def _write_refer(name: str, out: str, split_by: str,
                 images: str | None) -> str:
    records = READERS['parquet'](osp.join(out, 'hub/data/*.parquet'), out)
    raise_faults(records.faults, f'{name} of the Hub')
    splits = defaultdict(list)
    for image in records.images:
        image['file_name'] = osp.basename(image['file_name'])
        for ref in image['refs']:
            splits[ref['split']].append((image, ref))
    write_refer(splits, out)
    os.replace(osp.join(out, 'refs(unc).p'),
               osp.join(out, f'refs({split_by}).p'))
    names = [image['file_name'] for image in records.images]
    where = _link_or_unpack(images, osp.join(out, 'train2014'), names)
    return (f'{out} has {len(names)} images in the REFER layout. {where} '
            f'Next: prepare.py check {out} --dataset {name}')


def _link_or_unpack(images: str | None, folder: str,
                    names: list[str]) -> str:
    if images is None:
        return (f'Put the pictures of COCO, train2014, into {folder}, or '
                'make it a link to them.')
    if osp.isdir(images):
        if not osp.lexists(folder):
            os.symlink(osp.abspath(images), folder)
        return f'{folder} is a link to {images}.'
    with zipfile.ZipFile(images) as archive:
        members = {osp.basename(info.filename): info
                   for info in archive.infolist() if not info.is_dir()}
        wanted = [members[name] for name in names if name in members]
        if len(wanted) < len(names):
            absent = next(name for name in names if name not in members)
            raise FileNotFoundError(
                f'{images} lacks {len(names) - len(wanted)} pictures of the '
                f'set, e.g. {absent}: is it train2014.zip?')
        os.makedirs(folder, exist_ok=True)
        for info in wanted:
            path = safe_join(folder, osp.basename(info.filename))
            if osp.isfile(path) and osp.getsize(path) == info.file_size:
                continue  # of a run that was interrupted
            with archive.open(info) as source, open(
                    f'{path}.partial', 'wb') as target:
                shutil.copyfileobj(source, target)
            os.replace(f'{path}.partial', path)
    return f'{len(wanted)} pictures of {images} are in {folder}.'
