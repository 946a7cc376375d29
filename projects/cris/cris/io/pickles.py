# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Pickles of plain data, read without running anything.

An unpickler that refuses or replaces every global cannot run code. Still, a
few bytes can make it allocate gigabytes (a large memo index) or crash the
process (nested tuples overflow the stack when they are hashed). The opcodes
are checked first.
"""
import codecs
import pickle
import re
from io import BytesIO
from itertools import chain, islice
from typing import Any

import numpy as np

from .files import FileError, without_gc

# Highest memo index; the unpickler allocates as many entries.
_MAX_MEMO = 0x7fffff
# Hashing nested tuples recurses: 150,000 overflow a stack of 8 MiB.
_MAX_TUPLES = 50_000
_MAX_DEPTH = 64
_TUPLES = b't\x85\x86\x87\x91'
# All opcodes but those of tuples and the end, up to the length of a string or
# long integer. The repetition is limited because re remembers each match.
_OPCODES = re.compile(
    rb'(?:[]N\x88\x89aelsu})(d012\x94\x8f\x90\x93Rbo\x81\x92Q\x97\x98]+'
    rb'|[Khq\x80\x82].|M..|[Jj\x84].{4}|[G\x95].{8}|\x83..'
    rb'|[ILSVFgP][^\n]*\n|[ci][^\n]*\n[^\n]*\n'
    rb'|p[0-7]?[0-9]{1,6}\n|r..[\x00-\x7f]\x00){0,1000}'
    rb'(?:[UC\x8c\x8a](.)|[TBX\x8b](.{4})|[\x8d\x8e\x96](.{8}))?', re.DOTALL)


def check_pickle(content: bytes | memoryview, start: int = 0) -> int:
    """Check that unpickling needs little more memory than the pickle.

    Args:
        content (bytes | mmap): Contains a pickle at the offset ``start``.

    Returns:
        int: Offset of its end.

    Raises:
        ValueError: If it is broken, or needs too many memo entries or tuples.
    """
    tuples = 0
    while True:
        match = _OPCODES.match(content, start)
        end = match.end()
        if match.lastindex:
            start = end + int.from_bytes(match[match.lastindex], 'little')
            continue
        opcode = content[end:end + 1]
        if opcode == b'.':
            return end + 1
        if not opcode:
            raise ValueError('it ends too early')
        if opcode in _TUPLES:
            tuples += 1
            start = end + 1
        elif end > start:
            start = end
        elif opcode in b'pr':
            raise ValueError(f'it refers to more than {_MAX_MEMO} objects')
        else:
            raise ValueError(f'byte {end} is not an opcode: {opcode!r}')
        if tuples > _MAX_TUPLES:
            raise ValueError(f'it has more than {_MAX_TUPLES} tuples; write '
                             'lists')


def _check_tree(value: Any, most: int) -> None:
    """Refuse more than ``most`` containers, repeated ones counted again.

    A list that contains itself, or twice a list that contains twice a list
    ..., takes a few bytes but cannot be walked through.
    """
    level = [value]
    for _ in range(_MAX_DEPTH):
        items = chain.from_iterable(
            c.values() if isinstance(c, dict) else c for c in level)
        containers = (
            item for item in items
            if isinstance(item, (list, dict, tuple, set, frozenset)))
        level = list(islice(containers, most + 1))
        most -= len(level)
        if most < 0:
            raise ValueError('it repeats its lists over and over')
        if not level:
            return
    raise ValueError(f'its lists are nested deeper than {_MAX_DEPTH}')


def number_dtype(code: Any, *_) -> np.dtype:
    """In place of np.dtype, whose other types can hold objects."""
    if not re.fullmatch(r'[fiu][1248]|b1|U[0-9]{1,4}', str(code)):
        raise pickle.UnpicklingError(f'it asks for numpy.dtype({code!r})')
    # A copy: a pickle could change the byte order of NumPy's dtype.
    return np.dtype(code, copy=True)


def _scalar(dtype: Any, content: Any) -> int | float | bool | str:
    """A NumPy scalar as a number or string of Python."""
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes):
        raise pickle.UnpicklingError('its NumPy numbers are not readable')
    (value, ) = np.frombuffer(content, dtype).tolist()
    return value


def _encode(text: Any, encoding: Any) -> bytes:
    """In place of codecs.encode, by which protocols 0 to 2 write bytes."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'it asks for the codec {encoding!r}')
    return text.encode('latin1')


_FUNCTIONS = {
    'numpy.dtype': number_dtype,
    'numpy.core.multiarray.scalar': _scalar,
    'numpy._core.multiarray.scalar': _scalar,
    '_codecs.encode': _encode,
}


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every global but NumPy's scalars, so that nothing can run."""

    def find_class(self, module, name):
        if f'{module}.{name}' in _FUNCTIONS:
            return _FUNCTIONS[f'{module}.{name}']
        raise pickle.UnpicklingError(
            f'it asks for {module}.{name}, but only lists, dicts, tuples, '
            'numbers and strings are read')


def _latin_1(error: UnicodeError) -> tuple[str, int]:
    """Python 2 wrote bytes: UTF-8, else Latin-1."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start:error.end].decode('latin-1'), error.end


codecs.register_error('cris-latin-1', _latin_1)


def parse_plain_pickle(content: bytes, where: str) -> Any:
    """Unpickle plain containers, numbers and strings.

    Raises:
        FileError: If it is broken or contains anything else ('bad-pickle');
            nothing in it is executed. It names the file ``where``.
    """
    try:
        check_pickle(content)
        with without_gc():
            # Python 2 wrote the files of RefCOCO.
            value = _PlainUnpickler(
                BytesIO(content), encoding='utf-8',
                errors='cris-latin-1').load()
        _check_tree(value, len(content))
        return value
    except Exception as error:  # broken bytes can raise anything
        raise FileError(
            f'{where} is not a pickle of plain data: {error}. Get the file '
            'again from its source, or write its numbers with int() and its '
            'texts with str().', 'bad-pickle') from error


def load_plain_pickle(path: str) -> Any:
    """Read a file for :func:`parse_plain_pickle`."""
    with open(path, 'rb') as file:
        return parse_plain_pickle(file.read(), path)
