# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Image files: verified by their headers, and decoded."""
import os
import os.path as osp
from typing import Dict, List, Optional, Set

import mmcv
import numpy as np
from PIL import Image

from .files import image_size, is_truncated_jpeg, open_image, safe_join
from .records import Fault


def decode_image(content: bytes,
                 where: str,
                 backend: Optional[str] = None) -> np.ndarray:
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


def check_headers(images: List[dict],
                  folder: str,
                  read: bool = True) -> List[Fault]:
    """Faults of the image files of records, at most one per image.

    Args:
        images (list[dict]): Records.
        folder (str): Where the images lie.
        read (bool): Whether to read headers, or only to look for the files.

    Returns:
        list[Fault]: Missing files, files that are no images or end too early,
        sizes that are not the annotated ones, too many pixels, links out of
        the folder. ``where`` is the file name of the image.
    """
    # One listing of a folder instead of a question per file.
    listed: Dict[str, Set[str]] = {}
    faults = []
    for image in images:
        if 'img_path' in image:  # inside an LMDB, whose reader has looked
            continue
        path = osp.join(folder, image['file_name'])
        parent, name = osp.split(path)
        if parent not in listed:
            listed[parent] = set(
                os.listdir(parent) if osp.isdir(parent) else ())
        if name not in listed[parent]:
            faults.append(
                Fault('missing-image', image['file_name'],
                      f'image file {path} does not exist'))
        elif read and (fault := header_fault(image, folder)):
            faults.append(fault)
    return faults


def header_fault(image: dict, folder: str) -> Optional[Fault]:
    """What is wrong with an image file, as far as its header tells."""
    name, annotated = image['file_name'], (image['height'], image['width'])
    try:
        path = safe_join(folder, name)
    except ValueError as error:
        return Fault('unsafe-name', name, str(error))
    try:
        size = image_size(path)
    except OSError as error:
        return Fault('bad-image', name,
                     f'image file {path} cannot be opened: {error}')
    except ValueError as error:
        kind = 'image-too-large' if 'limit' in str(error) else 'bad-image'
        return Fault(kind, name, str(error))
    if size != annotated:
        return Fault('image-size', name, size_message(path, size, annotated))
    return None


def size_message(path: str, size: tuple, annotated: tuple) -> str:
    """How the size of an image differs from what its annotations say."""
    return (f'{path} is of size {size}, but its annotations are for '
            f'{annotated} (height, width)' +
            ('; the two are swapped: its EXIF orientation was applied when '
             'one of them was made' if size == annotated[::-1] else ''))
