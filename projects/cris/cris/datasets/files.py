# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Reading files of unknown origin: nothing runs, nothing outside is read."""
import gc
import json
import ntpath
import os
import os.path as osp
import pickle
import stat
import warnings
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from typing import Any, BinaryIO, Iterator, List, Tuple, Union

import cv2
import numpy as np
from PIL import Image

from cris.pickles import check_pickle, check_tree

try:
    import orjson
except ImportError:  # the standard library does it, too, more slowly
    orjson = None

#: Pictures and masks with more pixels are refused before they are decoded.
MAX_PIXELS = 100_000_000
#: Nor are larger files of pictures and masks read.
MAX_BYTES = 1 << 30
#: Nor pictures with a longer side: OpenCV 4 cannot warp them.
MAX_SIDE = 32_766
_LARGE = 64 << 20  # bytes
_EXIF_ORIENTATION = 0x0112
# Pillow knows more, among them PostScript, for which it starts Ghostscript.
_FORMATS = ('JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP', 'GIF', 'PPM', 'JPEG2000')
#: What the values of an LMDB are called, see readers/official_lmdb.py.
LMDB_SCHEME = 'official-lmdb://'


@contextmanager
def without_gc() -> Iterator[None]:
    """Millions of new objects would be searched for cycles, in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _PlainUnpickler(pickle.Unpickler):
    """Admits plain containers, numbers and strings: nothing can run."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(
            f'it asks for {module}.{name}, but only lists, dicts, tuples, '
            'numbers and strings are read')


def parse_plain_pickle(content: bytes, where: str) -> Any:
    """Like :func:`load_plain_pickle`, of bytes that ``where`` names."""
    try:
        # The files of RefCOCO were written by Python 2.
        check_pickle(content)
        with without_gc():
            value = _PlainUnpickler(
                BytesIO(content), encoding='utf-8', errors='replace').load()
        check_tree(value, len(content))
        return value
    except Exception as error:  # any broken byte ends in some exception
        raise ValueError(f'{where} is not a pickle of plain data: {error}. '
                         'Get the file again from its source, or write its '
                         'numbers with int() and its texts with str().'
                         ) from error


def load_plain_pickle(path: str) -> Any:
    """Read a pickle that holds plain data.

    Args:
        path (str): The file.

    Returns:
        The object.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no pickle or asks for anything but plain data;
            nothing in it is executed.
    """
    with open(path, 'rb') as file:
        return parse_plain_pickle(file.read(), path)


def load_json(path: str) -> Any:
    """Read a JSON file; a broken one is a ValueError that names it."""
    try:
        if osp.getsize(path) > _LARGE:
            # orjson would be faster, but takes twice the memory meanwhile.
            with open(path, encoding='utf-8-sig') as file, without_gc():
                return json.load(file)
        with open(path, 'rb') as file:
            return parse_json(file.read())
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not valid JSON: {error}. Get the '
                         'file again from its source.') from error


def parse_json(content: bytes) -> Any:
    """Like ``json.loads``, faster where orjson is installed."""
    with without_gc():
        if orjson:
            try:
                return orjson.loads(content)
            except ValueError:
                pass  # NaN, huge numbers: or an error that json words better
        return json.loads(content.decode('utf-8-sig'))


def dump_json(value: Any) -> bytes:
    """Like ``json.dumps``, faster where orjson is installed.

    Raises:
        TypeError: If the value is not of JSON's types.
    """
    if orjson:
        return orjson.dumps(value)
    return json.dumps(value, separators=(',', ':')).encode()


def read_bytes(path: str) -> bytes:
    """The content of a file, or of a value of an official LMDB."""
    if path.startswith(LMDB_SCHEME):
        from .readers.official_lmdb import read_value
        return read_value(path)
    check_file(path)
    with open(path, 'rb') as file:
        return file.read()


def check_file(path: str) -> None:
    """Refuse what would block for ever or fill the memory when it is read.

    Raises:
        OSError: If it is not there.
        ValueError: If it is no regular file (a pipe, for instance) or larger
            than ``MAX_BYTES``.
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError(f'{path} is no regular file')
    if state.st_size > MAX_BYTES:
        raise ValueError(f'{path} has {state.st_size} bytes, more than the '
                         f'limit of {MAX_BYTES}')


def safe_join(folder: str, name: Any) -> str:
    """The path of a file that an annotation names, inside its folder.

    Args:
        folder (str): The folder of images or masks. It may be a link itself.
        name (str): What the annotation says, relative to the folder.

    Returns:
        str: The path.

    Raises:
        ValueError: If the name is none, is absolute, holds ``..``, or a link
            on the way leads out of the folder.
    """
    if not isinstance(name, str) or not name.strip() or '\0' in name:
        raise ValueError(f'the file name {name!r} is none')
    parts = name.replace('\\', '/').split('/')
    if (osp.isabs(name) or ntpath.splitdrive(name)[0] or '..' in parts
            or '://' in name):
        raise ValueError(f'the file name {name!r} leaves the folder {folder}; '
                         'it must be relative to it, without ".."')
    path = osp.join(folder, name)
    if _has_link(folder, parts):
        real, root = osp.realpath(path), osp.realpath(folder)
        if osp.commonpath([real, root]) != root:
            raise ValueError(
                f'the file {path} is a link that leads out of {folder}, to '
                f'{real}; put the file itself there, or make the folder a '
                'link')
    return path


def _has_link(folder: str, parts: List[str]) -> bool:
    for part in parts:
        folder = osp.join(folder, part)
        if osp.islink(folder):
            return True
    return False


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


def open_image(content: Union[bytes, BinaryIO], where: str) -> Image.Image:
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


def image_size(path: str) -> Tuple[int, int]:
    """Height and width of an image file as it is shown, from its header.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is no image, a JPEG without its end, or has too
            many pixels.
    """
    if path.startswith(LMDB_SCHEME):
        return _shown_size(open_image(read_bytes(path), path))
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


def _shown_size(image: Image.Image) -> Tuple[int, int]:
    # Without EXIF data Pillow would decode a PNG to look for them in its end.
    turned = 'exif' in image.info and _is_turned(image.format) and (
        image.getexif().get(_EXIF_ORIENTATION, 1) >= 5)
    return image.size if turned else image.size[::-1]


@lru_cache(maxsize=None)
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
