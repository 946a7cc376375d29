# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The datasets by the names that configs use; see base.py for all else."""
import glob
import os.path as osp
from collections.abc import Sequence

from mmseg.registry import DATASETS

from .base import ReferDataset
from .readers.parquet import find_shards


@DATASETS.register_module()
class RefCOCODataset(ReferDataset):
    """A dataset in the REFER layout, read by readers/refer.py: RefCOCO,
    RefCOCO+, RefCOCOg, RefClef, gRefCOCO, RRSIS-D and others.

    Args:
        data_root (str): Root folder; relative paths below are under it.
        ann_file (str): COCO annotations.
        split_file (str): Expressions and splits; ``grefs(unc).json`` for
            gRefCOCO.
        **kwargs: Of :class:`cris.datasets.base.ReferDataset`.
    """
    reader = 'refer'

    def __init__(self, data_root: str | None = '',
                 ann_file: str = 'instances.json',
                 split_file: str = 'refs(unc).p', **kwargs):
        self.split_file = osp.join(data_root or '', split_file)
        super().__init__(data_root=data_root, ann_file=ann_file, **kwargs)

    def reader_args(self) -> dict:
        return dict(
            super().reader_args(), split_file=self.split_file,
            skip_images=[i for i in self.exclude if isinstance(i, int)])


@DATASETS.register_module()
class ReferJSONLDataset(ReferDataset):
    """JSON lines, images and mask files, read by readers/jsonl.py."""
    reader = 'jsonl'
    folders = dict(img_path='images', mask_path='masks')
    default_ann_file = '{split}.jsonl'


@DATASETS.register_module()
class ReferCOCODataset(ReferDataset):
    """COCO instances with expressions or category names as such, read by
    readers/coco.py."""
    reader = 'coco'
    default_ann_file = '{split}.json'


@DATASETS.register_module()
class ReferParquetDataset(ReferDataset):
    """Parquet files in a form of the Hub or our own, read by
    readers/parquet.py; ``ann_file`` is a path or glob."""
    reader = 'parquet'
    folders = dict(img_path='')
    default_ann_file = 'data/*.parquet'

    def _files(self, path: str) -> list[str]:
        return [file for file, _ in find_shards(path, self.split)]


@DATASETS.register_module()
class ReferLabelmeDataset(ReferDataset):
    """LabelMe folders, as ReasonSeg has them, read by readers/labelme.py;
    ``ann_file`` is the folder of a split."""
    reader = 'labelme'
    folders = dict(img_path='')
    default_ann_file = '{split}'

    def _files(self, path: str) -> list[str]:
        return [file for folder in super()._files(path)
                for file in sorted(glob.glob(f'{glob.escape(folder)}/*.json'))]


@DATASETS.register_module()
class ReferSaCoDataset(ReferDataset):
    """SA-Co, COCO with a phrase in each image entry, read by
    readers/saco.py."""
    reader = 'saco'
    default_ann_file = '{split}.json'


@DATASETS.register_module()
class OfficialCRISDataset(ReferDataset):
    """The official repository's JSON and masks, read by
    readers/official_json.py.

    Args:
        prompt_keys (Sequence[str], optional): Which of the ``prompts`` of an
            entry are its sentences; all by default.
        **kwargs: Of :class:`cris.datasets.base.ReferDataset`.
    """
    reader = 'official-json'
    folders = dict(img_path='images', mask_path='masks')
    default_ann_file = 'anns/{split}.json'

    def __init__(self, prompt_keys: Sequence[str] | None = None, **kwargs):
        self.prompt_keys = prompt_keys and list(prompt_keys)
        super().__init__(**kwargs)

    def reader_args(self) -> dict:
        return dict(super().reader_args(), prompt_keys=self.prompt_keys)
