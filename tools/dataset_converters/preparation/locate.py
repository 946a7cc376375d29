# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Finds the files of a dataset and reads them."""
import glob
import os.path as osp
from itertools import chain
from typing import NamedTuple

from cris.datasets.readers import READERS
from cris.datasets.readers.parquet import split_of_name
from cris.datasets.readers.shared import sort_splits, splits_on_disk
from cris.datasets.records import Fault, Records, raise_faults
from cris.io.parquet import open_parquet

from .known_sets import DATASETS, DatasetInfo
from .official_lmdb import convert_lmdb


class Located(NamedTuple):
    """The files of a dataset on this disk."""
    info: DatasetInfo
    name: str
    split_by: str | None
    args: dict  # of the reader, without the split
    splits: list[str]  # splits with separate files
    missing: list[Fault]  # files and folders
    # Folder of official LMDB files, from which read() makes those in args.
    lmdb: str | None = None
    size_mismatch: str = 'error'  # see ReferDataset

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
        if self.info.reader in ('refer', 'coco'):
            return all(f.kind != 'missing-file' for f in self.missing)
        return not self.missing

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
            faults = convert_lmdb(self.lmdb, osp.dirname(self.img_folder))[1]
        # Split by split: ids need not be unique across files.
        parts = [READERS[self.info.reader](**self.args, split=split)
                 for split in self.splits or [None]]
        return Records(
            *(list(chain(*fields))
              for fields in zip(Records([], faults), *parts, strict=True)))

    def read_strictly(self, with_images: bool) -> list[dict]:
        """Records as of :meth:`read`, without any faulty entry.

        Raises:
            FileNotFoundError: If files are missing.
            ValueError: If an entry is faulty, or there are no refs.
        """
        if with_images and self.missing:
            raise FileNotFoundError('\n'.join(map(str, self.missing)))
        records = self.read()
        raise_faults(records.faults, self.source)
        if not records.images:
            raise ValueError(f'{self.source} holds no refs')
        for note in records.notes:
            print(f'note: {note}')
        return records.images


def locate(root: str, name: str, split_by: str | None = None,
           images: str | None = None, masks: str | None = None,
           prompt_keys: list[str] | None = None, scratch: str = '',
           size_mismatch: str | None = None) -> Located:
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
        size_mismatch (str, optional): See ReferDataset. Defaults to what the
            dataset needs.

    Raises:
        FileNotFoundError: If the root is not a folder.
        ValueError: If it has no such splits, or several datasets.
    """
    info = DATASETS[name]
    if not osp.isdir(root):
        raise FileNotFoundError(f'{root} is not a folder')
    if split_by and info.counts and split_by not in info.counts:
        raise ValueError(f'{name} has no split_by {split_by!r}; it has '
                         f'{", ".join(info.counts)}')
    splits: list[str] = []
    if info.reader == 'refer':
        inside = osp.join(root, name)
        if info.counts and osp.isdir(inside) and not osp.isfile(
                osp.join(root, info.ann_file)):
            root = inside
        split_by = split_by or next(
            iter(info.counts), None) or _only_split(root)
        files = [osp.join(root, file) for file in (
            f'refs({split_by}).p', f'grefs({split_by}).json')]
        if name == 'grefcoco':
            del files[0]
        args = dict(
            ann_file=osp.join(root, info.ann_file),
            split_file=next(filter(osp.isfile, files), files[0]),
            skip_images=list(info.skip_images))
        absent = [path for path in (args['ann_file'], args['split_file'])
                  if not osp.isfile(path)]
    else:
        split_by = split_by or next(iter(info.counts), None)
        ann_file, splits, inner = _own_files(root, name)
        args = dict(ann_file=ann_file)
        absent = [] if splits else [ann_file.replace('{split}', '*')]
    missing = [Fault('missing-file', path,
                     f'it does not exist; it comes from {info.source}')
               for path in absent]
    if name == 'official-lmdb':
        parts = zip(('ann_file', 'mask_folder', 'img_folder'),
                    ('anns/{split}.json', 'masks', 'images'), strict=True)
        args = {key: osp.join(scratch, part) for key, part in parts}
        return Located(info, name, split_by, args, splits, missing, root)
    if info.reader in ('jsonl', 'official-json'):
        folder = osp.join(root, masks or osp.join('masks', inner))
        if not osp.isdir(folder):
            missing.append(Fault(
                'missing-folder', folder, 'there is no folder of masks; '
                '--masks names another'))
        args['mask_folder'] = folder
    if name == 'official-json':
        args['prompt_keys'] = prompt_keys
    names = [images] if images else info.image_folders
    folders = [osp.normpath(osp.join(root, name)) for name in names]
    args['img_folder'] = next(filter(osp.isdir, folders), folders[0])
    if not osp.isdir(args['img_folder']):
        tried = '' if images else f' (tried {", ".join(names)})'
        missing.append(Fault(
            'missing-folder', folders[0],
            f'there is no folder of images{tried}; they come from '
            f'{info.image_source}. --images names another folder'))
    return Located(info, name, split_by, args, splits, missing,
                   size_mismatch=size_mismatch or info.size_mismatch)


def _only_split(root: str) -> str:
    """``split_by`` of the only file of refs in a folder; unc if none."""
    found = sorted(
        osp.basename(path) for pattern in ('refs(*).p', 'grefs(*).json')
        for path in glob.glob(osp.join(glob.escape(root), pattern)))
    if len(found) > 1:
        raise ValueError(f'{root} has {", ".join(found)}: say which with '
                         '--split-by')
    return found[0].split('(')[1].split(')')[0] if found else 'unc'


def _own_files(root: str, name: str) -> tuple[str, list[str], str]:
    """Annotation files, splits, and the subfolder of anns and masks."""
    ann_file = osp.join(root, DATASETS[name].ann_file)
    if DATASETS[name].reader == 'parquet':
        return _parquet_files(root)
    splits = splits_on_disk(ann_file)
    if name == 'labelme':
        splits = [s for s in splits if glob.glob(
            f'{glob.escape(osp.join(root, s))}/*.json')]
        if not splits and glob.glob(f'{glob.escape(root)}/*.json'):
            return root, ['all'], ''
    if splits or name != 'official-json':
        return ann_file, splits, ''
    # The official code keeps several datasets side by side.
    found = glob.glob(osp.join(glob.escape(root), 'anns/*/*.json'))
    inners = sorted({osp.basename(osp.dirname(path)) for path in found})
    if len(inners) > 1:
        raise ValueError(
            f'{root}/anns has several datasets: {", ".join(inners)}; give '
            'each a separate root (links are enough)')
    inner = ''.join(inners)
    ann_file = osp.join(root, 'anns', inner, '{split}.json')
    return ann_file, splits_on_disk(ann_file), inner


def _parquet_files(root: str) -> tuple[str, list[str], str]:
    """A pattern of files in the root, and their splits."""
    for folder in ('data', '.', '*'):
        ann_file = osp.normpath(osp.join(root, folder, '*.parquet'))
        paths = sorted(glob.glob(ann_file))
        if paths:
            break
    else:
        return osp.join(root, 'data/*.parquet'), [], ''
    names = {split_of_name(path) for path in paths}
    # A column "split" says more than the names of the files.
    found = [open_parquet(path) for path in paths]
    if all('split' in file.schema_arrow.names for file in found):
        names = {
            str(split) for file in found
            for split in file.read(['split'])['split'].unique().to_pylist()}
    return ann_file, sort_splits(names), ''
