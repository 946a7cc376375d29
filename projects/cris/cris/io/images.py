# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Image files: sizes from their headers, pixels decoded, limits kept."""


import warnings
from functools import cache
from io import BytesIO
from typing import BinaryIO

import cv2
import mmcv
import numpy as np
from PIL import Image

from .files import check_file

#: Pictures and masks with more pixels are refused before they are decoded.
MAX_PIXELS = 100_000_000
#: Nor pictures with a longer side: OpenCV 4 cannot warp them.
MAX_SIDE = 32_766
_EXIF_ORIENTATION = 0x0112
# Pillow knows more, among them PostScript, for which it starts Ghostscript.
_FORMATS = ('JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP', 'GIF', 'PPM', 'JPEG2000')


def check_pixels(height: int, width: int, where: str) -> None:
    """Refuse what would fill the memory or could not be warped."""
    if height * width > MAX_PIXELS:
        raise ValueError(
            f'{where} has {height} x {width} = {height * width} pixels, more '
            f'than the limit of {MAX_PIXELS}; make it smaller or cut it into '
            'tiles')
    if max(height, width) > MAX_SIDE:
        raise ValueError(
            f'{where} has {height} x {width} pixels, a side of more than the '
            f'limit of {MAX_SIDE}; make it smaller or cut it into tiles')


def open_image(content: bytes | BinaryIO, where: str) -> Image.Image:
    """Read the header of an image; nothing is decoded yet.

    Args:
        content (bytes | BinaryIO): Of the file, or the open file.
        where (str): Its name in messages.

    Returns:
        PIL.Image.Image: Not loaded.

    Raises:
        ValueError: If it is no image or has too many pixels.
    """
    file = BytesIO(content) if isinstance(content, bytes) else content
    try:
        with warnings.catch_warnings():  # our limit is the one that counts
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            image = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(f'{where} has more pixels than the limit of '
                         f'{MAX_PIXELS}; make it smaller or cut it into '
                         'tiles') from error
    except Exception as error:  # Pillow raises whatever a header provokes
        length = file.seek(0, 2)
        raise ValueError(f'{where} cannot be decoded: it is no image, or '
                         f'broken ({length} bytes). Get the file again, or '
                         'leave it out.') from error
    check_pixels(image.height, image.width, where)
    return image


def image_size(path: str) -> tuple[int, int]:
    """Height and width of an image file as it is shown, from its header.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is no image, a JPEG without its end, or has too
            many pixels.
    """
    check_file(path)
    with open(path, 'rb') as file:
        start = file.read(2)
        file.seek(0, 2)
        length = file.tell()
        file.seek(max(0, length - 64))
        if start == b'\xff\xd8' and b'\xff\xd9' not in file.read():
            file.seek(0)
            if is_truncated_jpeg(file.read()):
                raise ValueError(
                    f'{path} cannot be decoded: the JPEG ends too early '
                    f'({length} bytes). Get the file again, or leave it out.')
        file.seek(0)
        return _shown_size(open_image(file, path))


def _shown_size(image: Image.Image) -> tuple[int, int]:
    # Without EXIF data Pillow would decode a PNG to look for them in its end.
    turned = 'exif' in image.info and _is_turned(image.format) and (
        image.getexif().get(_EXIF_ORIENTATION, 1) >= 5)
    return image.size if turned else image.size[::-1]


@cache
def _is_turned(format: str) -> bool:
    """Whether OpenCV turns such files as their EXIF data say."""
    if format not in ('PNG', 'WEBP'):  # of which it depends on the version
        return format in ('JPEG', 'MPO')
    exif, file = Image.Exif(), BytesIO()
    exif[_EXIF_ORIENTATION] = 6
    Image.new('RGB', (16, 8)).save(file, format, exif=exif)
    decoded = cv2.imdecode(
        np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    return decoded.shape[0] == 16


def is_truncated_jpeg(content: bytes) -> bool:
    """Whether a JPEG lacks its end; OpenCV would show it partly grey."""
    if content[:2] != b'\xff\xd8' or b'\xff\xd9' in content[-64:]:
        return False
    # No end marker near the end: let a strict decoder judge.
    try:
        open_image(content, 'JPEG').load()
    except Exception:  # whatever Pillow raises, it is not a whole picture
        return True
    return False


def decode_image(content: bytes,
                 where: str,
                 backend: str | None = None) -> np.ndarray:
    """Decode an image file as training and evaluation do.

    It is turned as its EXIF orientation says, as viewers show it; sixteen
    bits become eight, and transparency is ignored. OpenCV returns a truncated
    JPEG with its lower part grey; here it is refused.

    Args:
        content (bytes): Of the file.
        where (str): Its name in messages.
        backend (str, optional): mmcv's, one for this process by default.

    Returns:
        np.ndarray: BGR, uint8 ``(h, w, 3)``.

    Raises:
        ValueError: If it is no image, broken, an animation, or of more than
            ``cris.datasets.files.MAX_PIXELS`` pixels.
    """
    img = None
    if content and not is_truncated_jpeg(content):
        header = open_image(content, where)  # refuses what is too large
        if _is_animation(header):
            raise ValueError(f'{where} is an animation ({header.format}): '
                             'save the frame that is meant as PNG or JPEG')
        img = mmcv.imfrombytes(content, backend=backend)
    if img is None:
        raise ValueError(
            f'{where} cannot be decoded: it is no image, or broken '
            f'({len(content)} bytes). Get the file again, save it as PNG or '
            'JPEG, or leave it out.')
    return img


def _is_animation(header: Image.Image) -> bool:
    # Phones put a second view into a JPEG; that is none.
    if header.format not in ('GIF', 'PNG', 'WEBP'):
        return False
    try:
        return getattr(header, 'is_animated', False)
    except Exception:  # Pillow raises whatever a second frame provokes
        return False
