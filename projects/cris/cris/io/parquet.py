# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Parquet files: only the rows that are used are in memory."""
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

from .files import FileError


def open_parquet(path: str) -> Any:
    """Open a parquet file; its rows are not read yet.

    Returns:
        pyarrow.parquet.ParquetFile: The file.

    Raises:
        FileNotFoundError: If it does not exist.
        FileError: If it is not a parquet file, or cut.
        ImportError: If pyarrow is missing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError('parquet files need pyarrow: pip install pyarrow'
                          ) from error
    if not os.path.isfile(path):
        raise FileNotFoundError(f'parquet file {path} does not exist')
    try:
        return parquet.ParquetFile(path, memory_map=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def _broken(path: str, error: Exception) -> FileError:
    return FileError(f'{path} is not a parquet file, or broken: {error}. Get '
                     'it again from its source.')


class ParquetRows:
    """Rows of several parquet files by number.

    A parquet file is read in row groups. The last few stay in memory.
    Processes that are forked open the files again.

    Args:
        paths (Sequence[str]): The files.
        columns (Sequence[str], optional): Columns to read; all by default.
        capacity (int): Row groups in memory.
    """

    def __init__(self,
                 paths: Sequence[str],
                 columns: Sequence[str] | None = None,
                 capacity: int = 2):
        self.paths = list(paths)
        self.columns = columns and list(columns)
        self.capacity = capacity
        self._process = 0

    def read(self, file: int, row: int) -> dict:
        """A row as a dict.

        Args:
            file (int): Number of the file.
            row (int): Number of the row in the file.

        Raises:
            FileError: If the file is broken.
        """
        if self._process != os.getpid():
            self._process = os.getpid()
            self._files: dict[int, tuple] = {}
            self._groups: OrderedDict[tuple, Any] = OrderedDict()
        if file not in self._files:
            opened = open_parquet(self.paths[file])
            sizes = row_group_sizes(opened)
            self._files[file] = opened, [0, *accumulate(sizes)]
        opened, firsts = self._files[file]
        group = bisect_right(firsts, row) - 1
        if (file, group) not in self._groups:
            if len(self._groups) >= self.capacity:
                self._groups.popitem(last=False)
            self._groups[file, group] = read_group(
                self.paths[file], opened, group, self.columns)
        self._groups.move_to_end((file, group))
        return self._groups[file, group].slice(
            row - firsts[group], 1).to_pylist()[0]


@lru_cache(maxsize=4)
def _pictures(path: str) -> ParquetRows:
    return ParquetRows([path], ['image'])


def read_picture(path: str, row: int) -> bytes:
    """Content of the picture in a row: column ``image {bytes, path}``.

    Raises:
        FileNotFoundError, FileError: If the file is missing or broken.
    """
    return _pictures(path).read(0, row)['image']['bytes']


def row_group_sizes(file: Any) -> list[int]:
    """Number of rows in each row group of a file."""
    return [file.metadata.row_group(i).num_rows
            for i in range(file.num_row_groups)]


def read_group(path: str, file: Any, group: int,
               columns: Sequence[str] | None) -> Any:
    """A row group as a ``pyarrow.Table``.

    Raises:
        FileError: If the file is broken.
    """
    try:
        # Threads of pyarrow do not survive a fork.
        return file.read_row_group(group, columns, use_threads=False)
    except (ValueError, OSError) as error:  # ArrowInvalid is a ValueError
        raise _broken(path, error) from error
