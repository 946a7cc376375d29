# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Takes the pictures of a set from a folder or a zip."""
import os
import os.path as osp
import zipfile
from collections.abc import Container

from cris.io.atomic import PARTIAL, disk_space, remove
from cris.io.files import FileError, safe_join

#: Larger members of a zip are refused.
MAX_BYTES = 64 << 20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def check_source(images: str) -> None:
    """Refuse what is neither a folder nor a zip; its members are not read.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        FileError: If it is a file, but not a complete zip ('bad-file').
    """
    if not osp.exists(images):
        raise FileNotFoundError(f'--images {images} does not exist')
    if not osp.isdir(images) and not zipfile.is_zipfile(images):
        raise FileError(f'--images {images} is neither a folder nor a complete'
                        ' zip: if it is a download, get it again')


def place(images: str, folder: str, names: list[str]) -> str:
    """Link a folder of pictures, or unpack those of the set from a zip.

    Pictures that an interrupted run has unpacked are kept.

    Args:
        images (str): A folder, or a zip with the pictures in any folder.
        folder (str): Where the pictures shall be.
        names (list[str]): File names of the pictures of the set.

    Returns:
        str: What was done.

    Raises:
        FileNotFoundError: If pictures are missing.
        FileExistsError: If the folder is another one than is to be linked.
        FileError: If the zip is broken, or has a member that is unsafe.
        OSError: If the disk is full.
    """
    if osp.isdir(images):
        _check_complete(images, set(os.listdir(images)), names)
        if not osp.lexists(folder):
            os.symlink(osp.abspath(images), folder)
        elif not osp.exists(folder) or not osp.samefile(folder, images):
            raise FileExistsError(f'{folder} exists and is not {images}: '
                                  'remove it, or leave out --images')
        return f'{folder} is {images}.'
    try:
        with zipfile.ZipFile(images) as archive:
            members = {osp.basename(info.filename): info
                       for info in archive.infolist() if not info.is_dir()}
            _check_complete(images, members, names)
            _unpack(archive, folder, {name: members[name] for name in names})
    except zipfile.BadZipFile as error:
        raise FileError(f'{images} is broken: {error}; get it again'
                        ) from error
    return f'{len(names)} pictures of {images} are in {folder}.'


def _check_complete(source: str, found: Container[str],
                    names: list[str]) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        raise FileNotFoundError(
            f'{source} lacks {len(missing)} of the {len(names)} pictures of '
            f"the set, e.g. {', '.join(missing[:3])}: is it COCO's train2014?")


def _unpack(archive: zipfile.ZipFile, folder: str,
            members: dict[str, zipfile.ZipInfo]) -> None:
    missing = {}
    for name, info in members.items():
        _check_member(archive, info, folder)
        path = osp.join(folder, name)
        if not osp.isfile(path) or osp.getsize(path) != info.file_size:
            missing[path] = info
    needed = sum(info.file_size for info in missing.values())
    with disk_space(osp.dirname(folder), needed):
        os.makedirs(folder, exist_ok=True)
    for path, info in missing.items():
        content = _read(archive, info)
        try:
            with disk_space(folder, needed):
                with open(path + PARTIAL, 'wb') as file:
                    file.write(content)
                os.replace(path + PARTIAL, path)
        finally:
            remove(path + PARTIAL)
        needed -= info.file_size


def _check_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo,
                  folder: str) -> None:
    try:
        safe_join(folder, info.filename)
    except FileError as error:
        raise FileError(f'{archive.filename}: {error}', error.kind) from error
    where = f'{info.filename} of {archive.filename}'
    if info.file_size > MAX_BYTES:
        raise FileError(
            f'{where} would have {info.file_size} bytes, more than the limit '
            f'of {MAX_BYTES} for a picture', 'file-too-large')
    if info.compress_type not in _METHODS:  # the others inflate at once
        raise FileError(f'{where} is compressed by another method than '
                        'deflate: make the zip anew')


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(info) as file:
            # Without a limit, a size that is a lie would fill the memory.
            return file.read(info.file_size + 1)
    except Exception as error:  # zipfile raises anything for a broken member
        raise FileError(f'{info.filename} of {archive.filename} cannot be '
                        f'unpacked: {error}') from error
