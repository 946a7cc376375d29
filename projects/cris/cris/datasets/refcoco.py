# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import logging
import os
import os.path as osp
from typing import Callable, List, Optional, Sequence, Union

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmseg.registry import DATASETS, TRANSFORMS

from .refer import load_refer, raise_faults


@DATASETS.register_module()
class RefCOCODataset(BaseDataset):
    """A referring segmentation set in the REFER layout.

    In training a sample is a *ref*, an object with several sentences of which
    one is drawn each time it is read; an epoch visits every ref once. In
    evaluation (``test_mode=True``) a sample is an *image* with all sentences
    of all its refs, so that it is encoded once. Everything is verified when
    the set is built, so that a fault ends a run before it starts.

    Args:
        data_root (str): Root folder; relative paths below are under it.
        ann_file (str): COCO annotations. Defaults to 'instances.json'.
        split_file (str): Expressions and splits.
            Defaults to 'refs(unc).p'.
        split (str): Defaults to 'train'.
        data_prefix (dict): ``dict(img_path=FOLDER)``.
        num_expressions (int): Expressions of a training sample, K. More than
            one share the pass of the image encoder: a sample then holds up to
            K refs of an image, and refs with fewer are asked with further
            sentences. Defaults to 1.
        pipeline (Sequence[dict | Callable]): Transforms of a sample.
        **kwargs: Of :class:`mmengine.dataset.BaseDataset`.

    Raises:
        FileNotFoundError: If a file or the image folder is missing.
        ValueError: If the split does not exist or an entry is at fault.
    """

    def __init__(self,
                 data_root: Optional[str] = '',
                 ann_file: str = 'instances.json',
                 split_file: str = 'refs(unc).p',
                 split: str = 'train',
                 data_prefix: dict = dict(img_path='images'),
                 num_expressions: int = 1,
                 pipeline: Sequence[Union[dict, Callable]] = (),
                 **kwargs):
        if num_expressions < 1:
            raise ValueError(f'num_expressions={num_expressions} must be >= 1')
        self.split = split
        self.num_expressions = num_expressions
        self.split_file = osp.join(data_root or '', split_file)
        super().__init__(
            data_root=data_root,
            ann_file=ann_file,
            data_prefix=data_prefix,
            # mmengine finds mmseg's transforms only in mmseg's scope.
            pipeline=[
                TRANSFORMS.build(t) if isinstance(t, dict) else t
                for t in pipeline
            ],
            **kwargs)

    def load_data_list(self) -> List[dict]:
        """One dict per sample: image, its size and its refs."""
        images = load_refer(self.ann_file, self.split_file, self.split)
        self._check_images(images)
        self._report(images)
        samples = []
        for image in images:
            image = dict(
                image,
                img_path=osp.join(self.data_prefix['img_path'],
                                  image.pop('file_name')))
            if self.test_mode:
                samples.append(image)
            else:
                refs, k = image['refs'], self.num_expressions
                samples += [
                    dict(image, refs=refs[i:i + k], num_expressions=k)
                    for i in range(0, len(refs), k)
                ]
        return samples

    def _check_images(self, images: List[dict]) -> None:
        folder = self.data_prefix['img_path']
        if not osp.isdir(folder):
            raise FileNotFoundError(
                f'the image folder {folder} does not exist: check data_root '
                'and data_prefix=dict(img_path=...)')
        # One listing of a folder instead of a question per file.
        present = {}
        faults = []
        for image in images:
            path = osp.join(folder, image['file_name'])
            parent, name = osp.split(path)
            if parent not in present:
                present[parent] = set(
                    os.listdir(parent) if osp.isdir(parent) else ())
            if name not in present[parent]:
                faults.append(f'image file {path} does not exist')
        raise_faults(faults, f'the images of {self.ann_file}')

    def _report(self, images: List[dict]) -> None:
        refs = [ref for image in images for ref in image['refs']]
        sentences = [s for ref in refs for s in ref['sentences']]
        print_log(
            f'{self.split_file}, split {self.split!r}: {len(images)} images, '
            f'{len(refs)} refs, {len(sentences)} sentences', 'current')
        empty = [ref['ref_id'] for ref in refs
                 if not all(s.strip() for s in ref['sentences'])]
        if empty:
            print_log(
                f'{len(empty)} refs have an empty sentence (ref {empty[0]}, '
                'for instance); it is kept and says nothing to the model',
                'current',
                level=logging.WARNING)
