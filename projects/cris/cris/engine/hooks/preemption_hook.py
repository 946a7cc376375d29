# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import os
import os.path as osp
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.util import Finalize

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from cris.io.atomic import remove

from ..ranks import end_workers
from ..run_checkpoints import note_last_checkpoint, save_checkpoint

#: Exit status after SIGTERM: 128 + 15, as a shell reports it.
PREEMPTED = 128 + signal.SIGTERM
_PATIENCE = 60  # seconds after which a further SIGTERM is passed on


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On SIGTERM, save after the iteration and exit with status 143.

    The checkpoint is ``preempted.pth`` in the work dir; ``--resume`` finds it
    and goes on with the next batch. During validation nothing is saved: the
    checkpoint of the epoch is there, unless ``interval`` of the checkpoints
    is longer. SIGTERM to any rank is enough. Further ones are ignored
    for 60 seconds; after that, the handler from before the training takes
    over, and by default ends the process without a checkpoint.
    """

    priority = 'LOWEST'

    def __init__(self):
        self._requested = False
        self._previous = None
        self._requested_at = 0.0
        self._batches_of_all = 0

    def before_train(self, runner: Runner) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python handles signals only in the main thread
        self._previous = signal.signal(signal.SIGTERM, self._on_sigterm)
        for loop in filter(None, (runner.train_loop, runner.val_loop)):
            loader = loop.dataloader
            loader.worker_init_fn = partial(_ignore_sigterm,
                                            loader.worker_init_fn)
        Finalize(None, end_workers, exitpriority=1)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        if not self._any_rank_requested():
            return
        save_checkpoint(
            runner, runner.work_dir, 'preempted.pth', by_epoch=False,
            meta=dict(epoch=runner.epoch, iter=runner.iter + 1))
        if is_main_process():
            note_last_checkpoint(
                runner.work_dir, osp.join(runner.work_dir, 'preempted.pth'))
        self._exit(runner, 'preempted.pth is saved')

    def before_val(self, runner: Runner) -> None:
        batches = torch.tensor(len(runner.val_dataloader))
        all_reduce(batches, 'min')
        self._batches_of_all = int(batches)

    def after_val_iter(self, runner: Runner, batch_idx: int, *args,
                       **kwargs) -> None:
        # A rank with more batches than the others would wait for them forever.
        if batch_idx < self._batches_of_all and self._any_rank_requested():
            self._exit(runner, 'nothing is saved during validation')

    def after_train(self, runner: Runner) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        if is_main_process():
            remove(osp.join(runner.work_dir, 'preempted.pth'))

    def _on_sigterm(self, *_) -> None:
        # Launchers may send several at once. A SIGTERM more than _PATIENCE
        # seconds after the first means the loop is stuck: hand over to the
        # previous handler.
        now = time.monotonic()
        if self._requested and now - self._requested_at > _PATIENCE:
            signal.signal(signal.SIGTERM, self._previous)
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self._requested:
            self._requested, self._requested_at = True, now

    def _any_rank_requested(self) -> bool:
        requested = torch.tensor(int(self._requested))
        all_reduce(requested, 'max')
        return bool(requested)

    def _exit(self, runner: Runner, what: str) -> None:
        barrier()  # no rank ends before the file is written
        runner.logger.warning(f'SIGTERM: {what}; go on with --resume.')
        raise SystemExit(PREEMPTED)


def _ignore_sigterm(init_fn: Callable | None, worker_id: int) -> None:
    """For workers: launchers signal all, but the iteration needs them."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if init_fn is not None:
        init_fn(worker_id)
