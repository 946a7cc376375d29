# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Pictures of expressions and masks.

Shapes: an image of h x w pixels, K expressions.
"""
import base64
import os.path as osp
import textwrap
from collections.abc import Sequence
from functools import cache

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cris.io.files import read_bytes
from cris.io.images import open_image

PREDICTION = (0, 230, 235)
GROUND_TRUTH = (255, 220, 0)
_FONT_SIZE = 15
_LINE = 19


@cache
def _font() -> ImageFont.FreeTypeFont:
    # OpenCV's fonts have no letters beyond ASCII.
    return ImageFont.truetype(
        osp.join(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans.ttf'),
        _FONT_SIZE)


def draw_masks(image: np.ndarray,
               gt: np.ndarray | None = None,
               pred: np.ndarray | None = None) -> np.ndarray:
    """Tint and outline the prediction, outline the ground truth.

    Args:
        image (np.ndarray): RGB, uint8 ``(h, w, 3)``.
        gt (np.ndarray, optional): bool ``(h, w)``.
        pred (np.ndarray, optional): bool ``(h, w)``.

    Returns:
        np.ndarray: RGB, uint8 ``(h, w, 3)``; the input is not changed.
    """
    drawn = image.copy()
    # Of a large picture a thumbnail is looked at.
    width = max(1, round(max(image.shape[:2]) / 300))
    if pred is not None:
        # Little, for expressions speak of colours.
        drawn[pred] = (0.65 * drawn[pred] +
                       0.35 * np.array(PREDICTION)).astype(np.uint8)
        _outline(drawn, pred, PREDICTION, width)
    if gt is not None:
        # On a dark edge, for things may be yellow.
        _outline(drawn, gt, (40, 40, 40), width + 2)
        _outline(drawn, gt, GROUND_TRUTH, width)
    return drawn


def _outline(image: np.ndarray, mask: np.ndarray, color: tuple,
             width: int) -> None:
    outlines, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, outlines, -1, color, width)


def draw_expressions(image: np.ndarray,
                     expressions: Sequence[str],
                     gt: np.ndarray | None = None,
                     pred: np.ndarray | None = None,
                     tile_width: int = 300,
                     columns: int = 4) -> np.ndarray:
    """A sheet with the image and a tile for every expression.

    The prediction is cyan, the ground truth outlined in yellow; with both,
    the caption gives their IoU.

    Args:
        image (np.ndarray): RGB, uint8 ``(h, w, 3)``.
        expressions (Sequence[str]): K of them.
        gt (np.ndarray, optional): bool ``(K, h, w)``.
        pred (np.ndarray, optional): bool ``(K, h, w)``.
        tile_width (int): Width of a tile, in pixels. Defaults to 300.
        columns (int): Tiles in a row at most. Defaults to 4.

    Returns:
        np.ndarray: RGB, uint8.
    """
    legend = ['image']
    if pred is not None:
        legend.append('cyan: prediction')
    if gt is not None:
        legend.append('yellow: ground truth')
    tiles = [draw_tile(image, ', '.join(legend), tile_width)]
    for k, expression in enumerate(expressions):
        gt_k = None if gt is None else gt[k]
        pred_k = None if pred is None else pred[k]
        tiles.append(
            draw_expression_tile(image, expression, gt_k, pred_k, tile_width))
    return join_tiles(tiles, columns)


def draw_expression_tile(image: np.ndarray,
                         expression: str,
                         gt: np.ndarray | None = None,
                         pred: np.ndarray | None = None,
                         width: int = 300) -> np.ndarray:
    """One tile: masks on the image, the expression and the IoU below.

    Args:
        image (np.ndarray): RGB, uint8 ``(h, w, 3)``.
        expression (str): What was asked.
        gt (np.ndarray, optional): bool ``(h, w)``.
        pred (np.ndarray, optional): bool ``(h, w)``.
        width (int): Of the tile, in pixels. Defaults to 300.

    Returns:
        np.ndarray: RGB, uint8.
    """
    caption = f'"{expression}"'
    if gt is not None and pred is not None:
        iou = (gt & pred).sum() / max((gt | pred).sum(), 1)
        caption += f'  IoU {100 * iou:.1f}'
    return draw_tile(draw_masks(image, gt, pred), caption, width)


def cut(text: str, length: int) -> str:
    """At most ``length`` characters of a text, the last one an ellipsis."""
    return text if len(text) <= length else f'{text[:length - 1]}…'


def join_tiles(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Tiles of one width, row by row, on white.

    Args:
        tiles (Sequence[np.ndarray]): RGB, uint8, of any height.
        columns (int): Tiles in a row at most.

    Returns:
        np.ndarray: RGB, uint8.
    """
    columns = min(columns, len(tiles))
    width = tiles[0].shape[1]
    rows = []
    for start in range(0, len(tiles), columns):
        group = tiles[start:start + columns]
        row = np.full((max(t.shape[0] for t in group), width * columns, 3),
                      255, np.uint8)
        for i, tile in enumerate(group):
            row[:tile.shape[0], i * width:(i + 1) * width] = tile
        rows.append(row)
    return np.concatenate(rows)


def draw_tile(image: np.ndarray, caption: str, width: int) -> np.ndarray:
    """The image scaled to a width, with a margin and its caption below.

    Args:
        image (np.ndarray): RGB, uint8 ``(h, w, 3)``.
        caption (str): Wrapped; Latin, Greek and Cyrillic letters.
        width (int): Of the tile, in pixels.

    Returns:
        np.ndarray: RGB, uint8.
    """
    margin = 4
    inner = width - 2 * margin
    height = max(1, round(image.shape[0] * inner / image.shape[1]))
    # A picture that is much taller than wide would fill the sheet.
    height = min(height, 2 * inner)
    lines = textwrap.wrap(caption, inner // 9) or ['']
    tile = Image.new('RGB', (width, height + 2 * margin + _LINE * len(lines)),
                     'white')
    tile.paste(
        Image.fromarray(image).resize((inner, height)), (margin, margin))
    ImageDraw.Draw(tile).multiline_text((margin, height + margin),
                                        '\n'.join(lines),
                                        fill='black',
                                        font=_font(),
                                        spacing=3)
    return np.asarray(tile)


_TALLEST = 1.5  # times the width


def thumbnail(path: str,
              size: tuple[int, int],
              gt: np.ndarray | None = None,
              pred: np.ndarray | None = None,
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
