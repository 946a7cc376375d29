# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The forms that a mask has in annotation files.

A *segmentation* is a list of polygons ``[[x, y, ...], ...]``, an RLE
``dict(size, counts)``, compressed or not, a ``dict(mask_file=PATH)``, or a
list of any of these, whose union is meant; ``None`` says that the expression
has no target (gRefCOCO).
"""
import reprlib
from typing import Union

import numpy as np
from pycocotools import mask as coco_mask

from cris.io.files import read_bytes
from cris.io.images import open_image

_MAX_REACH = 10  # of a polygon, in sizes of the image
_MAX_POINTS = 20_000_000  # of all its edges, of which pycocotools makes lists
Segmentation = Union[None, list[list[float] | dict], dict]


def read_mask(path: str, height: int, width: int) -> np.ndarray:
    """A mask file -> uint8 ``(height, width)`` of 0 and 1.

    Every pixel that is not 0 belongs to the mask (of a palette image: whose
    index is not 0; of a colour image: with any channel that is not 0, without
    the alpha channel).

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no image, a lossy one, broken, or of another
            size.
    """
    image = open_image(read_bytes(path), f'the mask {path}')
    if image.format in ('JPEG', 'MPO'):
        raise ValueError(f'the mask {path} is a JPEG, which blurs its edges; '
                         'write it as PNG')
    if (image.height, image.width) != (height, width):
        raise ValueError(
            f'the mask {path} is of size {[image.height, image.width]}, the '
            f'image of {[height, width]} (height, width)')
    if image.mode in ('LA', 'RGBA', 'PA'):
        bands = image.split()[:-1]
        image = bands[0] if len(bands) == 1 else None
    try:
        values = np.asarray(image) if image else np.stack(
            [np.asarray(band) for band in bands], -1)
    except Exception as error:  # Pillow raises whatever comes
        raise ValueError(f'the mask {path} cannot be decoded: {error}. Get '
                         'the file again.') from error
    return (values.any(-1) if values.ndim == 3 else values != 0).astype(
        np.uint8)


def encode_mask(segmentation: Segmentation, height: int, width: int) -> dict:
    """A segmentation -> one compressed RLE, the union of its parts.

    Args:
        segmentation (list | dict): See the top of this file; not None.
        height (int): Height of the image, in pixels.
        width (int): Width of the image, in pixels.

    Returns:
        dict: Compressed RLE.

    Raises:
        FileNotFoundError: If a mask file is missing.
        ValueError: If it is none of these, or of another size.
    """
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    if not parts:
        raise ValueError('the segmentation is empty')
    rles = [_encode_part(part, height, width) for part in parts]
    return coco_mask.merge(rles)


def decode_mask(segmentation: Segmentation, height: int,
                width: int) -> np.ndarray:
    """A segmentation -> uint8 ``(height, width)`` of 0 and 1.

    Takes and raises what :func:`encode_mask` does, without the detour over
    RLE for mask files.
    """
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    files = [p for p in parts if isinstance(p, dict) and 'mask_file' in p]
    if not files or len(files) < len(parts):
        return coco_mask.decode(encode_mask(segmentation, height, width))
    masks = [read_mask(part['mask_file'], height, width) for part in files]
    return np.maximum.reduce(masks)


def mask_area(segmentation: Segmentation, height: int, width: int) -> int:
    """Number of pixels of a segmentation; takes what encode_mask does."""
    return int(coco_mask.area(encode_mask(segmentation, height, width)))


def is_outside(segmentation: Segmentation, height: int, width: int,
               margin: float = 1) -> bool:
    """Whether a point of a polygon is outside the image.

    Args:
        segmentation (list | dict): See the top of this file.
        height (int): Height of the image, in pixels.
        width (int): Width of the image, in pixels.
        margin (float): Pixels by which it has to be; annotators' points often
            lie on the very edge.
    """
    parts = segmentation if isinstance(segmentation, list) else []
    points = [np.reshape(p, (-1, 2)) for p in parts if isinstance(p, list)]
    if not points:
        return False
    points = np.concatenate(points)
    return bool((points < -margin).any()
                or (points > (width + margin, height + margin)).any())


def bounding_box(rle: dict) -> list[float]:
    """COCO's box ``[x, y, width, height]`` of a compressed RLE."""
    return coco_mask.toBbox(rle).tolist()


def _encode_part(part: list | dict, height: int, width: int) -> dict:
    if isinstance(part, dict) and 'mask_file' in part:
        mask = read_mask(part['mask_file'], height, width)
        return coco_mask.encode(np.asfortranarray(mask))
    if isinstance(part, dict):
        size = list(part.get('size', ()))
        if size != [height, width]:
            raise ValueError(f'the RLE is of size {size}, the image of '
                             f'{[height, width]} (height, width)')
        if isinstance(part.get('counts'), list):
            if min(part['counts'], default=0) < 0:
                raise ValueError('the RLE has a negative run')
            if sum(part['counts']) != height * width:
                raise ValueError(
                    f'the RLE counts {sum(part["counts"])} pixels, the image '
                    f'has {height * width}')
            return coco_mask.frPyObjects(part, height, width)
        if isinstance(part.get('counts'), (str, bytes)):
            _check_compressed(part['counts'], height * width)
            return part
    elif isinstance(part, list):
        # Four numbers would be read as a box by pycocotools.
        if len(part) < 6 or len(part) % 2:
            raise ValueError(f'a polygon has {len(part)} numbers; it needs '
                             'three points or more, x and y of each')
        # pycocotools walks along every edge, however long it is.
        points = np.asarray(part, np.float64)
        farthest = np.abs(points).max()
        if not farthest <= _MAX_REACH * max(height, width):
            raise ValueError(
                f'a polygon has the coordinate {farthest}, far outside the '
                f'image of {[height, width]} (height, width)')
        # Five points a pixel; an edge is at most twice the farthest long.
        if 5 * len(part) * farthest > _MAX_POINTS and (
                5 * _edge_lengths(points).sum() > _MAX_POINTS):
            raise ValueError(
                f'a polygon of {len(part) // 2} points has edges of '
                f'{_edge_lengths(points).sum():.0f} pixels in all, more than '
                f'the limit of {_MAX_POINTS // 5}')
        return coco_mask.frPyObjects([part], height, width)[0]
    raise ValueError(f'neither polygon nor RLE: {reprlib.repr(part)}')


def _edge_lengths(points: np.ndarray) -> np.ndarray:
    """Steps along each edge of a closed polygon ``(2 N, )``, in pixels."""
    points = points.reshape(-1, 2)
    return np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)


def _check_compressed(counts: str | bytes, pixels: int) -> None:
    """Refuse runs that do not fill the image; pycocotools would go on.

    COCO's compressed RLE: five bits a character from the lowest, the sixth
    says that more follow; from the third run on, differences to the run two
    before.
    """
    if isinstance(counts, str):
        counts = counts.encode('ascii', 'replace')
    runs, value, shift = [], 0, 0
    for character in counts:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError('the RLE has characters that do not belong there')
        value |= (bits & 31) << shift
        shift += 5
        if shift > 35:
            raise ValueError('the RLE has a run of more than 2**35 pixels')
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift or min(runs, default=-1) < 0 or sum(runs) != pixels:
        raise ValueError(f'the RLE counts {sum(runs)} pixels, the image has '
                         f'{pixels}')


def to_mask_files(paths: str | list[str]) -> Segmentation | None:
    """Paths of mask files -> a segmentation."""
    if isinstance(paths, str):
        return dict(mask_file=paths)
    return [dict(mask_file=path) for path in paths]
