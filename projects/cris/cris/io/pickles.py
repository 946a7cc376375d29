# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What a pickle may ask for before it is unpickled.

An unpickler that admits plain data only runs nothing, and yet a few bytes can
make it allocate gigabytes (the index of a memo) or end the process (nested
tuples overflow the stack when they are hashed). One look at the opcodes tells.
"""
import pickle
import re
from io import BytesIO
from itertools import chain, islice
from typing import Any

from .files import without_gc

#: Objects that can be referred to again; the unpickler allocates as many.
MAX_MEMO = 0x7fffff
#: Python's hash of a tuple in a tuple in a tuple ... recurses without limit:
#: 150,000 of them end the process, with the usual stack of 8 MiB.
MAX_TUPLES = 50_000
MAX_DEPTH = 64
_TUPLES = b't\x85\x86\x87\x91'
# All other opcodes, up to the length of a string or long number. Repeated a
# limited number of times, since re remembers each.
_OPCODES = re.compile(
    rb'(?:[]N\x88\x89aelsu})(d012\x94\x8f\x90\x93Rbo\x81\x92Q\x97\x98]+'
    rb'|[Khq\x80\x82].|M..|[Jj\x84].{4}|[G\x95].{8}|\x83..'
    rb'|[ILSVFgP][^\n]*\n|[ci][^\n]*\n[^\n]*\n'
    rb'|p[0-7]?[0-9]{1,6}\n|r..[\x00-\x7f]\x00){0,1000}'
    rb'(?:[UC\x8c\x8a](.)|[TBX\x8b](.{4})|[\x8d\x8e\x96](.{8}))?', re.DOTALL)


def check_pickle(content: bytes | memoryview, start: int = 0) -> int:
    """Verify that unpickling takes memory and stack in proportion.

    Args:
        content (bytes | mmap): Holds a pickle.
        start (int): Where it begins. Defaults to 0.

    Returns:
        int: Where it ends.

    Raises:
        ValueError: If it is no whole pickle, or asks for more than
            ``MAX_MEMO`` references or ``MAX_TUPLES`` tuples.
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
            raise ValueError(f'it refers to more than {MAX_MEMO} objects')
        else:
            raise ValueError(f'byte {end} is no opcode: {opcode!r}')
        if tuples > MAX_TUPLES:
            raise ValueError(f'it has more than {MAX_TUPLES} tuples; write '
                             'lists')


def check_tree(value: Any, most: int) -> None:
    """Verify that containers are nested as in files that people write.

    A list that holds itself, or twice a list that holds twice a list ...,
    takes a few bytes and has no end once it is walked through.

    Args:
        value: Of plain containers, numbers and strings.
        most (int): Containers that it may have, those that occur again
            counted again: for a pickle, its bytes.

    Raises:
        ValueError: If there are more, or they are nested deeper than
            ``MAX_DEPTH``.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
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
    raise ValueError(f'its lists are nested deeper than {MAX_DEPTH}')


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
