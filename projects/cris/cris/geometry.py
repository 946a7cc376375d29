# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Letterbox: the model's input, which keeps the image's aspect ratio.

The matrix, the interpolation and the inverse are those of the official code,
down to the rounding, so that its scores can be reproduced.
"""
from collections.abc import Sequence

import cv2
import numpy as np

Size = int | tuple[int, int]


def _height_width(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def letterbox_matrix(height: int, width: int, size: Size) -> np.ndarray:
    """Affine map from the original to the letterboxed image.

    Args:
        height (int): Height of the original, in pixels.
        width (int): Width of the original, in pixels.
        size (int | tuple[int, int]): Side of the square, or (height, width).

    Returns:
        np.ndarray: float64 ``(2, 3)``, for (x, y) coordinates.
    """
    to_height, to_width = _height_width(size)
    scale = min(to_height / height, to_width / width)
    new_height, new_width = height * scale, width * scale
    left, top = (to_width - new_width) / 2, (to_height - new_height) / 2
    return cv2.getAffineTransform(
        np.array([[0, 0], [width, 0], [0, height]], np.float32),
        np.array([[left, top], [new_width + left, top],
                  [left, new_height + top]], np.float32))


def letterbox(image: np.ndarray, size: Size,
              interpolation: int = cv2.INTER_CUBIC,
              border_value: float | Sequence[float] = 0) -> np.ndarray:
    """Fit an image into a rectangle, centred, keeping its aspect ratio.

    Args:
        image (np.ndarray): ``(h, w)`` or ``(h, w, C)``.
        size (int | tuple[int, int]): As of :func:`letterbox_matrix`.
        interpolation (int): OpenCV's. Defaults to ``cv2.INTER_CUBIC``.
        border_value (float | Sequence[float]): Fills the rest.

    Returns:
        np.ndarray: ``(height, width[, C])``, of the same dtype.
    """
    height, width = _height_width(size)
    if image.shape[:2] == (height, width):
        return image.copy()  # what OpenCV returns, too
    return cv2.warpAffine(
        image, letterbox_matrix(*image.shape[:2], size), (width, height),
        flags=interpolation, borderValue=border_value)


def unletterbox(prob: np.ndarray, height: int, width: int) -> np.ndarray:
    """Take maps of a letterboxed image back to its original size.

    Args:
        prob (np.ndarray): Probabilities, ``(H, W)`` or ``(K, H, W)``.
        height (int): Height of the original, in pixels.
        width (int): Width of the original, in pixels.

    Returns:
        np.ndarray: float32 ``(height, width)`` or ``(K, height, width)``.
        The cubic interpolation may leave [0, 1], as in the official code.
    """
    if prob.ndim == 3:
        return np.stack([unletterbox(p, height, width) for p in prob])
    to_original = cv2.invertAffineTransform(
        letterbox_matrix(height, width, prob.shape))
    return cv2.warpAffine(
        np.asarray(prob, np.float32), to_original, (width, height),
        flags=cv2.INTER_CUBIC, borderValue=0)
