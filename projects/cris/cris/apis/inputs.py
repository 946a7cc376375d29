# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Inputs of an inferencer: images in many forms, and texts."""
import io
import os
import os.path as osp
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from cris.io.files import read_bytes
from cris.io.images import check_pixels, decode_image

ImageSource = (
    str | os.PathLike | bytes | BinaryIO | np.ndarray | Image.Image)
Texts = str | Sequence[str] | Sequence[Sequence[str]]
# Files of a folder that are images, in lower or upper case.
_SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


@dataclass(frozen=True)
class InputImage:
    """A decoded image and its origin."""
    bgr: np.ndarray  #: uint8 (h, w, 3)
    name: str
    path: str | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.bgr.shape[:2]


def load_image(source: ImageSource | InputImage,
               name: str = 'image') -> InputImage:
    """Decode an image as training and evaluation do.

    Files and Pillow images are rotated according to their EXIF orientation;
    arrays are not.

    Args:
        source: An image file, its content, an open file, an array (BGR as
            OpenCV returns it, grey or BGRA; uint8), a Pillow image, or what
            this function returned.
        name (str): Name of an image that is not a path.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the image cannot be used.
        TypeError: If source has another type.
    """
    if isinstance(source, InputImage):
        return source
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if not osp.isfile(path):
            raise FileNotFoundError(f'image file {path} does not exist')
        stem = osp.splitext(osp.basename(path))[0]
        return InputImage(decode_image(read_bytes(path), path), stem, path)
    if isinstance(source, io.IOBase) and not isinstance(
            source, io.TextIOBase):
        source = source.read()
    if isinstance(source, (bytes, bytearray, memoryview)):
        bgr = decode_image(bytes(source), name)
    elif isinstance(source, Image.Image):
        bgr = _from_pillow(source, name)
    elif isinstance(source, np.ndarray):
        bgr = _from_array(source, name)
    else:
        raise TypeError(f'{name} is a {type(source).__name__}; wanted a path, '
                        'the bytes of a file, a uint8 array or a Pillow image')
    return InputImage(bgr, name)


def _from_pillow(image: Image.Image, name: str) -> np.ndarray:
    check_pixels(image.height, image.width, name)
    if image.mode.startswith(('I', 'F')):  # Pillow would clip the values
        raise ValueError(f'{name} has the mode {image.mode}: pass the file '
                         'itself, or scale the image to 8 bits per channel')
    try:
        image = ImageOps.exif_transpose(image).convert('RGB')
    except Exception as error:  # Pillow decodes lazily
        raise ValueError(f'{name} cannot be decoded: {error}') from error
    return np.asarray(image)[..., ::-1].copy()


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    shape = array.shape + (1, ) * (array.ndim == 2)
    if array.dtype != np.uint8 or len(shape) != 3 or not array.size or (
            shape[2] not in (1, 3, 4)):
        raise ValueError(
            f'{name} is an array of {array.dtype} and shape {array.shape}; '
            'wanted uint8, (h, w, 3) in BGR order, (h, w) or (h, w, 4)')
    check_pixels(*shape[:2], name)
    bgr = array.reshape(shape)[..., :3]
    return np.ascontiguousarray(bgr if shape[2] > 1 else bgr.repeat(3, 2))


def list_images(
        inputs: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    """An image, a folder, a list or an iterator -> a list, not empty."""
    if isinstance(inputs, (list, tuple, Iterator)) and not isinstance(
            inputs, io.IOBase):
        sources, found = list(inputs), 'there are no images: the list is empty'
    elif isinstance(inputs, (str, os.PathLike)) and osp.isdir(inputs):
        folder = os.fspath(inputs)
        found = f'the folder {folder} has no images ({", ".join(_SUFFIXES)})'
        paths = (osp.join(folder, name) for name in sorted(os.listdir(folder))
                 if name.lower().endswith(_SUFFIXES))
        sources = [path for path in paths if osp.isfile(path)]
    else:
        return [inputs]
    if not sources:
        raise ValueError(found)
    return sources


def match_texts(texts: Texts, num_images: int) -> list[list[str]]:
    """A list of expressions for each image; raises as :func:`check_texts`."""
    if isinstance(texts, (list, tuple)) and any(
            isinstance(item, (list, tuple)) for item in texts):
        if len(texts) != num_images:
            raise ValueError(f'{len(texts)} lists of expressions for '
                             f'{num_images} images: give one for each')
        return [check_texts(item) for item in texts]
    return [check_texts(texts)] * num_images


def check_texts(texts: str | Sequence[str]) -> list[str]:
    """One or more expressions -> a list.

    Raises:
        TypeError: If one is not a string.
        ValueError: If there is none, or one is empty.
    """
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, (list, tuple)):
        raise TypeError('expressions must be a string or a list of strings, '
                        f'got a {type(texts).__name__}')
    if not texts:
        raise ValueError('there is no expression: give one or more, for '
                         "example 'the red circle'")
    for i, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise TypeError(f'expression {i} of {len(texts)} is a '
                            f'{type(text).__name__}, not a string')
        if not text.strip():
            raise ValueError(f'expression {i} of {len(texts)} is empty')
    return list(texts)
