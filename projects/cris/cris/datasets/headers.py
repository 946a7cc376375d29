# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Image files of records, checked by their headers."""
import os
import os.path as osp

from cris.io.files import FileError, safe_join
from cris.io.images import image_size

from .records import Fault


def check_headers(images: list[dict],
                  folder: str,
                  read: bool = True) -> list[Fault]:
    """Faults of the image files of records, at most one per image.

    Args:
        images (list[dict]): Records.
        folder (str): Folder of the images.
        read (bool): Read the headers; False only checks that files exist.

    Returns:
        list[Fault]: Missing files, files that are not images, truncated or
        too large, other sizes than annotated, links out of the folder.
        ``where`` is the file name of the image.
    """
    # Listing a folder once is faster than checking every file.
    listed: dict[str, set[str]] = {}
    faults = []
    for image in images:
        path = osp.join(folder, image['file_name'])
        parent, name = osp.split(path)
        if parent not in listed:
            listed[parent] = set(
                os.listdir(parent) if osp.isdir(parent) else ())
        if name not in listed[parent]:
            faults.append(
                Fault('missing-image', image['file_name'],
                      f'image file {path} does not exist'))
        elif read and (fault := _header_fault(image, folder)):
            faults.append(fault)
    return faults


def _header_fault(image: dict, folder: str) -> Fault | None:
    name, annotated = image['file_name'], (image['height'], image['width'])
    try:
        path = safe_join(folder, name)
        size = image_size(path)
    except FileError as error:
        return Fault(error.kind, name, str(error))
    except OSError as error:
        return Fault('bad-image', name,
                     f'image file {path} cannot be opened: {error}')
    if size != annotated:
        return Fault('image-size', name, size_message(path, size, annotated))
    return None


def size_message(path: str, size: tuple, annotated: tuple) -> str:
    """Message about an image whose size is not the annotated one."""
    return (f'{path} is of size {size}, but its annotations are for '
            f'{annotated} (height, width)' +
            ('; the two are swapped: its EXIF orientation was applied when '
             'one of them was made' if size == annotated[::-1] else ''))
