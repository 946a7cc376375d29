# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Transforms of a sample: one image with K expressions.

Load image -> choose expressions -> load masks -> letterbox -> tokenize ->
pack. For evaluation, masks are loaded after the letterbox and so stay at the
original size.
"""
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import PixelData
from mmseg.registry import TRANSFORMS
from mmseg.structures import SegDataSample

from cris.geometry import Size, letterbox
from cris.io.files import read_bytes
from cris.io.images import decode_image
from cris.io.parquet import read_picture

from .headers import size_message
from .masks import Segmentation, decode_mask
from .tokenizer import tokenize

_META_KEYS = ('img_path', 'img_id', 'ori_shape', 'img_shape', 'expressions',
              'ref_ids', 'sent_ids', 'kinds')


def without_loading(pipeline: Sequence[dict]) -> list[dict]:
    """The transforms of a test pipeline that work on a decoded image.

    Left out are ``ChooseExpressions``, which reads the refs of a dataset, and
    every transform whose name starts with ``Load``. Arguments and returned
    are configs of transforms, e.g. ``cfg.test_dataloader.dataset.pipeline``.
    """

    def name(transform: dict) -> str:
        kind = transform['type']  # a name, perhaps with a scope, or a class
        return getattr(kind, '__name__', kind).split('.')[-1]

    return [transform for transform in pipeline if not name(
        transform).startswith(('Load', 'ChooseExpressions'))]


@TRANSFORMS.register_module()
class LoadReferImage(BaseTransform):
    """Load an image file as BGR, uint8 (h, w, 3).

    Required: img_path; height, width (optional, the annotated size),
    size_mismatch (optional, see ReferDataset), picture (optional, its content
    or where it is in a parquet file). Added: img, img_shape, ori_shape. In
    evaluation, which has no num_expressions, ori_shape is the annotated size.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not an image, or not of the annotated size.
    """

    def transform(self, results: dict) -> dict:
        path = results['img_path']
        content = results.get('picture')
        if content is None:
            content = read_bytes(path)
        elif not isinstance(content, bytes):
            content = read_picture(*content)
        img = decode_image(content, path)
        shape = img.shape[:2]
        annotated = (results.get('height', shape[0]),
                     results.get('width', shape[1]))
        if shape != annotated:
            mismatch = results.get('size_mismatch', 'error')
            if mismatch == 'error':
                raise ValueError(size_message(path, shape, annotated))
            if mismatch == 'resize_image' or 'num_expressions' not in results:
                img = cv2.resize(img, annotated[::-1],
                                 interpolation=cv2.INTER_CUBIC)
                shape = annotated
        return dict(results, img=img, img_shape=shape, ori_shape=shape)


@TRANSFORMS.register_module()
class ChooseExpressions(BaseTransform):
    """Choose the expressions of a sample among the sentences of its refs.

    With ``num_expressions`` in the sample, K of them: a random sentence of
    every ref, then further random ones. Without it, all sentences.

    Required: refs; num_expressions (optional, at least the number of refs).
    Added: expressions (K strings), sent_ids and ref_ids (K of each),
    ref_index (K positions in refs); kinds (K strings) if all refs have one.
    """

    def transform(self, results: dict) -> dict:
        refs = results['refs']
        pairs = [(i, j) for i, ref in enumerate(refs)
                 for j in range(len(ref['sentences']))]
        if 'num_expressions' in results:
            pairs = self._draw(pairs, results['num_expressions'])
        if all('kind' in ref for ref in refs):
            results = dict(
                results, kinds=[refs[i]['kind'] for i, _ in pairs])
        return dict(
            results,
            expressions=[refs[i]['sentences'][j] for i, j in pairs],
            sent_ids=[refs[i]['sent_ids'][j] for i, j in pairs],
            ref_ids=[refs[i]['ref_id'] for i, _ in pairs],
            ref_index=[i for i, _ in pairs])

    def _draw(self, pairs: list[tuple[int, int]],
              count: int) -> list[tuple[int, int]]:
        shuffled = [pairs[k] for k in np.random.permutation(len(pairs))]
        first = list(dict((pair[0], pair) for pair in shuffled).values())
        further = [pair for pair in shuffled if pair not in first]
        drawn = first + further[:count - len(first)]
        # If there are fewer than K sentences, repeat them.
        return [drawn[k % len(drawn)] for k in range(count)]


@TRANSFORMS.register_module()
class LoadReferMasks(BaseTransform):
    """Rasterise the masks of the refs, at the image's original size.

    Required: refs, ori_shape; height, width (optional, the annotated size,
    from which masks are resized). Added: gt_masks, uint8 (R, h, w) of 0 and
    255. A ref whose segmentation is None has no target: its mask is empty.
    gt_ignore is of the same form, if a ref has a region to ignore.

    Raises:
        ValueError: If the mask of a ref that has a target is empty or cannot
            be read.
    """

    def transform(self, results: dict) -> dict:
        shape = results['ori_shape']
        annotated = (results.get('height', shape[0]),
                     results.get('width', shape[1]))

        def load(segmentation: Segmentation) -> np.ndarray:
            if segmentation is None:
                return np.zeros(shape, np.uint8)
            mask = decode_mask(segmentation, *annotated) * 255
            if shape == annotated:
                return mask
            return cv2.resize(mask, shape[::-1],
                              interpolation=cv2.INTER_NEAREST_EXACT)

        masks = []
        for ref in results['refs']:
            mask = load(ref['segmentation'])
            if ref['segmentation'] is not None and shape == annotated and (
                    not mask.any()):
                raise ValueError(
                    f'the mask of ref {ref["ref_id"]} (ann_id '
                    f'{ref["ann_id"]}) in {results["img_path"]} is empty: '
                    'correct the annotation or remove the ref')
            masks.append(mask)
        results = dict(results, gt_masks=np.stack(masks))
        if any('ignore' in ref for ref in results['refs']):
            results['gt_ignore'] = np.stack([
                load(ref.get('ignore')) for ref in results['refs']])
        return results


@TRANSFORMS.register_module()
class Letterbox(BaseTransform):
    """Letterbox the image, cubic, and the masks loaded so far, linear.

    Required: img; gt_masks, gt_ignore (optional). Modified: these, img_shape.

    Args:
        size (int | tuple[int, int]): Side of the square, or (height, width),
            in pixels; multiples of 32 for CRIS.
        border_value (Sequence[float]): Colour around the image, BGR.
    """

    def __init__(self, size: Size, border_value: Sequence[float] = (0, 0, 0)):
        self.size = size if isinstance(size, int) else tuple(size)
        self.border_value = tuple(border_value)

    def transform(self, results: dict) -> dict:
        img = letterbox(
            results['img'], self.size, border_value=self.border_value)
        masks = {
            key: np.stack([letterbox(mask, self.size, cv2.INTER_LINEAR)
                           for mask in results[key]])
            for key in ('gt_masks', 'gt_ignore') if key in results}
        return dict(results, **masks, img=img, img_shape=img.shape[:2])


@TRANSFORMS.register_module()
class TokenizeExpressions(BaseTransform):
    """:func:`cris.datasets.tokenizer.tokenize` of the expressions.

    Required: expressions. Added: tokens, int64 (K, context_length).
    """

    def __init__(self, context_length: int):
        self.context_length = context_length
        tokenize('', context_length)  # workers share the vocabulary

    def transform(self, results: dict) -> dict:
        return dict(results, tokens=tokenize(
            results['expressions'], self.context_length))


@TRANSFORMS.register_module()
class PackReferInputs(BaseTransform):
    """Pack a sample for the model.

    Required: img, expressions, tokens, ref_index; gt_masks, gt_ignore
    (optional). Returns ``dict(inputs, data_samples)``: the image, uint8 (3, H,
    W), and a SegDataSample with ``tokens (K, L)``, ``gt_sem_seg.data`` (K, H,
    W), float32 in [0, 1], in evaluation bool, perhaps ``gt_ignore.data``, bool
    (K, H, W), pixels that do not count, and the metainfo img_path, img_id,
    ori_shape, img_shape, expressions, ref_ids, sent_ids and kinds, if
    present.
    """

    def transform(self, results: dict) -> dict:
        img = np.ascontiguousarray(results['img'].transpose(2, 0, 1))
        sample = SegDataSample(
            metainfo={k: results[k] for k in _META_KEYS if k in results})
        sample.tokens = results['tokens']
        if 'gt_masks' in results:
            masks = results['gt_masks'][results['ref_index']]
            masks = torch.from_numpy(masks)
            masks = (masks.float().div_(255) if 'num_expressions' in results
                     else masks > 127)
            sample.gt_sem_seg = PixelData(data=masks)
        if 'gt_ignore' in results:
            ignore = results['gt_ignore'][results['ref_index']]
            sample.gt_ignore = PixelData(data=torch.from_numpy(ignore > 0))
        return dict(inputs=torch.from_numpy(img), data_samples=sample)
