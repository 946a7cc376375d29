# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import json
import logging
import os.path as osp
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.logging import print_log
from mmseg.registry import TRANSFORMS
from torch.utils.data import Dataset

from cris.io.files import without_gc

from .cache import cached
from .exclude import without_excluded
from .headers import check_headers
from .randomness import WorkerState
from .readers import READERS
from .records import Fault, Records, as_splits, raise_faults, samples_of

# Fixed by replacing files, not annotations; a cache would keep reporting them.
_FILE_FAULTS = {
    'bad-file', 'bad-image', 'file-too-large', 'image-too-large',
    'missing-image', 'missing-mask', 'unsafe-name'
}


class ReferDataset(BaseDataset):
    """A dataset for referring segmentation; subclasses name the reader.

    In training a sample is a *ref*, an object with several sentences; one of
    them is drawn each time it is read. An epoch visits every ref once. In
    evaluation (``test_mode=True``) a sample is an *image* with all sentences
    of all its refs, so that it is encoded once. Annotations, masks and image
    headers are checked when the dataset is built.

    Args:
        data_root (str): Root folder; relative paths below are under it.
        ann_file (str): The annotations; ``{split}`` in it stands for the
            split.
        split (str | list[str]): One split or several.
        data_prefix (dict): ``img_path`` and ``mask_path``, folders; ``images``
            and ``masks`` by default.
        num_expressions (int): Expressions of a training sample, K. The image
            is encoded once for all of them: a sample has up to K refs of an
            image, filled up with further sentences of the same refs.
        group_by_image (bool): False makes a sample of every sentence in
            evaluation, as the official code does: the same predictions at a
            higher cost.
        on_error (str): 'raise' lists all faulty entries in an error; 'skip'
            leaves them out (see ``faults``); training then replaces a sample
            that cannot be decoded with another.
        exclude (Sequence[int | str | dict]): Images to leave out: ids, file
            names, or configs of datasets none of whose images may be used
            (compared by file name), e.g. the val and test splits of datasets
            that are mixed.
        size_mismatch (str): What to do about a picture that is not of the
            annotated size. 'error' is a fault; 'resize_image' resizes the
            picture; 'resize_mask' the masks in training, and the picture in
            evaluation: scores are always at the annotated size.
        check_images (bool): Whether to read the header of every image first;
            False only checks that the files exist.
        cache_dir (str | False, optional): Folder of the cache; by default
            ``.cris_cache`` beside the annotations. False for no cache.
        pipeline (Sequence[dict | Callable]): Transforms of a sample.
        **kwargs: Of :class:`mmengine.dataset.BaseDataset`.

    Raises:
        FileNotFoundError: If a file or the image folder is missing.
        ValueError: If an argument is invalid, the split does not exist or an
            entry is faulty.
    """
    reader: str  # a key of READERS
    folders = dict(img_path='images')  # defaults of data_prefix
    default_ann_file = ''
    split_file: str | None = None  # the file that messages name, if it exists

    def __init__(self, data_root: str | None = '',
                 ann_file: str | None = None,
                 split: str | Sequence[str] = 'train',
                 data_prefix: dict = {}, num_expressions: int = 1,
                 group_by_image: bool = True, on_error: str = 'raise',
                 exclude: Sequence[int | str | dict] = (),
                 size_mismatch: str = 'error', check_images: bool = True,
                 cache_dir: str | Literal[False] | None = None,
                 pipeline: Sequence[dict | Callable] = (), **kwargs):
        if num_expressions < 1:
            raise ValueError(f'num_expressions={num_expressions} must be >= 1')
        if on_error not in ('raise', 'skip'):
            raise ValueError(f"on_error={on_error!r} must be 'raise' or "
                             "'skip'")
        if size_mismatch not in ('error', 'resize_image', 'resize_mask'):
            raise ValueError(f'size_mismatch={size_mismatch!r} must be '
                             "'error', 'resize_image' or 'resize_mask'")
        if cache_dir is True:
            raise ValueError('cache_dir=True must be a folder, None for '
                             '.cris_cache beside the annotations, or False '
                             'for no cache')
        self.split = split if isinstance(split, str) else list(split)
        self.num_expressions = num_expressions
        self.group_by_image = group_by_image
        self.on_error = on_error
        self.exclude = exclude
        self.size_mismatch = size_mismatch
        self.check_images = check_images
        self.cache_dir = cache_dir
        self.faults: list[Fault] = []
        self.num_skipped = 0
        self.worker_state = WorkerState()
        super().__init__(
            data_root=data_root,
            ann_file=self.default_ann_file if ann_file is None else ann_file,
            data_prefix=dict(self.folders, **data_prefix),
            # mmengine finds mmseg's transforms only in mmseg's scope.
            pipeline=[TRANSFORMS.build(t) if isinstance(t, dict) else t
                      for t in pipeline],
            **kwargs)

    def reader_args(self) -> dict:
        """Arguments of the reader, except the split."""
        folders = {key.replace('_path', '_folder'): self.data_prefix[key]
                   for key in self.folders}
        return dict(folders, ann_file=self.ann_file)

    def read(self) -> Records:
        """Records, faults and notes, from the cache if it is valid."""
        args, splits = self.reader_args(), as_splits(self.split)

        def compute() -> tuple[list, list[str] | None]:
            records = READERS[self.reader](**args, split=splits)
            files = None if any(fault.kind in _FILE_FAULTS
                                for fault in records.faults) else records.files
            return [records.images, list(map(list, records.faults)),
                    records.notes], files

        files = [file for path in (self.ann_file, self.split_file) if path
                 for file in self._files(path)]
        images, faults, notes = self._cached(
            [self.reader, json.dumps(args), splits], files, compute)
        return Records(images, [Fault(*f) for f in faults], notes=notes)

    @without_gc()
    def load_data_list(self) -> list[dict]:
        """One dict per sample: image, its size and its refs."""
        images, faults, _, notes = self.read()
        for note in notes:
            _warn(note)
        self._handle_faults(faults, self._source())
        images = self._drop_bad_images(
            without_excluded(images, self.exclude,
                             self.data_prefix['img_path']))
        self._check_and_log(images)
        samples = [sample for image in images
                   for sample in self.samples_of(image)]
        if self.test_mode and not self.group_by_image:
            samples = [
                dict(sample, refs=[dict(ref, sent_ids=[i], sentences=[s])])
                for sample in samples for ref in sample['refs']
                for i, s in zip(ref['sent_ids'], ref['sentences'],
                                strict=True)]
        return samples

    def samples_of(self, image: dict) -> list[dict]:
        """The samples of a record, all sentences of an image in one."""
        return samples_of(image, self.data_prefix['img_path'],
                          None if self.test_mode else self.num_expressions)

    def name_of(self, idx: int) -> str:
        """The file of a sample, for messages."""
        return self.get_data_info(idx)['img_path']

    def get_data_info(self, idx: int) -> dict:
        return dict(super().get_data_info(idx),
                    size_mismatch=self.size_mismatch)

    def __getitem__(self, idx: int) -> dict:
        with self.worker_state.reading(idx, seeded=not self.test_mode):
            return super().__getitem__(idx)

    def prepare_data(self, idx: int) -> dict | None:
        """A sample, or None to draw another one instead."""
        try:
            return super().prepare_data(idx)
        except (OSError, ValueError) as error:
            if self.test_mode or self.on_error == 'raise':
                raise
            self.num_skipped += 1
            _warn(f'sample {idx} is skipped, {self.num_skipped} so far in '
                  f'this process: {error}')
            return None

    def _files(self, path: str) -> list[str]:
        """The files of the splits, or the one file of all."""
        splits = as_splits(self.split)
        return list(dict.fromkeys(path.replace('{split}', s) for s in splits))

    def _source(self) -> str:
        """Names of the files and the split, for messages."""
        files = self._files(self.split_file or self.ann_file)
        if len(files) > 3:
            files = [f'{files[0]} and {len(files) - 1} others']
        return f'{", ".join(files)}, split {self.split!r}'

    def _cached(self, request: list, files: list, compute: Callable) -> list:
        folder = self.cache_dir
        if folder is None:
            folder = osp.join(osp.dirname(self.ann_file), '.cris_cache')
        return cached(folder, request, files, compute)

    def _handle_faults(self, faults: Sequence[Fault], where: str) -> None:
        """Raise the faults, or log and collect them."""
        if self.on_error == 'raise':
            raise_faults(faults, where)
        elif faults:
            self.faults += faults
            _warn(f'{len(faults)} fault(s) in {where} are skipped, the first: '
                  f'{faults[0]}')

    def _drop_bad_images(self, images: list[dict]) -> list[dict]:
        """The images whose files exist and have the annotated size."""
        folder = self.data_prefix['img_path']
        in_folder = any('picture' not in image for image in images)
        if in_folder and not osp.isdir(folder):
            raise FileNotFoundError(
                f'the image folder {folder} does not exist: check data_root '
                'and data_prefix=dict(img_path=...)')

        def compute() -> tuple[list, list[str]]:
            faults = check_headers(images, folder, self.check_images)
            return list(map(list, faults)), [
                osp.join(folder, image['file_name']) for image in images]

        sizes = [(i['file_name'], i['height'], i['width'],
                  i.get('picture_size')) for i in images]
        faults = [Fault(*fault) for fault in self._cached(
            ['images', folder, self.check_images, sizes], [], compute)]
        if self.size_mismatch != 'error':
            other = sum(fault.kind == 'image-size' for fault in faults)
            faults = [f for f in faults if f.kind != 'image-size']
            if other:
                _warn(f'{other} of {len(images)} pictures are not of the '
                      f'annotated size: size_mismatch={self.size_mismatch!r}')
        self._handle_faults(faults, f'the images of {self._source()}')
        bad = {fault.where for fault in faults}
        return [i for i in images if i['file_name'] not in bad]

    def _check_and_log(self, images: list[dict]) -> None:
        """Refuse an empty dataset; log the size of any other."""
        if not images:
            raise ValueError(
                f'no image left in {self._source()}: {len(self.faults)} '
                'skipped as faulty, the rest excluded')
        refs = [ref for image in images for ref in image['refs']]
        sentences = [s for ref in refs for s in ref['sentences']]
        print_log(
            f'{self._source()}: {len(images)} images, {len(refs)} refs, '
            f'{len(sentences)} sentences', 'current')
        empty = [ref['ref_id'] for ref in refs
                 if not all(s.strip() for s in ref['sentences'])]
        if empty:
            _warn(f'{len(empty)} refs have an empty sentence, e.g. ref '
                  f'{empty[0]}; kept, although it refers to nothing')


def _warn(message: str) -> None:
    print_log(message, 'current', level=logging.WARNING)


def refer_datasets(dataset: Dataset) -> Iterator[ReferDataset]:
    """The referring datasets that a dataset consists of."""
    if isinstance(dataset, ReferDataset):
        yield dataset
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from refer_datasets(part)
