# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The data sets by the names that configs use."""
import os.path as osp
from collections.abc import Sequence

from mmseg.registry import DATASETS

from .base import ReferDataset

_FOLDERS = dict(img_path='images', mask_path='masks')


@DATASETS.register_module()
class RefCOCODataset(ReferDataset):
    """A set in the REFER layout: RefCOCO, RefCOCO+, RefCOCOg, RefClef,
    gRefCOCO, RRSIS-D and others.

    Args:
        data_root (str): Root folder; relative paths below are under it.
        ann_file (str): COCO annotations. Defaults to 'instances.json'.
        split_file (str): Expressions and splits; ``grefs(unc).json`` for
            gRefCOCO. Defaults to 'refs(unc).p'.
        **kwargs: Of :class:`ReferDataset`.
    """
    reader = 'refer'

    def __init__(self,
                 data_root: str | None = '',
                 ann_file: str = 'instances.json',
                 split_file: str = 'refs(unc).p',
                 **kwargs):
        self.split_file = osp.join(data_root or '', split_file)
        super().__init__(data_root=data_root, ann_file=ann_file, **kwargs)

    def reader_args(self) -> dict:
        return dict(
            ann_file=self.ann_file,
            split_file=self.split_file,
            img_folder=self.data_prefix['img_path'],
            skip_images=[i for i in self.exclude if isinstance(i, int)])

    def _source(self) -> str:
        return self.split_file


@DATASETS.register_module()
class ReferJSONLDataset(ReferDataset):
    """Images, mask files and JSON lines; see readers/jsonl.py.

    Args:
        ann_file (str): The lines. Defaults to '{split}.jsonl'.
        data_prefix (dict): Folders of images and masks.
        **kwargs: Of :class:`cris.datasets.refcoco.ReferDataset`.
    """
    reader = 'jsonl'

    def __init__(self,
                 ann_file: str = '{split}.jsonl',
                 data_prefix: dict = _FOLDERS,
                 **kwargs):
        super().__init__(
            ann_file=ann_file, data_prefix=data_prefix, **kwargs)

    def reader_args(self) -> dict:
        return dict(
            ann_file=self.ann_file,
            img_folder=self.data_prefix['img_path'],
            mask_folder=self.data_prefix['mask_path'])


@DATASETS.register_module()
class ReferCOCODataset(ReferDataset):
    """COCO instances with expressions or category names; readers/coco.py.

    Args:
        ann_file (str): The annotations. Defaults to '{split}.json'.
        **kwargs: Of :class:`cris.datasets.refcoco.ReferDataset`.
    """
    reader = 'coco'

    def __init__(self, ann_file: str = '{split}.json', **kwargs):
        super().__init__(ann_file=ann_file, **kwargs)

    def reader_args(self) -> dict:
        return dict(
            ann_file=self.ann_file, img_folder=self.data_prefix['img_path'])


@DATASETS.register_module()
class OfficialCRISDataset(ReferJSONLDataset):
    """The official repository's JSON and masks; readers/official_json.py.

    Args:
        ann_file (str): The entries. Defaults to 'anns/{split}.json'.
        prompt_keys (Sequence[str], optional): Which of the ``prompts`` of an
            entry are its sentences; all by default.
        **kwargs: Of :class:`cris.datasets.refcoco.ReferDataset`.
    """
    reader = 'official-json'

    def __init__(self,
                 ann_file: str = 'anns/{split}.json',
                 prompt_keys: Sequence[str] | None = None,
                 **kwargs):
        self.prompt_keys = prompt_keys and list(prompt_keys)
        super().__init__(ann_file=ann_file, **kwargs)

    def reader_args(self) -> dict:
        return dict(super().reader_args(), prompt_keys=self.prompt_keys)
