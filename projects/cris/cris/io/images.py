# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Image files: size from the header, pixels, limits.

Functions refuse with a FileError what is no image, is broken or is an
animation ('bad-image'), and what would fill the memory or could not be warped
('image-too-large'). ``where`` is the name of the image in messages.
"""
import warnings
from functools import cache
from io import BytesIO
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from .files import FileError, check_file

#: Images and masks with more pixels are refused before they are decoded.
MAX_PIXELS = 100_000_000
#: Images with a longer side are refused: OpenCV 4 cannot warp them.
MAX_SIDE = 32_766
_EXIF_ORIENTATION = 0x0112
# Pillow reads more formats. For PostScript it starts Ghostscript.
_FORMATS = ('JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP', 'GIF', 'PPM', 'JPEG2000')
_CAN_BE_ANIMATED = ('GIF', 'PNG', 'WEBP')  # phones put two views into a JPEG


def check_pixels(height: int, width: int, where: str) -> None:
    """Refuse more than ``MAX_PIXELS`` pixels or ``MAX_SIDE`` on a side."""
    found = f'{where} has {height} x {width}'
    if height * width > MAX_PIXELS:
        raise _too_large(f'{found} = {height * width} pixels, more than the '
                         f'limit of {MAX_PIXELS}')
    if max(height, width) > MAX_SIDE:
        raise _too_large(f'{found} pixels, a side of more than the limit of '
                         f'{MAX_SIDE}')


def open_image(content: bytes | BinaryIO, where: str) -> Image.Image:
    """Read the header of a file, or of its content, without decoding it."""
    file = BytesIO(content) if isinstance(content, bytes) else content
    try:
        with warnings.catch_warnings():  # check_pixels has its own limit
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            image = Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(f'{where} has more pixels than the limit of '
                         f'{MAX_PIXELS}') from error
    except Exception as error:  # Pillow raises anything for a broken header
        raise _undecodable(where, file.seek(0, 2)) from error
    check_pixels(image.height, image.width, where)
    return image


def image_size(path: str) -> tuple[int, int]:
    """Height and width of an image file as it is shown, from its header."""
    check_file(path)
    with open(path, 'rb') as file:
        start = file.read(2)
        length = file.seek(0, 2)
        file.seek(max(0, length - 64))
        if start == b'\xff\xd8' and b'\xff\xd9' not in file.read():
            file.seek(0)
            if _is_truncated_jpeg(file.read()):
                raise _undecodable(path, length, 'the JPEG ends too early')
        file.seek(0)
        return shown_size(open_image(file, path))


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an opened image as :func:`decode_image` turns it."""
    # Without EXIF in its header, Pillow would decode a whole PNG for it.
    turned = 'exif' in image.info and _is_turned(image.format) and (
        image.getexif().get(_EXIF_ORIENTATION, 1) >= 5)
    return image.size if turned else image.size[::-1]


@cache
def _is_turned(format: str) -> bool:
    """Whether this OpenCV applies the EXIF orientation of such files."""
    if format not in ('PNG', 'WEBP'):  # these two depend on the version
        return format in ('JPEG', 'MPO')
    exif, file = Image.Exif(), BytesIO()
    exif[_EXIF_ORIENTATION] = 6
    Image.new('RGB', (16, 8)).save(file, format, exif=exif)
    return _decode(file.getvalue()).shape[0] == 16


def _is_truncated_jpeg(content: bytes) -> bool:
    """Whether a JPEG lacks its end; OpenCV would fill it up with grey."""
    if content[:2] != b'\xff\xd8' or b'\xff\xd9' in content[-64:]:
        return False
    try:  # no end marker: a strict decoder decides
        open_image(content, 'JPEG').load()
    except Exception:  # Pillow raises anything for a broken file
        return True
    return False


def decode_image(content: bytes, where: str) -> np.ndarray:
    """Decode the content of an image file, as training and evaluation do.

    The EXIF orientation is applied, 16 bits become 8, and transparency is
    ignored.

    Returns:
        np.ndarray: BGR, uint8 ``(h, w, 3)``.
    """
    image = None
    if content and not _is_truncated_jpeg(content):
        header = open_image(content, where)
        if _is_animation(header):
            raise FileError(
                f'{where} is an animation ({header.format}): save the frame '
                'to use as PNG or JPEG', 'bad-image')
        image = _decode(content)
    if image is None:
        raise _undecodable(where, len(content))
    return image


def _decode(content: bytes) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def _is_animation(header: Image.Image) -> bool:
    try:
        return header.format in _CAN_BE_ANIMATED and header.is_animated
    except Exception:  # Pillow raises any type for a broken frame
        return False


def _too_large(found: str) -> FileError:
    return FileError(f'{found}; make it smaller or cut it into tiles',
                     'image-too-large')


def _undecodable(where: str, length: int,
                 reason: str = 'it is not an image, or broken') -> FileError:
    return FileError(
        f'{where} cannot be decoded: {reason} ({length} bytes). Get the file '
        'again, save it as PNG or JPEG, or leave it out.', 'bad-image')
