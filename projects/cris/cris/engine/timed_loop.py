# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Training by a budget of minutes."""
import math
import time
from collections.abc import Sequence
from itertools import chain

import torch
from mmengine.config import Config
from mmengine.dist import broadcast
from mmengine.runner import EpochBasedTrainLoop
from mmseg.registry import LOOPS

# In the message hub, which a checkpoint keeps.
_ELAPSED, _CUT_SHORT = 'elapsed_seconds', 'cut_short'


@LOOPS.register_module()
class TimedTrainLoop(EpochBasedTrainLoop):
    """Trains for ``max_epochs`` epochs or ``max_minutes`` minutes, whichever
    takes less time.

    If the time is too short for the epochs, the learning rate schedules run
    faster: after half of the time they are where they would be after half of
    the epochs. Validations count, but for the last, which comes after the
    budget. A resumed run has the minutes that were left; one that had used
    them up ends at once.

    Args:
        *args: As of EpochBasedTrainLoop.
        max_minutes (float): More than 0.
        **kwargs: As of EpochBasedTrainLoop.

    Raises:
        ValueError: If max_minutes is not more than 0.
    """

    def __init__(self, *args, max_minutes: float, **kwargs):
        super().__init__(*args, **kwargs)
        if not 0 < max_minutes < math.inf:
            raise ValueError(
                f'max_minutes={max_minutes} must be more than 0')
        self.max_seconds = 60 * max_minutes
        self._planned = (self._max_epochs, self._max_iters)
        self._start = 0.0

    def run(self) -> torch.nn.Module:
        """Train."""
        known = self.runner.message_hub.runtime_info
        before = known.get(_ELAPSED, 0.0)
        self._start = time.monotonic() - before
        if before >= self.max_seconds and known.get(_CUT_SHORT):
            self._max_epochs = self._epoch
        return super().run()

    def run_epoch(self) -> None:
        """Train for an epoch, or until the time is over."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for index, batch in enumerate(self.dataloader):
            self.run_iter(index, batch)
            if self._iter >= self._max_iters:
                break
        if self._iter >= self._max_iters:  # validate and save as at the end
            self._max_epochs = self._epoch + 1
            self.runner.message_hub.update_info(_CUT_SHORT, True)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """Train on a batch; advance schedules and expected end by the time.
        """
        super().run_iter(idx, data_batch)
        elapsed = torch.tensor(time.monotonic() - self._start)
        broadcast(elapsed)  # all ranks must end together
        self.runner.message_hub.update_info(_ELAPSED, float(elapsed))
        share = min(1.0, float(elapsed) / self.max_seconds)
        max_epochs, max_iters = self._planned
        # What the log derives the time that is left from.
        self._max_iters = max(
            self._iter, min(max_iters, round(self._iter / share)))
        schedulers = self.runner.param_schedulers
        if isinstance(schedulers, dict):
            schedulers = list(chain(*schedulers.values()))
        ends_epoch = idx + 1 == len(self.dataloader)
        for scheduler in schedulers:
            steps = max_epochs if scheduler.by_epoch else max_iters
            due = min(int(share * steps), steps - 1)
            if scheduler.by_epoch and ends_epoch:
                due -= 1  # a hook is about to make one
            # Its last_step counts from the scheduler's own beginning.
            while scheduler._global_step < due:
                scheduler.step()


def use_budget(cfg: Config, max_minutes: float) -> None:
    """Train for max_minutes minutes at most.

    Raises:
        ValueError: If the training is by iterations.
    """
    train_cfg = cfg.train_cfg
    by_epoch = train_cfg.pop('by_epoch', True)
    kind = train_cfg.get('type', 'EpochBasedTrainLoop')
    if not by_epoch or kind not in ('EpochBasedTrainLoop', 'TimedTrainLoop'):
        raise ValueError('--max-minutes is for trainings by epochs: set '
                         'train_cfg.type=EpochBasedTrainLoop and max_epochs')
    train_cfg.update(type='TimedTrainLoop', max_minutes=max_minutes)
