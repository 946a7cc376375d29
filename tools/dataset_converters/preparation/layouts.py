# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Where the files of each data set lie, where they come from, how many refs
they have."""
import glob
import os.path as osp
from typing import NamedTuple

from cris.datasets.readers import READERS
from cris.datasets.records import Fault, Records

_REFER = 'the REFER page, https://github.com/lichengunc/refer'
_COCO = ('COCO 2014 train images, '
         'http://images.cocodataset.org/zips/train2014.zip')
_COCO_FOLDERS = ('train2014', 'images/train2014',
                 'images/mscoco/images/train2014', 'images',
                 '../images/mscoco/images/train2014', '../images/train2014',
                 '../train2014', '../coco/train2014')
#: refs, sentences and images (None: not published) by split.
Counts = dict[str, tuple[int | None, int | None, int | None]]


class DataSet(NamedTuple):
    """What is known about a data set.

    Args:
        reader (str): Name of its reader.
        source (str): Where the annotations come from.
        image_source (str): Where the images come from.
        image_folders (tuple[str]): Names they go by, relative to the root.
        counts (dict[str, Counts]): By ``split_by``, whose first is the
            default. Split 'all' is the sum.
        context_length (int): At which the set is used.
        skip_images (tuple[int]): Image ids that everybody leaves out.
    """
    reader: str
    source: str
    image_source: str = 'the same place'
    image_folders: tuple[str, ...] = ('images', )
    counts: dict[str, Counts] = {}
    context_length: int = 17
    skip_images: tuple[int, ...] = ()


_YOURS = 'you: see docs/en/data.md for the layout'
DATASETS = {
    'refcoco':
    DataSet(
        'refer', f'refcoco.zip of {_REFER}', _COCO, _COCO_FOLDERS, {
            'unc': {
                'train': (42404, 120624, 16994),
                'val': (3811, 10834, 1500),
                'testA': (1975, 5657, 750),
                'testB': (1810, 5095, 750),
            },
            'google': {
                'train': (40000, None, None),
                'val': (5000, None, None),
                'test': (5000, None, None),
                'all': (50000, 142210, None),
            }
        }),
    'refcoco+':
    DataSet(
        'refer', f'refcoco+.zip of {_REFER}', _COCO, _COCO_FOLDERS, {
            'unc': {
                'train': (42278, 120191, None),
                'val': (3805, 10758, None),
                'testA': (1975, 5726, None),
                'testB': (1798, 4889, None),
            }
        }),
    'refcocog':
    DataSet(
        'refer', f'refcocog.zip of {_REFER}', _COCO, _COCO_FOLDERS, {
            'umd': {
                'train': (42226, 80512, None),
                'val': (2573, 4896, None),
                'test': (5023, 9602, None),
            },
            'google': {
                'train': (44822, 85474, None),
                'val': (5000, 9536, None),
            }
        }, 22),
    'refclef':
    DataSet(
        'refer',
        f'refclef.zip of {_REFER}',
        f'saiapr_tc-12.zip (the "selected" 20,000 images) of {_REFER}',
        ('saiapr_tc-12', 'images/saiapr_tc-12', 'images',
         '../images/saiapr_tc-12', '../saiapr_tc-12'),
        {'unc': {}, 'berkeley': {}},
        skip_images=(19579, 17975, 19575)),
    'grefcoco':
    DataSet(
        'refer', 'grefs(unc).json and instances.json of '
        'https://github.com/henghuiding/gRefCOCO', _COCO, _COCO_FOLDERS,
        {'unc': {}}),
    'rrsis-d':
    DataSet(
        'refer', 'https://github.com/Lsan2401/RMSIN', 'the same place',
        ('images/rrsisd/JPEGImages', 'JPEGImages', 'images',
         '../images/rrsisd/JPEGImages'), {'unc': {}}),
    'refer':
    DataSet('refer', _YOURS, _YOURS, ('images', *_COCO_FOLDERS)),
    'jsonl':
    DataSet('jsonl', _YOURS, _YOURS),
    'coco':
    DataSet('coco', _YOURS, _YOURS, ('images', 'train2017', 'train2014')),
    'official-json':
    DataSet('official-json', _YOURS, _YOURS,
            ('images/train2014', 'images', '../images/train2014')),
    'official-lmdb':
    DataSet('official-lmdb', _YOURS),
}


class Located(NamedTuple):
    """Files of a data set on this disk.

    Args:
        dataset (DataSet): What is known about it.
        name (str): Its name.
        split_by (str, optional): Which of its splits.
        args (dict): Arguments of its reader, but for the split.
        splits (list[str], optional): Splits that have files of their own.
        missing (list[Fault]): Files and folders that are not there.
    """
    dataset: DataSet
    name: str
    split_by: str | None
    args: dict
    splits: list[str] | None
    missing: list[Fault]

    @property
    def img_folder(self) -> str | None:
        return self.args.get('img_folder')

    @property
    def can_be_read(self) -> bool:
        # Sizes of images come from the annotations there.
        without_images = self.dataset.reader in ('refer', 'coco')
        return not any(
            f.kind == 'missing-file' or not without_images
            for f in self.missing)

    def read(self) -> Records:
        """Records of all splits; every ref says of which it is."""
        read = READERS[self.dataset.reader]
        if self.splits is None:
            return read(**self.args)
        # Ids need not be unique across files.
        parts = [read(**self.args, split=split) for split in self.splits]
        return Records([i for part in parts for i in part.images],
                       [f for part in parts for f in part.faults])


def locate(root: str,
           name: str,
           split_by: str | None = None,
           images: str | None = None,
           masks: str | None = None,
           prompt_keys: list[str] | None = None) -> Located:
    """Find the files of a data set and say which are missing.

    Args:
        root (str): Its folder, or (of a named set) the folder of that.
        name (str): A key of :data:`DATASETS`.
        split_by (str, optional): Which splits; the first known by default.
        images (str, optional): Folder of the images, relative to the root;
            searched by default.
        masks (str, optional): Folder of the masks, relative to the root.
        prompt_keys (list[str], optional): Of the official JSON.

    Raises:
        FileNotFoundError: If the root is no folder.
        ValueError: If the set has no such splits.
    """
    dataset = DATASETS[name]
    if not osp.isdir(root):
        raise FileNotFoundError(f'{root} is no folder')
    if split_by and dataset.counts and split_by not in dataset.counts:
        raise ValueError(f'{name} has no split_by {split_by!r}; it has '
                         f'{", ".join(dataset.counts)}')
    missing: list[Fault] = []
    if dataset.reader == 'refer':
        root, split_by, args = _refer_files(root, name, split_by, missing)
        splits = None
        if dataset.skip_images:
            args['skip_images'] = list(dataset.skip_images)
    else:
        args, splits, inner = _own_files(root, name, missing)
        if name in ('jsonl', 'official-json'):
            masks = masks or osp.join('masks', inner)
            args['mask_folder'] = osp.join(root, masks)
            if not osp.isdir(args['mask_folder']):
                missing.append(
                    Fault('missing-folder', args['mask_folder'],
                          'there is no folder of masks; --masks names '
                          'another'))
        if name == 'official-json':
            args['prompt_keys'] = prompt_keys
    if dataset.reader != 'official-lmdb':
        args['img_folder'] = _image_folder(root, dataset, images, missing)
    return Located(dataset, name, split_by, args, splits, missing)


def _missing(path: str, source: str) -> Fault:
    return Fault('missing-file', path,
                 f'it does not exist; it comes from {source}')


def _image_folder(root: str, dataset: DataSet, images: str | None,
                  missing: list[Fault]) -> str:
    names = [images] if images else dataset.image_folders
    found = [osp.join(root, n) for n in names if osp.isdir(osp.join(root, n))]
    if found:
        return osp.normpath(found[0])
    tried = '' if images else f' (looked for {", ".join(names)})'
    missing.append(
        Fault(
            'missing-folder', osp.join(root, names[0]),
            f'there is no folder of images{tried}; they come from '
            f'{dataset.image_source}. --images names another folder'))
    return osp.join(root, names[0])


def _refer_files(root: str, name: str, split_by: str | None,
                 missing: list[Fault]) -> tuple:
    dataset = DATASETS[name]
    inside = osp.join(root, name)
    if dataset.counts and osp.isdir(inside) and not osp.isfile(
            osp.join(root, 'instances.json')):
        root = inside
    if split_by is None and dataset.counts:
        split_by = next(iter(dataset.counts))
    if split_by is None:
        found = sorted(
            glob.glob(osp.join(glob.escape(root), 'refs(*).p')) +
            glob.glob(osp.join(glob.escape(root), 'grefs(*).json')))
        if len(found) > 1:
            names = ', '.join(osp.basename(path) for path in found)
            raise ValueError(f'{root} has {names}: say which with --split-by')
        split_by = (
            osp.basename(found[0]).split('(')[1].split(')')[0]
            if found else 'unc')
    split_file = osp.join(root, f'refs({split_by}).p')
    generalized = osp.join(root, f'grefs({split_by}).json')
    if name == 'grefcoco' or (not osp.isfile(split_file)
                              and osp.isfile(generalized)):
        split_file = generalized
    args = dict(
        ann_file=osp.join(root, 'instances.json'), split_file=split_file)
    for path in args.values():
        if not osp.isfile(path):
            missing.append(_missing(path, dataset.source))
    return root, split_by, args


def _own_files(root: str, name: str, missing: list[Fault]) -> tuple:
    """Reader's arguments, splits, and the subfolder of anns and masks."""
    pattern = {
        'jsonl': '*.jsonl',
        'coco': '*.json',
        'official-json': 'anns/*.json',
        'official-lmdb': '*.lmdb'
    }[name]
    inner = ''
    found = glob.glob(osp.join(glob.escape(root), pattern))
    if not found and name == 'official-json':
        # The official code keeps several sets side by side.
        found = glob.glob(osp.join(glob.escape(root), 'anns/*/*.json'))
        inners = sorted({osp.basename(osp.dirname(path)) for path in found})
        if len(inners) > 1:
            raise ValueError(
                f'{root}/anns has several sets: {", ".join(inners)}; give '
                'each a root of its own (links will do)')
        inner = inners[0] if inners else ''
    if not found:
        missing.append(_missing(osp.join(root, pattern), _YOURS))
    folder, suffix = osp.split(pattern)
    args = dict(
        ann_file=osp.join(root, folder, inner, suffix.replace('*',
                                                              '{split}')))
    splits = sorted(osp.splitext(osp.basename(path))[0] for path in found)
    # The order in which people expect them.
    splits.sort(key=lambda s: (s != 'train', not s.startswith('val'), s))
    return args, splits, inner
