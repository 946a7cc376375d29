# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Samples of parquet files of any size: a row is read when it is used."""
import copy
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cris.io.parquet import (
    KEPT_BYTES,
    open_parquet,
    read_group,
    read_row,
    row_group_sizes,
)

from .readers.parquet import (
    check_splits_exist,
    content_of,
    find_shards,
    form_of,
    read_own_row,
    rows_of_splits,
    splits_of_rows,
    wanted_splits,
)


class RowSamples(Sequence):
    """Samples of parquet files in our own form (see readers/parquet.py).

    Of every sample, 12 bytes are in memory, which forked workers share.

    Args:
        ann_file (str), split (str | list[str]): As of the dataset.
        img_folder (str): For pictures that are not in the files.
        count (int, optional): Refs of a sample; None makes one of each row.
        samples_of (Callable): The samples of a record.
        keep (Callable, optional): The records to keep of ``dict(file_name,
            img_id)``.

    Raises:
        FileNotFoundError, ValueError: If a file is missing or broken, there
            is no such split, or two refs have the same id.
    """

    def __init__(self, ann_file: str, split: str | Sequence[str],
                 img_folder: str, count: int | None,
                 samples_of: Callable[[dict], list[dict]],
                 keep: Callable[[list[dict]], list[dict]] | None = None):
        self._folder = img_folder
        self._count = count
        self._samples_of = samples_of
        shards = find_shards(ann_file, split)
        splits = wanted_splits(ann_file, split)
        self._paths = [path for path, _ in shards]
        kept = _rows_to_keep(self._paths, keep) if keep else None
        files, groups, ids = [], [], []
        seen: Counter[str] = Counter()
        for i, (path, name) in enumerate(shards):
            file = open_parquet(path)
            if form_of(path, file.schema_arrow.names) != 'own':
                raise ValueError(
                    f'{path} is of another form than {shards[0][0]}')
            own = splits_of_rows(path, file, name)
            seen.update(own)
            taken = np.array(rows_of_splits(own, splits), bool)
            if kept:
                taken &= kept[i]
            lengths, ref_ids = _refs(path, file, taken)
            files.append(lengths)
            groups += row_group_sizes(file)
            ids.append(ref_ids)
        check_splits_exist(ann_file, splits, seen)
        _check_unique(self._paths, ids)
        lengths = np.concatenate(files)
        self.num_images = np.count_nonzero(lengths)
        self.num_refs = int(lengths.sum())
        # The first row of every file and row group, of all rows.
        self._files = np.cumsum([0, *map(len, files)])[:-1].tolist()
        self._groups = np.cumsum([0, *groups])[:-1]
        samples = -(-lengths // (count or lengths.max(initial=1)))
        self._rows = np.repeat(np.arange(len(lengths)), samples)
        # In evaluation all are 0.
        self._parts = (np.arange(len(self._rows)) - np.repeat(
            np.cumsum(samples) - samples, samples)).astype(np.int32)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """A sample, made anew each time, or the samples of a slice."""
        if isinstance(index, slice):
            part = copy.copy(self)
            part._rows, part._parts = self._rows[index], self._parts[index]
            return part
        path, number = self.position(index)
        row = read_row(path, number)
        content = content_of(row.get('image'))
        if content is not None:
            row['image'] = None  # it is checked when it is decoded
        if self._count:
            first = self._parts[index] * self._count
            row['refs'] = row['refs'][first:first + self._count]
        image = read_own_row(path, number, row, row['split'], self._folder)
        if content is not None:
            image['picture'] = content
        (sample, ) = self._samples_of(image)
        return sample

    def position(self, index: int) -> tuple[str, int]:
        """File and number of the row of a sample."""
        row = int(self._rows[index])
        file = bisect_right(self._files, row) - 1
        return self._paths[file], row - self._files[file]

    def group_sizes(self) -> np.ndarray:
        """Samples of each row group that has any, in their order."""
        group = np.searchsorted(self._groups, self._rows, 'right')
        sizes = np.bincount(group)
        return sizes[sizes > 0]

    def groups_in_memory(self) -> int:
        """How many row groups a process can keep in use at once."""
        path, _ = self.position(0)
        first = read_group(path, open_parquet(path), 0, None)
        # Two more are there: one that ends, one that begins.
        return max(1, KEPT_BYTES // max(1, first.nbytes) - 2)


def count_refs(ann_file: str, split: str | Sequence[str],
               enough: int) -> int | None:
    """Number of refs in files of our own form, None in any other form.

    It is read from the ends of the files, of as many as have ``enough`` refs:
    rows without refs count as one.
    """
    total = 0
    for path, _ in find_shards(ann_file, split):
        file = open_parquet(path)
        column = _ref_id_column(file)
        if form_of(path, file.schema_arrow.names) != 'own' or not column:
            return None
        total += sum(
            file.metadata.row_group(i).column(column).num_values
            for i in range(file.num_row_groups))
        if total >= enough:
            break
    return total


def _ref_id_column(file: Any) -> int:
    """Number of the column with the ids of refs, 0 if there is none."""
    # The middle of its path depends on the writer: refs.list.element.ref_id.
    paths = [file.schema.column(i).path for i in range(len(file.schema))]
    return next((i for i, path in enumerate(paths) if path.startswith(
        'refs.') and path.endswith('.ref_id')), 0)


def _refs(path: str, file: Any,
          taken: np.ndarray) -> tuple[np.ndarray, Any]:
    """Number of refs of every row, and the ids of all refs taken."""
    import pyarrow as pa
    from pyarrow import compute

    column = file.schema.column(_ref_id_column(file)).path
    refs = read_group(path, file, None, [column])['refs']
    lengths = compute.fill_null(
        compute.list_value_length(refs), 0).to_numpy()
    ids = compute.struct_field(
        compute.list_flatten(refs.filter(pa.array(taken))), 'ref_id')
    return np.where(taken, lengths, 0), ids


def _check_unique(paths: Sequence[str], ids: Sequence[Any]) -> None:
    import pyarrow as pa
    from pyarrow import compute

    if len({column.type for column in ids}) > 1:
        ids = [column.cast(pa.string()) for column in ids]
    every = pa.chunked_array(
        [chunk for column in ids for chunk in column.chunks], ids[0].type)
    num_unique = len(compute.unique(every))
    pa.default_memory_pool().release_unused()
    if num_unique == len(every):
        return
    counts = compute.value_counts(every)
    often = counts.filter(compute.greater(counts.field('counts'), 1))
    twice = often.field('values')[0]
    where = [path for path, column in zip(paths, ids, strict=True)
             if compute.index(column, twice).as_py() >= 0]
    raise ValueError(
        f'{len(often)} ids of refs are there more than once, e.g. {twice} in '
        f'{" and ".join(where[:3])}; give each ref a unique one')


def _rows_to_keep(paths: Sequence[str],
                  keep: Callable[[list[dict]], list[dict]]
                  ) -> list[np.ndarray]:
    """Whether to keep each row, by file."""
    images, kept = [], []
    for path in paths:
        columns = read_group(path, open_parquet(path), None,
                             ['file_name', 'img_id'])
        images += [dict(image, at=(len(kept), row))
                   for row, image in enumerate(columns.to_pylist())]
        kept.append(np.zeros(len(columns), bool))
    for image in keep(images):
        file, row = image['at']
        kept[file][row] = True
    return kept
