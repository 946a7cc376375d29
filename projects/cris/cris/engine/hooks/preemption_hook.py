# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import atexit
import multiprocessing
import os
import os.path as osp
import signal
import threading

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch.utils.data import DataLoader

from ..atomic_files import use_atomic_files

#: Exit status after SIGTERM: 128 + 15, as a shell reports it.
PREEMPTED = 128 + signal.SIGTERM


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On SIGTERM, save after the iteration and exit with status 143.

    The checkpoint is ``preempted.pth`` in the work dir; ``--resume`` finds it
    and goes on with the next batch. During validation nothing is saved: the
    checkpoint of the epoch is there, or ``interval`` of the checkpoints was
    chosen to be longer. SIGTERM to any rank is enough.
    """

    priority = 'LOWEST'

    def __init__(self):
        self._asked = False
        self._previous = None
        use_atomic_files()

    def before_train(self, runner: Runner) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets no other thread handle signals
        self._previous = signal.signal(signal.SIGTERM, self._ask)
        _shield_workers(runner.train_dataloader)
        if runner.val_loop is not None:
            _shield_workers(runner.val_dataloader)
        atexit.register(_kill_workers)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        if not self._asked_any_rank():
            return
        runner.save_checkpoint(
            runner.work_dir,
            'preempted.pth',
            meta=dict(epoch=runner.epoch, iter=runner.iter + 1),
            by_epoch=False)
        self._leave(runner, 'preempted.pth is saved')

    def after_val_iter(self, runner: Runner, *args, **kwargs) -> None:
        if self._asked_any_rank():
            self._leave(runner, 'nothing is saved during validation')

    def after_train(self, runner: Runner) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        path = osp.join(runner.work_dir, 'preempted.pth')
        if is_main_process() and osp.isfile(path):
            os.remove(path)

    def _ask(self, *_) -> None:
        self._asked = True

    def _asked_any_rank(self) -> bool:
        asked = torch.tensor(int(self._asked))
        all_reduce(asked, 'max')
        return bool(asked)

    def _leave(self, runner: Runner, what: str) -> None:
        barrier()  # the others must not end before the file is written
        runner.logger.warning(f'SIGTERM: {what}; go on with --resume.')
        raise SystemExit(PREEMPTED)


class _IgnoreSIGTERM:
    """Data workers: a scheduler signals them, too, but they are needed."""

    def __init__(self, init_fn):
        self.init_fn = init_fn

    def __call__(self, worker_id: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.init_fn is not None:
            self.init_fn(worker_id)


def _shield_workers(loader: DataLoader) -> None:
    loader.worker_init_fn = _IgnoreSIGTERM(loader.worker_init_fn)


def _kill_workers() -> None:
    """They no longer heed the SIGTERM that Python ends them with."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
