# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Masks as annotation files have them.

A *segmentation* is a list of polygons ``[[x, y, ...], ...]``, an RLE
``dict(size, counts)``, compressed or not, a ``dict(mask_file=PATH)``, or a
list of any of these, meaning their union. ``None`` means that the expression
has no target (gRefCOCO).
"""
import reprlib
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from cris.io.files import FileError, read_bytes
from cris.io.images import open_image

_MAX_REACH = 10  # largest coordinate, in multiples of the image side
_MAX_EDGES = 4_000_000  # pixels; pycocotools makes five points per pixel
Segmentation = list[list[float] | dict] | dict | None


class MaskError(FileError):
    """A segmentation that cannot be used; ``kind`` may be 'mask-size'."""

    def __init__(self, message: str, kind: str = 'bad-mask'):
        super().__init__(message, kind)


def read_mask(path: str, height: int, width: int) -> np.ndarray:
    """Read a mask file.

    Every pixel that is not 0 belongs to the mask: in a palette image, whose
    index is not 0; in a colour image, where any channel but alpha is not 0.

    Args:
        path (str): The file.
        height (int), width (int): Size of the image, in pixels.

    Returns:
        np.ndarray: uint8 ``(height, width)`` of 0 and 1.

    Raises:
        FileNotFoundError: If there is no such file.
        FileError: If it is not an image, broken, a JPEG, or of another size.
    """
    where = f'the mask {path}'
    image = open_image(read_bytes(path), where)
    if image.format in ('JPEG', 'MPO'):
        raise MaskError(f'{where} is a JPEG, which blurs its edges; write it '
                        'as PNG')
    _check_size(where, [image.height, image.width], [height, width])
    try:
        values = np.asarray(image)
    except Exception as error:  # Pillow raises any type for a broken file
        raise MaskError(f'{where} cannot be decoded: {error}. Get the file '
                        'again.') from error
    if image.mode in ('LA', 'RGBA', 'PA'):
        values = values[..., :-1]
    mask = values.any(-1) if values.ndim == 3 else values != 0
    return mask.astype(np.uint8)


def encode_mask(segmentation: Segmentation, height: int, width: int) -> dict:
    """Encode a segmentation as one compressed RLE, the union of its parts.

    Args:
        segmentation (list | dict): See the top of this file; not None.
        height (int), width (int): Size of the image, in pixels.

    Raises:
        FileNotFoundError: If a mask file is missing.
        FileError: If it is not a segmentation, or of another size.
    """
    return coco_mask.merge([
        _encode_part(part, height, width) for part in _parts(segmentation)])


def decode_mask(segmentation: Segmentation, height: int,
                width: int) -> np.ndarray:
    """Rasterise a segmentation: uint8 ``(height, width)`` of 0 and 1.

    Arguments and errors are as of :func:`encode_mask`.
    """
    files, parts = mask_files(segmentation), _parts(segmentation)
    # Mask files alone need no RLE: encoding and decoding them takes longer.
    if len(files) < len(parts):
        return coco_mask.decode(encode_mask(segmentation, height, width))
    return np.maximum.reduce([read_mask(f, height, width) for f in files])


def mask_area(segmentation: Segmentation, height: int, width: int) -> int:
    """Number of pixels; arguments and errors as of encode_mask."""
    return int(coco_mask.area(encode_mask(segmentation, height, width)))


def is_outside(segmentation: Segmentation, height: int, width: int) -> bool:
    """Whether a point of a polygon is over 1 pixel outside the image."""
    parts = segmentation if isinstance(segmentation, list) else []
    points = [_numbers(part) for part in parts if isinstance(part, list)]
    if not points:
        return False
    points = np.concatenate(points).reshape(-1, 2)
    # Annotated points often lie exactly on the edge.
    return bool((points < -1).any()
                or (points > (width + 1, height + 1)).any())


def bounding_box(rle: dict) -> list[float]:
    """COCO's box ``[x, y, width, height]`` of a compressed RLE."""
    return coco_mask.toBbox(rle).tolist()


def to_mask_files(paths: str | list[str]) -> Segmentation:
    """Segmentation of one or several mask files."""
    return dict(mask_file=paths) if isinstance(paths, str) else [
        dict(mask_file=path) for path in paths]


def mask_files(segmentation: Segmentation) -> list[str]:
    """Paths of the mask files of a segmentation."""
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    return [part['mask_file'] for part in parts
            if isinstance(part, dict) and 'mask_file' in part]


