# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Drawings of images, expressions and masks.

All images are RGB, uint8 (h, w, 3). K is the number of expressions.
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
from pycocotools import mask as coco_mask

from cris.io.images import open_image

PREDICTION = (0, 230, 235)
GROUND_TRUTH = (255, 220, 0)
_FONT_SIZE, _LINE = 15, 19
_MAX_EXPRESSIONS, _MAX_LETTERS = 100, 120  # on a sheet of predictions


def draw_masks(image: np.ndarray, gt: np.ndarray | None = None,
               pred: np.ndarray | None = None) -> np.ndarray:
    """Tint and outline the prediction, outline the ground truth.

    Args:
        image (np.ndarray): The image, which is not changed.
        gt (np.ndarray, optional): Ground truth, bool ``(h, w)``.
        pred (np.ndarray, optional): Prediction, bool ``(h, w)``.
    """
    drawn = image.copy()
    # A large image is shown scaled down: its lines must be thicker.
    width = max(1, round(max(image.shape[:2]) / 300))
    if pred is not None:
        # A light tint, because expressions mention colours.
        drawn[pred] = (0.65 * drawn[pred] +
                       0.35 * np.array(PREDICTION)).astype(np.uint8)
        _outline(drawn, pred, PREDICTION, width)
    if gt is not None:
        # A dark edge keeps the outline visible on yellow objects.
        _outline(drawn, gt, (40, 40, 40), width + 2)
        _outline(drawn, gt, GROUND_TRUTH, width)
    return drawn


def _outline(image: np.ndarray, mask: np.ndarray, color: tuple,
             width: int) -> None:
    outlines, _ = cv2.findContours(
        mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, outlines, -1, color, width)


def draw_sheet(tiles: Sequence[tuple[np.ndarray, str]], width: int = 300,
               columns: int = 4) -> np.ndarray:
    """Images with captions below them, row by row, on white.

    Args:
        tiles (Sequence[tuple[np.ndarray, str]]): Images of any size, and their
            captions, in Latin, Greek or Cyrillic letters.
        width (int): Width of a tile in pixels. Defaults to 300.
        columns (int): Maximum number of tiles in a row. Defaults to 4.
    """
    columns = min(columns, len(tiles))
    drawn = [_draw_tile(*tile, width) for tile in tiles]
    rows = []
    for start in range(0, len(drawn), columns):
        group = drawn[start:start + columns]
        row = np.full((max(map(len, group)), width * columns, 3), 255,
                      np.uint8)
        for i, tile in enumerate(group):
            row[:len(tile), i * width:(i + 1) * width] = tile
        rows.append(row)
    return np.concatenate(rows)


