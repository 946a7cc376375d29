# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Data sets of own data, in the forms that people have."""
from typing import Optional, Sequence

from mmengine.fileio import BaseStorageBackend, register_backend
from mmseg.registry import DATASETS

from .files import LMDB_SCHEME, read_bytes
from .refcoco import ReferDataset

_FOLDERS = dict(img_path='images', mask_path='masks')


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
                 prompt_keys: Optional[Sequence[str]] = None,
                 **kwargs):
        self.prompt_keys = prompt_keys and list(prompt_keys)
        super().__init__(ann_file=ann_file, **kwargs)

    def reader_args(self) -> dict:
        return dict(super().reader_args(), prompt_keys=self.prompt_keys)


@DATASETS.register_module()
class OfficialLMDBDataset(ReferDataset):
    """The official repository's LMDB, read only; readers/official_lmdb.py.

    Args:
        ann_file (str): The LMDB. Defaults to '{split}.lmdb'.
        **kwargs: Of :class:`cris.datasets.refcoco.ReferDataset`.
    """
    reader = 'official-lmdb'

    def __init__(self, ann_file: str = '{split}.lmdb', **kwargs):
        super().__init__(ann_file=ann_file, **kwargs)

    def reader_args(self) -> dict:
        return dict(ann_file=self.ann_file)


@register_backend(
    'official-lmdb', prefixes=LMDB_SCHEME.split(':')[0], force=True)
class _OfficialLMDBBackend(BaseStorageBackend):
    """Lets mmengine and mmcv open images inside such an LMDB."""

    def get(self, filepath: str) -> bytes:
        return read_bytes(str(filepath))

    def get_text(self, filepath: str) -> str:
        raise NotImplementedError('an LMDB of images holds no text')
