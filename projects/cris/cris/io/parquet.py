# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Parquet files: only the rows that are used are in memory."""
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from .files import FileError

# Of a process: files that are open, and bytes of the row groups in memory.
_MAX_OPEN = 64
KEPT_BYTES = 12 << 20


def require_pyarrow() -> None:
    """Raise an ImportError that says what to install."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError('parquet files need pyarrow: pip install pyarrow'
                          ) from error


def open_parquet(path: str) -> Any:
    """Open a parquet file; its rows are not read yet.

    Returns:
        pyarrow.parquet.ParquetFile: The file.

    Raises:
        FileNotFoundError: If it does not exist.
        FileError: If it is not a parquet file, or cut.
        ImportError: If pyarrow is missing.
    """
    require_pyarrow()
    import pyarrow
    from pyarrow import parquet
    if not os.path.isfile(path):
        raise FileNotFoundError(f'parquet file {path} does not exist')
    try:
        # Neither a map nor a buffer: both grow with every row group read.
        return parquet.ParquetFile(path, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def _broken(path: str, error: Exception) -> FileError:
    return FileError(f'{path} is not a parquet file, or broken: {error}. Get '
                     'it again from its source.')


class _RowGroups:
    """Row groups of parquet files, those used last in memory.

    Processes that are forked open the files again.
    """

    def __init__(self):
        self._process = 0

    def read(self, path: str, row: int,
             columns: tuple[str, ...] | None) -> dict:
        if self._process != os.getpid():
            self._process = os.getpid()
            self._files: OrderedDict[str, tuple] = OrderedDict()
            self._groups: OrderedDict[tuple, Any] = OrderedDict()
        if path not in self._files:
            if len(self._files) >= _MAX_OPEN:
                self._files.popitem(last=False)
            file = open_parquet(path)
            self._files[path] = file, [0, *accumulate(row_group_sizes(file))]
        self._files.move_to_end(path)
        file, firsts = self._files[path]
        group = bisect_right(firsts, row) - 1
        key = path, group, columns
        if key not in self._groups:
            table = read_group(path, file, group, columns)
            self._groups[key] = table, table.nbytes
            while len(self._groups) > 1 and sum(
                    size for _, size in self._groups.values()) > KEPT_BYTES:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key][0].slice(
            row - firsts[group], 1).to_pylist()[0]


_ROW_GROUPS = _RowGroups()


def read_row(path: str, row: int,
             columns: tuple[str, ...] | None = None) -> dict:
    """A row of a file as a dict.

    The row group that has it is read; the last few stay in memory.

    Args:
        path (str): The file.
        row (int): Number of the row.
        columns (tuple[str, ...], optional): Columns to read; all by default.

    Raises:
        FileNotFoundError, FileError: If the file is missing or broken.
    """
    return _ROW_GROUPS.read(path, row, columns)


def read_picture(path: str, row: int) -> bytes:
    """Content of the picture in a row: column ``image {bytes, path}``.

    Raises:
        FileNotFoundError, FileError: If the file is missing or broken.
    """
    return read_row(path, row, ('image', ))['image']['bytes']


def row_group_sizes(file: Any) -> list[int]:
    """Number of rows in each row group of a file."""
    return [file.metadata.row_group(i).num_rows
            for i in range(file.num_row_groups)]


def read_group(path: str, file: Any, group: int | None,
               columns: Sequence[str] | None) -> Any:
    """A row group as a ``pyarrow.Table``; all of them if ``group`` is None.

    Raises:
        FileError: If the file is broken.
    """
    try:
        columns = columns and list(columns)
        # Threads of pyarrow do not survive a fork.
        if group is None:
            return file.read(columns, use_threads=False)
        return file.read_row_group(group, columns, use_threads=False)
    except (ValueError, OSError) as error:  # ArrowInvalid is a ValueError
        raise _broken(path, error) from error
