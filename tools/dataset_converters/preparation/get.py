# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Downloads annotations from the Hugging Face Hub."""
import errno
import fnmatch
import os
import os.path as osp
from collections import defaultdict

from cris.datasets.readers import READERS
from cris.datasets.records import raise_faults
from cris.io.atomic import PARTIAL, disk_space, remove
from cris.io.hub import download, list_files

from .known_sets import DATASETS, HUB
from .pictures import check_source, place
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
        FileNotFoundError: If the Hub has no such repository or files, or
            pictures are missing.
        ConnectionError: If the Hub does not answer.
        OSError: If the folder cannot be written to, or the disk is full.
        ValueError: If a file is not that of the Hub, or faulty.
    """
    if name not in HUB:
        raise ValueError(
            f'{name} cannot be downloaded by a program: save '
            f'{DATASETS[name].source} in {out}, then run prepare.py check')
    if images is not None:
        check_source(images)
    _make_folder(out)
    repo, pattern, split_by = HUB[name]
    files = {file: size for file, size in list_files(repo).items()
             if fnmatch.fnmatch(file, pattern)}
    if not files:
        raise FileNotFoundError(f'{repo} has no files {pattern}: it was '
                                'changed, or is another one')
    folder = osp.join(out, 'hub')
    missing = {file: size for file, size in files.items()
               if not osp.isfile(osp.join(folder, file))}
    for number, file in enumerate(sorted(files), 1):
        print(f'{number} of {len(files)}: {file}, {files[file] / 1e6:.1f} MB')
        with disk_space(out, sum(missing.values())):
            download(repo, file, folder=folder)
        missing.pop(file, None)
    if split_by is None or form == 'parquet':
        return (f'{len(files)} files of {repo} are in {folder}. To use '
                f'parquet files: data_root={folder!r}, or prepare.py check '
                f'{folder} --dataset hub')
    return _write_refer(name, out, split_by, images)


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise OSError(f'--out {path} is no folder that can be written to: '
                      f'{error.strerror}') from error


def _write_refer(name: str, out: str, split_by: str,
                 images: str | None) -> str:
    records = READERS['parquet'](osp.join(out, 'hub/data/*.parquet'), out)
    raise_faults(records.faults, f'{name} of the Hub')
    splits = defaultdict(list)
    for image in records.images:
        image['file_name'] = osp.basename(image['file_name'])
        for ref in image['refs']:
            splits[ref['split']].append((image, ref))
    partial = osp.join(out, f'refer{PARTIAL}')
    remove(partial)  # of a run that was killed
    try:
        with disk_space(out):
            os.mkdir(partial)
            write_refer(splits, partial)
            for file, final in (('instances.json', 'instances.json'),
                                ('refs(unc).p', f'refs({split_by}).p')):
                os.replace(osp.join(partial, file), osp.join(out, final))
    finally:
        remove(partial)
    names = [image['file_name'] for image in records.images]
    folder = osp.join(out, 'train2014')
    where = place(images, folder, names) if images is not None else (
        f'Put the pictures of COCO, train2014, into {folder}, or make it a '
        'link to them.')
    return (f'{out} has {len(names)} images in the REFER layout. {where} '
            f'Next: prepare.py check {out} --dataset {name}')
