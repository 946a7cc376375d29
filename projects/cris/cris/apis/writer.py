# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""A folder of predictions: masks, overlays and one JSON."""
import os
import os.path as osp
from contextlib import suppress

import cv2
import mmcv
import numpy as np
from mmengine.fileio import dump
from mmengine.utils import mkdir_or_exist
from pycocotools import mask as coco_mask

from cris.io.files import load_json


def write_image(image: np.ndarray, path: str) -> None:
    """Write an image, BGR or grey; missing folders are created."""
    try:
        mmcv.imwrite(image, path)
    except (OSError, cv2.error) as error:
        raise OSError(f'cannot write {path}: {error}') from error


class PredictionWriter:
    """Writes predictions into a folder, one image at a time.

    ``masks/NAME_K.png`` with values 0 and 255 for the K-th expression,
    counted from 0; ``overlays/NAME.jpg``; on :meth:`close`, at the end of a
    ``with`` block, ``predictions.json``. Results of earlier runs are kept,
    except those of the same images.

    Args:
        out_dir (str | Path): The folder, created if it does not exist.

    Raises:
        OSError: If the folder cannot be created.
        ValueError: If its ``predictions.json`` has other content.
    """

    def __init__(self, out_dir: str | os.PathLike):
        self.out_dir = os.fspath(out_dir)
        try:
            for part in ('masks', 'overlays'):
                mkdir_or_exist(osp.join(self.out_dir, part))
        except OSError as error:
            raise OSError(
                f'cannot write into {self.out_dir}: {error}') from error
        self.path = osp.join(self.out_dir, 'predictions.json')
        self.records: list[dict] = []
        self._earlier: dict[str, list[dict]] = {}
        self._names = set()
        try:
            for record in load_json(self.path) if osp.isfile(
                    self.path) else ():
                overlay, *_ = _files(record)
                self._earlier.setdefault(_identity(record), []).append(record)
                self._names.add(_stem(overlay))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{self.path} exists and does not hold '
                             'predictions: choose another folder') from error

    def write(self, prediction: dict, overlay: np.ndarray) -> None:
        """Write the masks and the overlay of one image.

        Args:
            prediction (dict): From
                :func:`cris.apis.predictions.make_prediction`, with ``name``
                and ``img_path``.
            overlay (np.ndarray): RGB, uint8.
        """
        name, count = prediction['name'], 2
        image = dict(prediction, overlay_file=f'overlays/{name}.jpg')
        for record in self._earlier.pop(_identity(image), ()):
            files = _files(record)
            self._names.discard(_stem(files[0]))
            for file in files:
                with suppress(FileNotFoundError):
                    os.remove(osp.join(self.out_dir, file))
        while name in self._names:  # a.jpg and a.png
            name, count = f'{prediction["name"]}_{count}', count + 1
        self._names.add(name)
        record = {key: prediction[key]
                  for key in ('img_path', 'height', 'width', 'threshold',
                              'existence_threshold')}
        record.update(overlay_file=f'overlays/{name}.jpg', answers=[])
        existence = prediction['existence']
        for k, rle in enumerate(prediction['rles']):
            mask_file = f'masks/{name}_{k}.png'
            write_image(255 * coco_mask.decode(rle),
                        osp.join(self.out_dir, mask_file))
            record['answers'].append(dict(
                expression=prediction['expressions'][k],
                score=float(prediction['scores'][k]),
                exists=bool(prediction['exists'][k]),
                existence=None if existence is None else float(existence[k]),
                box=prediction['boxes'][k].tolist(), rle=rle,
                mask_file=mask_file))
            if 'parts' in prediction:
                record['answers'][k]['parts'] = prediction['parts'][k]
        write_image(overlay[..., ::-1],
                    osp.join(self.out_dir, record['overlay_file']))
        self.records.append(record)

    def close(self) -> None:
        """Write ``predictions.json``, a list with one entry per image."""
        dump([*sum(self._earlier.values(), []), *self.records], self.path)

    def __enter__(self) -> 'PredictionWriter':
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _identity(record: dict) -> str:
    """Identifies the image; an array has only a name."""
    path = record['img_path']
    return osp.abspath(path) if path else record['overlay_file']


def _stem(path: str) -> str:
    return osp.splitext(osp.basename(path))[0]


def _files(record: dict) -> list[str]:
    """The overlay and the masks; no record can name files elsewhere."""
    return [f'overlays/{osp.basename(record["overlay_file"])}'] + [
        f'masks/{osp.basename(answer["mask_file"])}'
        for answer in record['answers']]
