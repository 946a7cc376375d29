# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Image files of records, checked by their headers."""
import os
import os.path as osp
from functools import cache

from cris.io.files import FileError, read_bytes, safe_join
from cris.io.images import image_size
from cris.io.parquet import read_picture

from .records import Fault


def image_content(image: dict, folder: str) -> bytes:
    """Content of the file of a record's image.

    Raises:
        OSError: If the file cannot be read.
        FileError: If it is too large, outside the folder, or in a parquet
            file that is broken.
    """
    if 'picture' in image:
        return read_picture(*image['picture'])
    return read_bytes(safe_join(folder, image['file_name']))


def check_headers(images: list[dict], folder: str,
                  read: bool = True) -> list[Fault]:
    """Faults of the image files of records, at most one per image.

    Of pictures in parquet files, the reader has read the headers.

    Args:
        images (list[dict]): Records.
        folder (str): Folder of the images.
        read (bool): Read the headers; False only checks that files exist.

    Returns:
        list[Fault]: Files that are missing, broken, not images, too large, of
        another size, or outside the folder; ``where`` is the file name.
    """

    @cache  # listing a folder once is faster than checking every file
    def files_in(parent: str) -> set[str]:
        return set(os.listdir(parent) if osp.isdir(parent) else ())

    faults = []
    for image in images:
        name = image['file_name']
        if 'picture' in image:
            if 'picture_size' in image:
                faults.append(Fault('image-size', name, size_message(
                    name, tuple(image['picture_size']), _annotated(image))))
            continue
        path = osp.join(folder, name)
        parent, base = osp.split(path)
        try:
            if base not in files_in(parent):
                raise FileError(f'image file {path} does not exist',
                                'missing-image')
            if read:
                _check_size(safe_join(folder, name), image)
        except FileError as error:
            faults.append(Fault(error.kind, name, str(error)))
        except OSError as error:
            faults.append(Fault(
                'bad-image', name,
                f'image file {path} cannot be opened: {error}'))
    return faults


def _check_size(path: str, image: dict) -> None:
    size, annotated = image_size(path), _annotated(image)
    if size != annotated:
        raise FileError(size_message(path, size, annotated), 'image-size')


def _annotated(image: dict) -> tuple[int, int]:
    return image['height'], image['width']


def size_message(path: str, size: tuple, annotated: tuple) -> str:
    """Message about an image whose size is not the annotated one."""
    return (f'{path} is of size {size}, but its annotations are for '
            f"{annotated} (height, width); size_mismatch='resize_image' or "
            "'resize_mask' of the dataset resizes one of them" +
            ('; the two are swapped: its EXIF orientation was applied when '
             'one of them was made' if size == annotated[::-1] else ''))
