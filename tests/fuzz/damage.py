# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Strategies that damage valid files and annotations."""
import os
from typing import Any

from hostile import MASKS, NAMES, NUMBERS, VALUES, Call
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

NASTY = [b'\xff', Call(os.mkdir, '/nowhere/marker'), *VALUES]


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Bytes flipped, replaced, cut off, deleted or doubled."""
    data = bytearray(content)
    for _ in range(draw(st.sampled_from([1, 1, 2, 4, 8]))):
        if not data:
            break
        last = len(data) - 1
        end = min(200, last)  # headers and directories are at the ends
        at = draw(st.integers(0, end) | st.integers(last - end, last)
                  | st.integers(0, last))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            data[at] = draw(st.integers(0, 255))
        elif kind == 2:
            data[at:at + 8] = draw(
                st.sampled_from([b'\xff', b'\0', b'\x7f'])) * 8
        elif kind == 3:
            del data[at:at + draw(st.integers(1, 40))]
        elif kind == 4:
            start = draw(st.integers(0, len(data)))
            data[at:at] = data[start:start + draw(st.integers(1, 99))]
        elif draw(st.integers(0, 2)) == 0:
            del data[at:]
    return bytes(data)


def damaged_or_any(content: bytes) -> SearchStrategy[bytes]:
    """A damaged file or, now and then, any bytes."""
    return st.one_of(*[damaged(content)] * 8, st.binary(max_size=300),
                     st.just(b'[' * 100_000))


@st.composite
def with_nasty_values(draw: Any, value: Any) -> Any:
    """A copy of an annotation with a nasty value in one or two places."""
    for _ in range(draw(st.integers(1, 2))):
        value = _replace(draw, value)
    return value


def _replace(draw: Any, value: Any) -> Any:
    if isinstance(value, (list, dict)) and value and draw(st.integers(0, 6)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = draw(st.sampled_from(keys))
        copy = value.copy()
        if draw(st.integers(0, 9)) == 0:
            del copy[key]
        else:
            copy[key] = _replace(draw, copy[key])
        return copy
    nasty = NASTY
    if draw(st.booleans()):  # a value of the same kind
        nasty = NAMES if isinstance(value, str) else (
            NUMBERS if isinstance(value, (int, float)) else MASKS)
    return draw(st.sampled_from(nasty))
