# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Finds the files of a dataset and reads them."""
import glob
import os.path as osp
from itertools import chain
from typing import NamedTuple

from cris.datasets.readers import READERS
from cris.datasets.readers.shared import splits_on_disk
from cris.datasets.records import Fault, Records, raise_faults

from .known_sets import DATASETS, YOURS, DatasetInfo
from .official_lmdb import convert_lmdb

_ANN_FILES = {
    'jsonl': '{split}.jsonl',
    'coco': '{split}.json',
    'official-json': 'anns/{split}.json',
    'official-lmdb': '{split}.lmdb'
}


class Located(NamedTuple):
    """The files of a dataset on this disk."""
    info: DatasetInfo
    name: str
    split_by: str | None
    args: dict  # of the reader, without the split
    splits: list[str] | None  # splits with separate files
    missing: list[Fault]  # files and folders
    # Folder of official LMDB files, from which read() makes those in args.
    lmdb: str | None = None

    @property
    def img_folder(self) -> str:
        return self.args['img_folder']

    @property
    def source(self) -> str:
        """The annotation files, for messages."""
        return self.lmdb or self.args['ann_file'].replace('{split}', '*')

    @property
    def can_be_read(self) -> bool:
        # The annotations of these two hold the sizes of the images.
        without_images = self.info.reader in ('refer', 'coco')
        return not any(
            fault.kind == 'missing-file' or not without_images
            for fault in self.missing)

    def read(self) -> Records:
        """Records of all splits; every ref names its split.

        Raises:
            FileNotFoundError: If files are missing.
            ImportError: If lmdb is needed and not installed.
            ValueError: If a file is broken.
        """
        if not self.can_be_read:
            raise FileNotFoundError('\n'.join(map(str, self.missing)))
        faults: list[Fault] = []
        if self.lmdb:
            folder = osp.dirname(self.img_folder)
            faults = convert_lmdb(self.lmdb, folder)[1]
        read = READERS[self.info.reader]
        # Split by split: ids need not be unique across files.
        parts = [read(**self.args)] if self.splits is None else [
            read(**self.args, split=split) for split in self.splits]
        return Records(
            *(list(chain(*fields))
              for fields in zip(Records([], faults), *parts, strict=True)))

    def read_strictly(self, with_images: bool) -> list[dict]:
        """Records of all splits, without any faulty entry.

        Raises:
            FileNotFoundError: If files are missing; a missing image folder
                matters only ``with_images``.
            ValueError: If an entry is faulty, or there are no refs.
        """
        missing = [fault for fault in self.missing
                   if with_images or fault.where != self.img_folder]
        if missing:
            raise FileNotFoundError('\n'.join(map(str, missing)))
        records = self.read()
        raise_faults(records.faults, self.source)
        if not records.images:
            raise ValueError(f'{self.source} holds no refs')
        for note in records.notes:
            print(f'left out: {note}')
        return records.images


def locate(root: str,
           name: str,
           split_by: str | None = None,
           images: str | None = None,
           masks: str | None = None,
           prompt_keys: list[str] | None = None,
           scratch: str = '') -> Located:
    """Find the files of a dataset and list missing ones.

    Args:
        root (str): Its folder, or the parent of a folder with its name.
        name (str): A key of :data:`DATASETS`.
        split_by (str, optional): Which splits. Defaults to the first known.
        images (str, optional): Folder of the images, relative to the root.
            By default the usual names are tried.
        masks (str, optional): Folder of the masks, relative to the root.
        prompt_keys (list[str], optional): For the official JSON.
        scratch (str): An empty folder for the files made from an LMDB.

    Raises:
        FileNotFoundError: If the root is not a folder.
        ValueError: If the dataset has no such splits.
    """
    info = DATASETS[name]
    if not osp.isdir(root):
        raise FileNotFoundError(f'{root} is not a folder')
    if split_by and info.counts and split_by not in info.counts:
        raise ValueError(f'{name} has no split_by {split_by!r}; it has '
                         f'{", ".join(info.counts)}')
    missing: list[Fault] = []
    if info.reader == 'refer':
        root, split_by, args = _refer_files(root, name, split_by, missing)
        args['img_folder'] = _image_folder(root, info, images, missing)
        return Located(info, name, split_by, args, None, missing)
    args, splits, inner = _own_files(root, name, missing)
    if name == 'official-lmdb':
        args = dict(ann_file=osp.join(scratch, 'anns/{split}.json'),
                    mask_folder=osp.join(scratch, 'masks'),
                    img_folder=osp.join(scratch, 'images'))
        return Located(info, name, split_by, args, splits, missing, root)
    if name != 'coco':
        folder = osp.join(root, masks or osp.join('masks', inner))
        if not osp.isdir(folder):
            missing.append(
                Fault('missing-folder', folder, 'there is no folder of '
                      'masks; --masks names another'))
        args['mask_folder'] = folder
    if name == 'official-json':
        args['prompt_keys'] = prompt_keys
    args['img_folder'] = _image_folder(root, info, images, missing)
    return Located(info, name, split_by, args, splits, missing)


