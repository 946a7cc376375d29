# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Seeds of data workers, and the samples that they are reading."""
import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import get_worker_info

_MAX_WORKERS = 256


class WorkerState:
    """Memory shared with data workers: the epoch, and their current samples.

    Persistent workers run for many epochs, so they need shared memory to learn
    the epoch.
    """

    def __init__(self):
        self._state = torch.full((2 + _MAX_WORKERS, ), -1, dtype=torch.int64)
        self._seeded = False
        self._frozen = False
        self._rank = get_rank()  # unknown in a spawned worker

    def share(self) -> None:
        """Call before workers start; further calls have no effect."""
        self._state.share_memory_()

    def set_epoch(self, seed: int, epoch: int) -> None:
        """Make the draws of samples a function of seed and epoch."""
        self.share()
        self._state[0], self._state[1] = seed, epoch

    @contextmanager
    def reading(self, index: int, seeded: bool) -> Iterator[None]:
        """Record the sample that this worker is reading.

        If ``seeded``, seed the generators that transforms draw from: after
        :meth:`set_epoch` with the run's seed, epoch and sample, so that a
        resumed run draws the same; otherwise once per worker, with PyTorch's
        seed. (mmengine's is the same whenever workers start, so all their
        epochs would draw the same.)
        """
        worker = get_worker_info()
        if worker and not self._frozen:
            # Else garbage collection writes to, and so copies, all objects
            # that a forked worker shares: 120 MB.
            gc.freeze()
            self._frozen = True
        seed, epoch = self._state[:2].tolist()
        if seeded and epoch >= 0:
            _seed_generators((seed, epoch, index))
        elif seeded and worker and not self._seeded:
            _seed_generators((worker.seed, self._rank))
            self._seeded = True
        known = worker is not None and worker.id < _MAX_WORKERS
        if known:
            self._state[2 + worker.id] = index
        yield
        if known:
            self._state[2 + worker.id] = -1

    def samples_being_read(self) -> dict[int, int]:
        """Index of the sample that each worker is reading, by worker."""
        return {worker: index for worker, index in enumerate(
            self._state[2:].tolist()) if index >= 0}


def _seed_generators(numbers: tuple) -> None:
    first, second = np.random.SeedSequence(numbers).generate_state(2)
    np.random.seed(first)
    random.seed(int(second))
    # torch.manual_seed would seed the devices, too, which takes 1 ms.
    torch.default_generator.manual_seed(int(second))
