# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The datasets by the names that configs use; see base.py for all else."""
import glob
import os.path as osp
from collections.abc import Sequence

from mmengine.logging import print_log
from mmseg.registry import DATASETS

from .base import ReferDataset
from .exclude import without_excluded
from .on_demand import RowSamples, count_refs
from .readers.parquet import find_shards

_MANY_REFS = 100_000


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
    readers/parquet.py; ``ann_file`` is a path or glob.

    Sets in our own form may be of any size. On demand, only the ids of refs
    are read at the start, and a row when it is used. It is checked then, so
    run ``prepare.py check`` once. Train with :class:`ShardBatchSampler`,
    which reads neighbouring rows together.

    Args:
        on_demand (bool, optional): By default, sets in our own form with
            more than 100,000 refs are read on demand.
        **kwargs: Of :class:`cris.datasets.base.ReferDataset`.
    """
    reader = 'parquet'
    folders = dict(img_path='')
    default_ann_file = 'data/*.parquet'

    def __init__(self, on_demand: bool | None = None, **kwargs):
        self.on_demand = on_demand
        super().__init__(**kwargs)

    def load_data_list(self) -> Sequence[dict]:
        if not self._reads_on_demand():
            return super().load_data_list()
        folder = self.data_prefix['img_path']

        def keep(images: list[dict]) -> list[dict]:
            return without_excluded(images, self.exclude, folder)

        samples = RowSamples(
            self.ann_file, self.split, folder,
            None if self.test_mode else self.num_expressions, self.samples_of,
            keep if self.exclude else None)
        if not len(samples):
            raise ValueError(f'no image left in {self._source()}')
        print_log(f'{self._source()}: {samples.num_images} images, '
                  f'{samples.num_refs} refs, read on demand', 'current')
        self.serialize_data = False  # it is not a list of dicts
        return samples

    def _reads_on_demand(self) -> bool:
        if self.on_demand is False:
            return False
        num_refs = count_refs(self.ann_file, self.split,
                              1 if self.on_demand else _MANY_REFS + 1)
        split_up = self.test_mode and not self.group_by_image
        if self.on_demand and (num_refs is None or split_up):
            raise ValueError(
                f'{self._source()} cannot be read on demand: ' +
                ('group_by_image=False needs all sentences' if split_up else
                 'it is not in the form that prepare.py convert writes'))
        return num_refs is not None and not split_up and (
            self.on_demand or num_refs > _MANY_REFS)

    def get_data_info(self, idx: int) -> dict:
        if not isinstance(self.data_list, RowSamples):
            return super().get_data_info(idx)
        return dict(self.data_list[idx], sample_idx=idx,
                    size_mismatch=self.size_mismatch)

    def name_of(self, idx: int) -> str:
        if isinstance(self.data_list, RowSamples):
            return '{}, row {}'.format(*self.data_list.position(idx))
        return super().name_of(idx)

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
