# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""From the logits of a picture to what a user wants to know of it.

Shapes: a picture of h x w pixels with K expressions.
"""
import os
import os.path as osp
from contextlib import suppress
from numbers import Real
from typing import Dict, List, Optional, Sequence, Tuple, Union

import cv2
import mmcv
import numpy as np
from mmengine.fileio import dump
from mmengine.utils import mkdir_or_exist
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from cris.datasets.files import load_json
from cris.evaluation import confidence
from cris.visualization.draw import draw_masks, draw_tile, join_tiles

_MOST_TILES, _COLUMNS = 100, 4  # of a sheet
_LONGEST = 120  # characters of an expression on it


def make_prediction(model: nn.Module,
                    logits: Tensor,
                    shape: Tuple[int, int],
                    expressions: Sequence[str],
                    threshold: Optional[float] = None,
                    return_masks: bool = True,
                    return_probs: bool = False) -> dict:
    """Masks at the original size and what follows from them.

    The model does not run: another threshold costs only this.

    Args:
        model (nn.Module): A :class:`cris.models.CRIS`.
        logits (Tensor): Its answers, ``(K, 1, H/4, W/4)``.
        shape (tuple[int, int]): Height and width of the picture.
        expressions (Sequence[str]): K of them.
        threshold (float, optional): A pixel belongs to the mask if its
            probability is higher. None takes the model's.
        return_masks (bool): False leaves only the RLEs, which a thousand
            expressions of a large picture want. Defaults to True.
        return_probs (bool): Defaults to False.

    Returns:
        dict: ``expressions``, K strings; ``scores``, float32 ``(K,)``, see
        :func:`cris.evaluation.confidence`; ``boxes``, float32 ``(K, 4)`` of
        x0, y0, x1, y1 in pixels, zeros where the mask is empty; ``rles``, K
        compressed COCO RLEs that JSON can hold; ``height``, ``width``,
        ``threshold``; on request ``masks``, bool ``(K, h, w)``, and
        ``probs``, float32 ``(K, h, w)``, which overshoot [0, 1] at sharp
        edges, for they are interpolated as in the official code (bicubic).

    Raises:
        ValueError: If threshold is not in [0, 1], or a logit is no number.
    """
    if threshold is None:
        threshold = model.decode_head.threshold
    if not isinstance(threshold, Real):
        raise ValueError(f'threshold={threshold!r} must be a number')
    if not 0 <= threshold <= 1:
        raise ValueError(f'threshold={threshold} must be in [0, 1]')
    scores, rles, masks, probs = [], [], [], []
    for k in range(len(expressions)):  # one map at a time: they may be large
        prob = model.original_size(logits[k:k + 1], shape)[0]
        mask = (prob > threshold).numpy()
        prob = prob.numpy()
        scores.append(confidence(prob, mask))
        rles.append(coco_mask.encode(np.asfortranarray(mask, np.uint8)))
        if return_masks:
            masks.append(mask)
        if return_probs:
            probs.append(prob)
    boxes = coco_mask.toBbox(rles).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    prediction = dict(
        expressions=list(expressions),
        scores=np.array(scores, np.float32),
        boxes=boxes,
        rles=[dict(rle, counts=rle['counts'].decode()) for rle in rles],
        height=shape[0],
        width=shape[1],
        threshold=float(threshold))
    if return_masks:
        prediction['masks'] = np.stack(masks)
    if return_probs:
        prediction['probs'] = np.stack(probs)
    return prediction


def draw_prediction(image: np.ndarray, prediction: dict) -> np.ndarray:
    """A sheet with a tile for every expression.

    Args:
        image (np.ndarray): RGB, uint8 ``(h, w, 3)``, or smaller.
        prediction (dict): By :func:`make_prediction`.

    Returns:
        np.ndarray: RGB, uint8: the mask of an expression in cyan, and below
        it the expression and its score. With several expressions the plain
        picture comes first, and only the first hundred are drawn.
    """
    expressions, scores, rles = (
        prediction[key][:_MOST_TILES]
        for key in ('expressions', 'scores', 'rles'))
    one = len(expressions) == 1
    width = min(max(image.shape[1], 320), 1000 if one else 400)
    # Outlines are of the size that is shown, and large pictures take long.
    scale = min(1, width / image.shape[1])
    image = cv2.resize(
        image, (max(1, round(scale * image.shape[1])),
                max(1, round(scale * image.shape[0]))),
        interpolation=cv2.INTER_AREA)
    tiles = [] if one else [draw_tile(image, 'picture', width)]
    for expression, score, rle in zip(expressions, scores, rles, strict=True):
        mask = cv2.resize(
            coco_mask.decode(rle), (image.shape[1], image.shape[0]),
            interpolation=cv2.INTER_NEAREST).astype(bool)
        caption = f'"{_cut(expression)}"  {score:.2f}'
        if not coco_mask.area(rle):
            caption += '  (nothing found)'
        tiles.append(draw_tile(draw_masks(image, pred=mask), caption, width))
    return join_tiles(tiles, _COLUMNS)


def _cut(expression: str) -> str:
    if len(expression) <= _LONGEST:
        return expression
    return expression[:_LONGEST - 1] + '…'


def write_image(image: np.ndarray, path: str) -> None:
    """Write a picture, BGR or grey; missing folders are made.

    Raises:
        OSError: If it cannot be written.
    """
    try:
        mmcv.imwrite(image, path)
    except (OSError, cv2.error) as error:
        raise OSError(f'cannot write {path}: {error}') from error


class PredictionWriter:
    """Writes predictions into a folder, as they come.

    ``masks/NAME_K.png`` of 0 and 255 for the K-th expression, counted from
    0; ``overlays/NAME.jpg``; on :meth:`close`, which leaving its ``with``
    calls, ``predictions.json``. What an earlier run left there stays, but for
    the answers about pictures that are asked about again.

    Args:
        out_dir (str): The folder; it is made if need be.

    Raises:
        OSError: If it cannot be made.
        ValueError: If its ``predictions.json`` is of something else.
    """

    def __init__(self, out_dir: Union[str, os.PathLike]):
        self.out_dir = os.fspath(out_dir)
        try:
            for part in ('masks', 'overlays'):
                mkdir_or_exist(osp.join(self.out_dir, part))
        except OSError as error:
            raise OSError(
                f'cannot write into {self.out_dir}: {error}') from error
        self.path = osp.join(self.out_dir, 'predictions.json')
        self._earlier: Dict[str, List[dict]] = {}
        self._names = set()
        for record in self._read_earlier():
            self._earlier.setdefault(_identity(record), []).append(record)
            self._names.add(_name(record))
        self.records: List[dict] = []

    def _read_earlier(self) -> List[dict]:
        if not osp.isfile(self.path):
            return []
        try:
            records = load_json(self.path)
            for record in records:
                _identity(record), _files(record)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{self.path} is there already and of something '
                             'else: name another folder') from error
        return records

    def _forget(self, record: dict) -> None:
        for file in _files(record):
            with suppress(FileNotFoundError):
                os.remove(osp.join(self.out_dir, file))
        self._names.discard(_name(record))

    def write(self, prediction: dict, overlay: np.ndarray) -> None:
        """Write the masks and the overlay of one picture.

        Args:
            prediction (dict): By :func:`make_prediction`, with ``name`` and
                ``img_path``.
            overlay (np.ndarray): RGB, uint8.
        """
        name, count = prediction['name'], 2
        identity = _identity(
            dict(prediction, overlay_file=f'overlays/{name}.jpg'))
        for record in self._earlier.pop(identity, ()):
            self._forget(record)
        while name in self._names:  # a.jpg and a.png
            name, count = f'{prediction["name"]}_{count}', count + 1
        self._names.add(name)
        answers = []
        for k, (expression, score, box, rle) in enumerate(
                zip(*(prediction[key]
                      for key in ('expressions', 'scores', 'boxes', 'rles')),
                    strict=True)):
            mask_file = f'masks/{name}_{k}.png'
            write_image(255 * coco_mask.decode(rle),
                        osp.join(self.out_dir, mask_file))
            answers.append(
                dict(
                    expression=expression,
                    score=float(score),
                    box=box.tolist(),
                    rle=rle,
                    mask_file=mask_file))
        overlay_file = f'overlays/{name}.jpg'
        write_image(overlay[..., ::-1], osp.join(self.out_dir, overlay_file))
        record = {
            key: prediction[key]
            for key in ('img_path', 'height', 'width', 'threshold')
        }
        self.records.append(
            dict(
                record, overlay_file=overlay_file, answers=answers))

    def close(self) -> str:
        """Write ``predictions.json``, a list with one entry per picture.

        Returns:
            str: Its path.
        """
        dump([*sum(self._earlier.values(), []), *self.records], self.path)
        return self.path

    def __enter__(self) -> 'PredictionWriter':
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _identity(record: dict) -> str:
    """The picture that it is of; of an array only a name is known."""
    path = record['img_path']
    return osp.abspath(path) if path else record['overlay_file']


def _name(record: dict) -> str:
    return osp.splitext(osp.basename(record['overlay_file']))[0]


def _files(record: dict) -> List[str]:
    """Its masks and overlay; a record of a stranger must not name others."""
    return [f'overlays/{osp.basename(record["overlay_file"])}'] + [
        f'masks/{osp.basename(answer["mask_file"])}'
        for answer in record['answers']
    ]
