# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Orders in which training reads samples; both can begin in mid-epoch."""
from collections.abc import Iterator
from itertools import islice, pairwise

import numpy as np
from mmengine.dataset import ConcatDataset, DefaultSampler
from mmseg.registry import DATA_SAMPLERS
from torch.utils.data import Dataset, Sampler

from .on_demand import RowSamples

_ANY = 8  # samples that are in no row group are in random order anyway


@DATA_SAMPLERS.register_module()
class ResumableSampler(DefaultSampler):
    """DefaultSampler that can start in the middle of an epoch."""

    _skipped = 0

    def skip(self, num_samples: int) -> None:
        """Leave out the first samples of this rank in the next epoch."""
        self._skipped = num_samples

    def __iter__(self) -> Iterator[int]:
        skipped, self._skipped = self._skipped, 0
        return islice(super().__iter__(), skipped, None)


@DATA_SAMPLERS.register_module()
class ShardBatchSampler(Sampler):
    """Batches in random order that read each row group of a file about once.

    All ranks draw the same order of the row groups, and cut it into one part
    per rank and each part into ``streams``. Within a stream, samples are
    mixed over ``window`` row groups. The streams deliver a batch in turn, and
    so do data workers: if there are as many, each reads its own row groups.
    The order is a function of seed, epoch, ranks, batch size, streams and
    window.

    Use it as ``train_dataloader.batch_sampler``. Row groups are those of
    datasets that are read on demand; samples of others are mixed freely.

    Args:
        sampler (DefaultSampler): Names dataset, seed, epoch, rank and whether
            to shuffle.
        batch_size (int): Samples of a batch.
        drop_last (bool): Leave out the last batch if it is smaller.
        streams (int): Streams of a rank; as many as its data workers.
        window (int, optional): Row groups over which samples are mixed; by
            default as many as a process keeps in memory.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(self,
                 sampler: DefaultSampler,
                 batch_size: int,
                 drop_last: bool = False,
                 streams: int = 4,
                 window: int | None = None):
        if min(batch_size, streams, window or 1) < 1:
            raise ValueError(
                f'batch_size={batch_size}, streams={streams} and '
                f'window={window} must be positive')
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.streams = streams
        self._sizes, in_memory = _row_groups(sampler.dataset)
        self.window = window or in_memory
        self._skipped = 0

    def skip(self, num_batches: int) -> None:
        """Leave out the first batches of this rank in the next epoch."""
        self._skipped = num_batches

    def __len__(self) -> int:
        samples = len(self.sampler)  # of this rank, the same for all
        rounding = 0 if self.drop_last else self.batch_size - 1
        return (samples + rounding) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        skipped, self._skipped = self._skipped, 0
        order, starts = self._order_of_rank()
        batches = -(-len(order) // self.batch_size)
        rng = np.random.default_rng(
            (self.sampler.seed, self.sampler.epoch, self.sampler.rank))
        # Whole batches for every stream; the last one gets the rest.
        ends = np.arange(1, self.streams + 1) * batches // self.streams
        cuts = (ends * self.batch_size).tolist()
        parts = [self._mix(order[begin:end], starts[begin:end], rng)
                 for begin, end in pairwise([0, *cuts])]
        dealt = (part[i:i + self.batch_size].tolist()
                 for i in range(0, cuts[-1], self.batch_size)
                 for part in parts if i < len(part))
        # A generator: DataLoader asks for two iterators and uses one.
        yield from islice(dealt, skipped, len(self))

    def _order_of_rank(self) -> tuple[np.ndarray, np.ndarray]:
        """Samples of this rank, and where in the order their group starts."""
        sampler, sizes = self.sampler, self._sizes
        firsts = np.cumsum(sizes) - sizes
        groups = np.arange(len(sizes))
        if sampler.shuffle:
            np.random.default_rng((sampler.seed, sampler.epoch)).shuffle(
                groups)
        ends = np.cumsum(sizes[groups])
        # As DefaultSampler: the first samples once more, if ranks need them.
        own = np.arange(sampler.num_samples) + (
            sampler.rank * sampler.num_samples)
        own %= ends[-1]
        at = np.searchsorted(ends, own, 'right')
        starts = (ends - sizes[groups])[at]
        return firsts[groups[at]] + own - starts, starts

    def _mix(self, order: np.ndarray, starts: np.ndarray,
             rng: np.random.Generator) -> np.ndarray:
        if not self.sampler.shuffle:
            return order
        span = self.window * self._sizes.max()
        return order[np.argsort(starts + rng.uniform(0, span, len(order)))]


def _row_groups(dataset: Dataset) -> tuple[np.ndarray, int]:
    """Samples of each row group, and how many a process keeps.

    A sample that is in none counts as one of its own.
    """
    if isinstance(dataset, ConcatDataset):
        sizes, kept = zip(*map(_row_groups, dataset.datasets), strict=True)
        return np.concatenate(sizes), min(kept)
    samples = getattr(dataset, 'data_list', None)
    if isinstance(samples, RowSamples):
        return samples.group_sizes(), samples.groups_in_memory()
    return np.ones(len(dataset), np.int64), _ANY
