# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Known datasets: where they come from and how many refs they have.

Plain data without heavy imports: ``prepare.py --help`` lists it.
"""
from typing import NamedTuple

#: Forms of annotation files that can be written; see docs/en/data.md.
FORMS = ('refer', 'jsonl', 'coco', 'official-json', 'parquet')
#: Refs, sentences and images (None: not published) by split.
Counts = dict[str, tuple[int | None, int | None, int | None]]
YOURS = 'you: see docs/en/data.md for the layout'


class DatasetInfo(NamedTuple):
    """What is known about a dataset."""
    reader: str
    source: str = YOURS  # of the annotations
    image_source: str = YOURS
    image_folders: tuple[str, ...] = ('images', )  # usual names in the root
    # By split_by, the default first. Split 'all' is the sum of the others.
    counts: dict[str, Counts] = {}
    context_length: int = 17  # tokens of a sentence that models use
    skip_images: tuple[int, ...] = ()  # ids that are usually left out
    ann_file: str = 'instances.json'
    size_mismatch: str = 'error'  # see ReferDataset


#: Repository of the Hub, its files, and the splits that REFER has of it.
HUB: dict[str, tuple[str, str, str | None]] = {
    'refcoco': ('jxu124/refcoco', 'data/*.parquet', 'unc'),
    'refcoco+': ('jxu124/refcocoplus', 'data/*.parquet', 'unc'),
    'refcocog': ('jxu124/refcocog', 'data/*.parquet', 'umd'),
    'refcoco-m': ('moondream/refcoco-m', 'data/*.parquet', None),
    'ref-l4': ('JierunChen/Ref-L4', 'refcocos_annotation_reviewed/*.json',
               None),
}
_REFER = 'the REFER page, https://github.com/lichengunc/refer'
_COCO = ('COCO 2014 train images, '
         'http://images.cocodataset.org/zips/train2014.zip')
_COCO_FOLDERS = ('train2014', 'images/train2014',
                 'images/mscoco/images/train2014', 'images',
                 '../images/mscoco/images/train2014', '../images/train2014',
                 '../train2014', '../coco/train2014')
DATASETS = {
    'refcoco': DatasetInfo(
        'refer', f'refcoco.zip of {_REFER}', _COCO, _COCO_FOLDERS,
        {'unc': {
            'train': (42404, 120624, 16994), 'val': (3811, 10834, 1500),
            'testA': (1975, 5657, 750), 'testB': (1810, 5095, 750)},
         'google': {
            'train': (40000, None, None), 'val': (5000, None, None),
            'test': (5000, None, None), 'all': (50000, 142210, None)}}),
    'refcoco+': DatasetInfo(
        'refer', f'refcoco+.zip of {_REFER}', _COCO, _COCO_FOLDERS,
        {'unc': {
            'train': (42278, 120191, None), 'val': (3805, 10758, None),
            'testA': (1975, 5726, None), 'testB': (1798, 4889, None)}}),
    'refcocog': DatasetInfo(
        'refer', f'refcocog.zip of {_REFER}', _COCO, _COCO_FOLDERS,
        {'umd': {
            'train': (42226, 80512, None), 'val': (2573, 4896, None),
            'test': (5023, 9602, None)},
         'google': {
            'train': (44822, 85474, None), 'val': (5000, 9536, None)}},
        context_length=22, size_mismatch='resize_mask'),
    'refclef': DatasetInfo(
        'refer', f'refclef.zip of {_REFER}',
        f'saiapr_tc-12.zip (the "selected" 20,000 images) of {_REFER}',
        ('saiapr_tc-12', 'images/saiapr_tc-12', 'images',
         '../images/saiapr_tc-12', '../saiapr_tc-12'),
        {'unc': {}, 'berkeley': {}}, skip_images=(19579, 17975, 19575)),
    'grefcoco': DatasetInfo(
        'refer', 'grefs(unc).json and instances.json of '
        'https://github.com/henghuiding/gRefCOCO', _COCO, _COCO_FOLDERS,
        # Of the released file; the paper has more.
        {'unc': {'all': (None, 259859, None)}}),
    'rrsis-d': DatasetInfo(
        'refer', 'https://github.com/Lsan2401/RMSIN', 'the same place',
        ('images/rrsisd/JPEGImages', 'JPEGImages', 'images',
         '../images/rrsisd/JPEGImages'), {'unc': {}},
        size_mismatch='resize_image'),
    'refer': DatasetInfo('refer', image_folders=('images', *_COCO_FOLDERS)),
    'jsonl': DatasetInfo('jsonl', ann_file='{split}.jsonl'),
    'coco': DatasetInfo(
        'coco', image_folders=('images', 'train2017', 'train2014'),
        ann_file='{split}.json'),
    'official-json': DatasetInfo(
        'official-json', ann_file='anns/{split}.json',
        image_folders=('images/train2014', 'images', '../images/train2014')),
    'hub': DatasetInfo('parquet', 'https://huggingface.co/datasets', _COCO,
                       ('.', ), ann_file='data/*.parquet'),
    'refcoco-m': DatasetInfo(
        'parquet', 'https://huggingface.co/datasets/moondream/refcoco-m',
        image_folders=('.', ), ann_file='data/*.parquet',
        counts={'m': {'validation': (2080, 5598, 1190)}}),
    'labelme': DatasetInfo('labelme', image_folders=('.', ),
                           ann_file='{split}'),
    'saco': DatasetInfo('saco', image_folders=('images', '.'),
                        ann_file='{split}.json'),
    'official-lmdb': DatasetInfo('official-json', ann_file='{split}.lmdb'),
}
