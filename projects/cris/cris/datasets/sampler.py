# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from itertools import islice
from typing import Iterator

from mmengine.dataset import DefaultSampler
from mmseg.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class ResumableSampler(DefaultSampler):
    """mmengine's, which can also begin in the middle of an epoch."""

    _skipped = 0

    def skip(self, num_samples: int) -> None:
        """Leave out the first samples of this rank, in the next epoch only.

        Args:
            num_samples (int): Samples of this rank that were seen already.
        """
        self._skipped = num_samples

    def __iter__(self) -> Iterator[int]:
        skipped, self._skipped = self._skipped, 0
        return islice(super().__iter__(), skipped, None)