def _missing_file(path: str, source: str) -> Fault:
    return Fault('missing-file', path,
                 f'it does not exist; it comes from {source}')


def _image_folder(root: str, info: DatasetInfo, images: str | None,
                  missing: list[Fault]) -> str:
    names = [images] if images else info.image_folders
    folders = [osp.normpath(osp.join(root, name)) for name in names]
    for folder in folders:
        if osp.isdir(folder):
            return folder
    tried = '' if images else f' (tried {", ".join(names)})'
    missing.append(
        Fault('missing-folder', folders[0],
              f'there is no folder of images{tried}; they come from '
              f'{info.image_source}. --images names another folder'))
    return folders[0]


def _refer_files(root: str, name: str, split_by: str | None,
                 missing: list[Fault]) -> tuple[str, str, dict]:
    """The root, ``split_by`` and arguments of the reader."""
    info = DATASETS[name]
    inside = osp.join(root, name)
    ann_file = osp.join(root, 'instances.json')
    if info.counts and osp.isdir(inside) and not osp.isfile(ann_file):
        root, ann_file = inside, osp.join(inside, 'instances.json')
    if split_by is None and info.counts:
        split_by = next(iter(info.counts))
    if split_by is None:
        found = sorted(
            osp.basename(path) for pattern in ('refs(*).p', 'grefs(*).json')
            for path in glob.glob(osp.join(glob.escape(root), pattern)))
        if len(found) > 1:
            raise ValueError(f'{root} has {", ".join(found)}: say which with '
                             '--split-by')
        split_by = found[0].split('(')[1].split(')')[0] if found else 'unc'
    split_file = osp.join(root, f'refs({split_by}).p')
    generalized = osp.join(root, f'grefs({split_by}).json')
    if name == 'grefcoco' or (not osp.isfile(split_file)
                              and osp.isfile(generalized)):
        split_file = generalized
    missing += [_missing_file(path, info.source)
                for path in (ann_file, split_file) if not osp.isfile(path)]
    return root, split_by, dict(
        ann_file=ann_file, split_file=split_file,
        skip_images=list(info.skip_images))


def _own_files(root: str, name: str,
               missing: list[Fault]) -> tuple[dict, list[str], str]:
    """Arguments of the reader, splits, and the subfolder of anns and masks."""
    ann_file, inner = osp.join(root, _ANN_FILES[name]), ''
    splits = splits_on_disk(ann_file)
    if not splits and name == 'official-json':
        # The official code keeps several datasets side by side.
        found = glob.glob(osp.join(glob.escape(root), 'anns/*/*.json'))
        inners = sorted({osp.basename(osp.dirname(path)) for path in found})
        if len(inners) > 1:
            raise ValueError(
                f'{root}/anns has several datasets: {", ".join(inners)}; give '
                'each a separate root (links are enough)')
        inner = ''.join(inners)
        ann_file = osp.join(root, 'anns', inner, '{split}.json')
        splits = splits_on_disk(ann_file)
    if not splits:
        missing.append(_missing_file(ann_file.replace('{split}', '*'), YOURS))
    return dict(ann_file=ann_file), splits, inner