def _parts(segmentation: Segmentation) -> list:
    if segmentation == []:
        raise MaskError('the segmentation is empty')
    return segmentation if isinstance(segmentation, list) else [segmentation]


def _encode_part(part: Any, height: int, width: int) -> dict:
    if isinstance(part, dict) and 'mask_file' in part:
        mask = read_mask(part['mask_file'], height, width)
        return coco_mask.encode(np.asfortranarray(mask))
    if isinstance(part, dict):
        return _encode_rle(part, height, width)
    if isinstance(part, list):
        return _encode_polygon(part, height, width)
    raise MaskError(f'neither polygon nor RLE: {reprlib.repr(part)}')


def _encode_rle(rle: dict, height: int, width: int) -> dict:
    size, counts = rle.get('size'), rle.get('counts')
    _check_size('the RLE', list(size) if isinstance(size, tuple) else size,
                [height, width])
    if not isinstance(counts, (str, bytes, list)):
        raise MaskError(f'neither polygon nor RLE: {reprlib.repr(rle)}')
    compressed = not isinstance(counts, list)
    runs = _decompress(counts) if compressed else _numbers(counts)
    if not (runs >= 0).all():
        raise MaskError('the RLE has a negative run')
    total = sum(runs.tolist())
    if total != height * width:
        raise MaskError(f'the RLE counts {total:.0f} pixels, the image has '
                        f'{height * width}')
    rle = dict(size=[height, width], counts=counts)
    return rle if compressed else coco_mask.frPyObjects(rle, height, width)


def _encode_polygon(polygon: list, height: int, width: int) -> dict:
    # pycocotools would read four numbers as a box.
    if len(polygon) < 6 or len(polygon) % 2:
        raise MaskError(f'a polygon has {len(polygon)} numbers; it needs '
                        'three points or more, x and y of each')
    points = _numbers(polygon)
    farthest = np.abs(points).max()
    if not farthest <= _MAX_REACH * max(height, width):  # or NaN
        raise MaskError(f'a polygon has the coordinate {farthest}, far outside'
                        f' the image of {[height, width]} (height, width)')
    # A cheap upper bound; measure only if it exceeds the limit.
    if len(polygon) * farthest > _MAX_EDGES:
        corners = points.reshape(-1, 2)
        edges = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum()
        if edges > _MAX_EDGES:
            raise MaskError(f'a polygon of {len(corners)} points has edges of '
                            f'{edges:.0f} pixels in all, more than the limit '
                            f'of {_MAX_EDGES}')
    return coco_mask.frPyObjects([points.tolist()], height, width)[0]


def _check_size(what: str, found: Any, wanted: list[int]) -> None:
    if found != wanted:
        raise MaskError(
            f'{what} is {reprlib.repr(found)}, but the image is {wanted} '
            '(height, width)', 'mask-size')


def _numbers(values: list) -> np.ndarray:
    try:
        numbers = np.asarray(values, np.float64)
    except (OverflowError, TypeError, ValueError):
        numbers = None
    if numbers is None or numbers.ndim != 1:
        raise MaskError(f'{reprlib.repr(values)} is not a list of numbers')
    return numbers


def _decompress(counts: str | bytes) -> np.ndarray:
    """Runs of COCO's compressed RLE; pycocotools does not check them.

    A character has five bits, least significant first, and a continuation
    flag. From the fourth run on, they are differences to the run two before.
    """
    if isinstance(counts, str):
        counts = counts.encode('utf-8', 'surrogatepass')
    characters = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if ((characters < 0) | (characters > 63)).any():
        raise MaskError('the RLE has characters outside the RLE alphabet')
    ends = np.flatnonzero(characters & 32 == 0)
    gaps = np.diff(ends, prepend=-1, append=len(characters) - 1)
    if gaps.max() > 7:
        raise MaskError('the RLE has a run of more than 2**35 pixels')
    if gaps[-1]:
        raise MaskError('the RLE ends within a run')
    lengths = gaps[:-1]
    if not lengths.size:
        return np.zeros(0)
    starts = ends + 1 - lengths
    shifts = 5 * (np.arange(len(characters)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((characters & 31) << shifts, starts)
    runs -= (characters[ends] >> 4 & 1) << 5 * lengths  # their sign
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs.astype(np.float64)
