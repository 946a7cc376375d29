# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What an inferencer is given: pictures in many forms, and texts."""
import io
import os
import os.path as osp
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Union

import cv2
import numpy as np
from PIL import Image, ImageOps

from cris.io.files import read_bytes
from cris.io.images import check_pixels, decode_image

PictureSource = Union[str, os.PathLike, bytes, BinaryIO, np.ndarray,
                      Image.Image]
Texts = Union[str, Sequence[str], Sequence[Sequence[str]]]
#: What is taken from a folder, in upper or lower case.
SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
_CHANNELS = {1: cv2.COLOR_GRAY2BGR, 4: cv2.COLOR_BGRA2BGR}


@dataclass(frozen=True)
class Picture:
    """A decoded picture: BGR, uint8 ``(h, w, 3)``, and where it is from."""
    image: np.ndarray
    name: str
    path: str | None = None


def load_picture(source: PictureSource, name: str = 'image') -> Picture:
    """Decode a picture as training and evaluation do.

    Args:
        source (str | PathLike | bytes | BinaryIO | np.ndarray |
            PIL.Image.Image): An image file, its content, the open file, an
            array (BGR as of OpenCV, grey or BGRA, uint8) or a Pillow image.
        name (str): What to call it where it is no file.

    Returns:
        Picture: Files and Pillow images are turned as their EXIF orientation
        says; arrays are taken as they are.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture that can be used.
        TypeError: If it is something else.
    """
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if not osp.isfile(path):
            raise FileNotFoundError(f'image file {path} does not exist')
        image = decode_image(read_bytes(path), path)
        return Picture(image, osp.splitext(osp.basename(path))[0], path)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return Picture(decode_image(bytes(source), name), name)
    if isinstance(source, io.IOBase) and not isinstance(
            source, io.TextIOBase):
        return Picture(decode_image(source.read(), name), name)
    if isinstance(source, Image.Image):
        return Picture(_from_pillow(source, name), name)
    if isinstance(source, np.ndarray):
        return Picture(_from_array(source, name), name)
    raise TypeError(f'{name} is a {type(source).__name__}; wanted a path, '
                    'the bytes of a file, a uint8 array or a Pillow image')


def _from_pillow(image: Image.Image, name: str) -> np.ndarray:
    check_pixels(image.height, image.width, name)
    if image.mode.startswith(('I', 'F')):  # Pillow would clip its values
        raise ValueError(f'{name} has the mode {image.mode}; give the file '
                         'itself, or scale it to 8 bits a channel')
    try:
        image = ImageOps.exif_transpose(image).convert('RGB')
    except Exception as error:  # Pillow decodes only now
        raise ValueError(f'{name} cannot be decoded: {error}') from error
    return np.asarray(image)[..., ::-1].copy()


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    shape = array.shape + (1, ) * (array.ndim == 2)
    if array.dtype != np.uint8 or len(shape) != 3 or not array.size or (
            shape[2] not in (1, 3, 4)):
        raise ValueError(
            f'{name} is an array of {array.dtype} and shape {array.shape}; '
            'wanted uint8, (h, w, 3) in the order BGR, (h, w) or (h, w, 4)')
    check_pixels(*shape[:2], name)
    array = np.ascontiguousarray(array.reshape(shape))
    if shape[2] == 3:
        return array
    return cv2.cvtColor(array, _CHANNELS[shape[2]])


def list_pictures(inputs: Any) -> list:
    """One picture, a folder of them, a list or iterator -> a list of sources.

    Raises:
        ValueError: If there is none.
    """
    if isinstance(inputs, (list, tuple, Iterator)) and not isinstance(
            inputs, io.IOBase):
        sources = list(inputs)
    elif isinstance(inputs, (str, os.PathLike)) and osp.isdir(inputs):
        sources = [
            osp.join(os.fspath(inputs), name)
            for name in sorted(os.listdir(inputs))
            if name.lower().endswith(SUFFIXES)
            and osp.isfile(osp.join(inputs, name))
        ]
        if not sources:
            raise ValueError(f'the folder {os.fspath(inputs)} has no '
                             f'pictures ({", ".join(SUFFIXES)})')
    else:
        sources = [inputs]
    if not sources:
        raise ValueError('there are no pictures: the list is empty')
    return sources


def match_texts(texts: Texts, num_pictures: int) -> list[list[str]]:
    """The expressions of every picture.

    Args:
        texts (str | list[str] | list[list[str]]): One expression or several
            that are asked of every picture, or a list for each picture.
        num_pictures (int): How many there are.

    Returns:
        list[list[str]]: One list a picture.

    Raises:
        TypeError: If texts are something else.
        ValueError: If there is none, one is empty, or there are not as many
            lists as pictures.
    """
    if isinstance(texts, (list, tuple)) and any(
            isinstance(own, (list, tuple)) for own in texts):
        if len(texts) != num_pictures:
            raise ValueError(f'{len(texts)} lists of expressions for '
                             f'{num_pictures} pictures: give one for each')
        return [check_texts(own) for own in texts]
    return [check_texts(texts)] * num_pictures


def check_texts(texts: str | Sequence[str]) -> list[str]:
    """One expression or several -> a list; raises as match_texts does."""
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, (list, tuple)):
        raise TypeError('expressions must be a string or a list of strings, '
                        f'got a {type(texts).__name__}')
    if not texts:
        raise ValueError('there is no expression: say what to look for, for '
                         "example 'the red circle'")
    for i, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise TypeError(f'expression {i} of {len(texts)} is a '
                            f'{type(text).__name__}, not a string')
        if not text.strip():
            raise ValueError(f'expression {i} of {len(texts)} is empty: say '
                             'what to look for')
    return list(texts)
