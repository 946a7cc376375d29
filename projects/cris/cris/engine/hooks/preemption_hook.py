# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import multiprocessing
import os
import os.path as osp
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.util import Finalize

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import Tensor

from cris.io.atomic import remove

from ..run_checkpoints import save_checkpoint

#: Exit status after SIGTERM: 128 + 15, as a shell reports it.
PREEMPTED = 128 + signal.SIGTERM
_PATIENCE = 60  # seconds between the first SIGTERM and one that kills


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On SIGTERM, save after the iteration and exit with status 143.

    The checkpoint is ``preempted.pth`` in the work dir; ``--resume`` finds it
    and goes on with the next batch. During validation nothing is saved: the
    checkpoint of the epoch is there, unless ``interval`` of the checkpoints
    is longer. SIGTERM to any rank is enough.
    """

    priority = 'LOWEST'

    def __init__(self):
        self._asked = False
        self._previous = None
        self._asked_at = 0.0
        self._batches_of_all = 0

    def before_train(self, runner: Runner) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets no other thread handle signals
        self._previous = signal.signal(signal.SIGTERM, self._ask)
        closing = torch.zeros((), dtype=torch.int32).share_memory_()
        for loop in filter(None, (runner.train_loop, runner.val_loop)):
            loader = loop.dataloader
            loader.worker_init_fn = _Shielded(loader.worker_init_fn, closing)
        Finalize(None, _end_workers, (closing, ), exitpriority=1)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        if not self._asked_any_rank():
            return
        save_checkpoint(
            runner,
            runner.work_dir,
            'preempted.pth',
            meta=dict(epoch=runner.epoch, iter=runner.iter + 1),
            by_epoch=False)
        self._leave(runner, 'preempted.pth is saved')

    def before_val(self, runner: Runner) -> None:
        batches = torch.tensor(len(runner.val_dataloader))
        all_reduce(batches, 'min')
        self._batches_of_all = int(batches)

    def after_val_iter(self, runner: Runner, batch_idx: int, *args,
                       **kwargs) -> None:
        # A rank with more batches than another would wait for its answer.
        if batch_idx < self._batches_of_all and self._asked_any_rank():
            self._leave(runner, 'nothing is saved during validation')

    def after_train(self, runner: Runner) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        if is_main_process():
            remove(osp.join(runner.work_dir, 'preempted.pth'))

    def _ask(self, *_) -> None:
        # Launchers may send several at once. One that comes much later finds
        # a process that trains no more, or it would have ended.
        now = time.monotonic()
        if self._asked and now - self._asked_at > _PATIENCE:
            signal.signal(signal.SIGTERM, self._previous)
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self._asked:
            self._asked, self._asked_at = True, now

    def _asked_any_rank(self) -> bool:
        asked = torch.tensor(int(self._asked))
        all_reduce(asked, 'max')
        return bool(asked)

    def _leave(self, runner: Runner, what: str) -> None:
        barrier()  # no rank ends before the file is written
        runner.logger.warning(f'SIGTERM: {what}; go on with --resume.')
        raise SystemExit(PREEMPTED)


class _Shielded:
    """Data workers ignore a SIGTERM to the whole group: they are needed."""

    def __init__(self, init_fn: Callable | None, closing: Tensor):
        self.init_fn = init_fn
        self.closing = closing

    def __call__(self, worker_id: int) -> None:
        signal.signal(signal.SIGTERM, self._on_sigterm)
        if self.init_fn is not None:
            self.init_fn(worker_id)

    def _on_sigterm(self, *_) -> None:
        if self.closing:
            os._exit(0)


def _end_workers(closing: Tensor) -> None:
    """Called before Python sends its children SIGTERM and waits for them."""
    closing.fill_(1)
    workers = [c for c in multiprocessing.active_children() if c.daemon]
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(2)
        if worker.is_alive():
            worker.kill()