def _draw_tile(image: np.ndarray, caption: str, width: int) -> np.ndarray:
    margin = 4
    inner = width - 2 * margin
    # An image that is much taller than wide would fill the sheet.
    height = min(
        max(1, round(image.shape[0] * inner / image.shape[1])), 2 * inner)
    lines = textwrap.wrap(caption, inner // 9) or ['']
    tile = Image.new('RGB', (width, height + 2 * margin + _LINE * len(lines)),
                     'white')
    tile.paste(
        Image.fromarray(image).resize((inner, height)), (margin, margin))
    ImageDraw.Draw(tile).multiline_text(
        (margin, height + margin), '\n'.join(lines), fill='black',
        font=_font(), spacing=3)
    return np.asarray(tile)


@cache
def _font() -> ImageFont.FreeTypeFont:
    # OpenCV's fonts have ASCII letters only.
    return ImageFont.truetype(
        osp.join(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans.ttf'),
        _FONT_SIZE)


def draw_expressions(image: np.ndarray, expressions: Sequence[str],
                     gt: np.ndarray | None = None,
                     pred: np.ndarray | None = None) -> np.ndarray:
    """A sheet with the image and a tile for each expression.

    Predictions are cyan, ground truths are outlined in yellow; with both,
    the caption gives their IoU.

    Args:
        image (np.ndarray): The image.
        expressions (Sequence[str]): K expressions.
        gt (np.ndarray, optional): Ground truths, bool ``(K, h, w)``.
        pred (np.ndarray, optional): Predictions, bool ``(K, h, w)``.
    """
    legend = 'image'
    if pred is not None:
        legend += ', cyan: prediction'
    if gt is not None:
        legend += ', yellow: ground truth'
    tiles = [(image, legend)]
    for k, expression in enumerate(expressions):
        masks = (None if m is None else m[k] for m in (gt, pred))
        tiles.append(expression_tile(image, expression, *masks))
    return draw_sheet(tiles)


def expression_tile(image: np.ndarray, expression: str,
                    gt: np.ndarray | None = None,
                    pred: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """A tile of :func:`draw_sheet`; the masks are as of :func:`draw_masks`."""
    caption = f'"{expression}"'
    if gt is not None and pred is not None:
        iou = (gt & pred).sum() / max((gt | pred).sum(), 1)
        caption += f'  IoU {100 * iou:.1f}'
    return draw_masks(image, gt, pred), caption


def draw_prediction(image: np.ndarray, prediction: dict) -> np.ndarray:
    """A sheet with a tile for each expression of a prediction.

    The captions give the scores. Several expressions come after the image, a
    hundred at most.

    Args:
        image (np.ndarray): The image, or a smaller copy.
        prediction (dict): Of :func:`cris.apis.predictions.make_prediction`.
    """
    expressions = prediction['expressions'][:_MAX_EXPRESSIONS]
    one = len(expressions) == 1
    width = min(max(image.shape[1], 320), 1000 if one else 400)
    # Drawn at the size shown, or large images would take long.
    image = scale_image(image, min(1, width / image.shape[1]))
    tiles = [] if one else [(image, 'image')]
    for k, expression in enumerate(expressions):
        caption = (f'"{cut(expression, _MAX_LETTERS)}"',
                   *verdict(prediction, k))
        tiles.append((draw_answer(image, prediction, k),
                      '  '.join(filter(None, caption))))
    return draw_sheet(tiles, width)


def draw_answer(image: np.ndarray, prediction: dict, k: int) -> np.ndarray:
    """The k-th mask of a prediction on the image or a smaller copy, with the
    boxes of its parts, if they are there.
    """
    rle = prediction['rles'][k]
    drawn = draw_masks(
        image, pred=fit_mask(coco_mask.decode(rle), image))
    scale = np.divide(image.shape[1::-1], rle['size'][::-1])
    for part in prediction['parts'][k] if 'parts' in prediction else ():
        corners = np.reshape(part['box'], (2, 2)) * scale - [[0], [1]]
        cv2.rectangle(drawn, *corners.round().astype(int).tolist(),
                      PREDICTION, max(1, round(max(image.shape) / 600)))
    return drawn


def verdict(prediction: dict, k: int) -> tuple[str, str]:
    """The k-th answer of a prediction in words: its score and a remark.

    Either may be empty: there is no score if the model abstains, and a remark
    only if nothing was found or parts were asked for.
    """
    score = f'{prediction["scores"][k]:.2f}'
    if prediction['exists'][k]:
        count = len(prediction['parts'][k]) if 'parts' in prediction else 0
        return score, f'{count} part{"s" * (count > 1)}' if count else ''
    existence = prediction['existence']
    if existence is None or existence[k] >= prediction['existence_threshold']:
        return score, 'nothing found'
    return '', f'nothing found ({score} sure)'


def scale_image(image: np.ndarray, scale: float) -> np.ndarray:
    """The image with its height and width times a scale."""
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def fit_mask(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The mask at the size of an image, bool."""
    return cv2.resize(mask.astype(np.uint8), image.shape[1::-1],
                      interpolation=cv2.INTER_NEAREST) > 0


def cut(text: str, length: int) -> str:
    """At most ``length`` letters of a text, the last one an ellipsis."""
    return text if len(text) <= length else f'{text[:length - 1]}…'


def thumbnail(content: bytes, path: str, size: tuple[int, int],
              gt: np.ndarray | None = None,
              pred: np.ndarray | None = None) -> str:
    """An image of 260 x 390 pixels at most, with masks, as a JPEG's URI.

    Args:
        content (bytes): Of an image file.
        path (str): Its name in messages.
        size (tuple[int, int]): Height and width that the image must have.
        gt (np.ndarray, optional): Ground truth, ``(h, w)``, nonzero inside.
        pred (np.ndarray, optional): Prediction, likewise.

    Raises:
        ValueError: If it is not an image, is too large, or has another size.
    """
    open_image(content, path)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if image is None or image.shape[:2] != tuple(size):
        raise ValueError(f'{path} cannot be shown: the file is broken, or its '
                         f'size is not {size[0]} x {size[1]} pixels')
    image = scale_image(image[..., ::-1], min(260 / size[1], 390 / size[0]))
    gt, pred = (None if mask is None else fit_mask(mask > 0, image)
                for mask in (gt, pred))
    drawn = draw_masks(image, gt, pred)
    jpeg = cv2.imencode('.jpg', drawn[..., ::-1],
                        [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return 'data:image/jpeg;base64,' + base64.b64encode(jpeg).decode()
