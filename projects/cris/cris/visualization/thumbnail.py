# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Small pictures for pages that need no other file."""
import base64
from typing import Optional, Tuple

import cv2
import numpy as np

from cris.datasets.files import open_image, read_bytes

from .draw import draw_masks

_TALLEST = 1.5  # times the width


def thumbnail(path: str,
              size: Tuple[int, int],
              gt: Optional[np.ndarray] = None,
              pred: Optional[np.ndarray] = None,
              width: int = 260) -> str:
    """An image file with masks, as the URI of a JPEG.

    Args:
        path (str): Image file, or value of an official LMDB.
        size (tuple[int, int]): Height and width that it must have.
        gt (np.ndarray, optional): Ground truth, ``(h, w)``, not 0 where it is.
        pred (np.ndarray, optional): Prediction, likewise.
        width (int): Of the thumbnail, in pixels, at most. Defaults to 260.

    Returns:
        str: ``data:image/jpeg;base64,...``

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is no image, too large or of another size.
    """
    content = read_bytes(path)
    open_image(content, path)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if image is None or image.shape[:2] != tuple(size):
        raise ValueError(f'{path} cannot be shown: it is broken or not of '
                         f'{size[0]} x {size[1]} pixels')
    scale = min(width / size[1], _TALLEST * width / size[0])
    small = tuple(max(1, round(scale * side)) for side in size[::-1])
    image = cv2.resize(image[..., ::-1], small, interpolation=cv2.INTER_AREA)
    gt, pred = (
        mask if mask is None else cv2.resize(
            (mask > 0).astype(np.uint8), small) > 0 for mask in (gt, pred))
    drawn = draw_masks(image, gt, pred)
    jpeg = cv2.imencode('.jpg', drawn[..., ::-1],
                        [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return 'data:image/jpeg;base64,' + base64.b64encode(jpeg).decode()
