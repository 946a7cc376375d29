# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import random

import numpy as np
import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmseg.registry import HOOKS

from cris.datasets.base import refer_datasets

_KEY = 'exact_resume'


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """A resumed run goes on as if it had never been interrupted.

    mmengine restores weights, optimizer, schedule and the logs. What is drawn
    at random is made here a function of the run's seed and the position: the
    sentences of a sample of its epoch and index, dropout of the iteration and
    the rank. So no state of a generator has to be saved, of whichever rank or
    worker. A checkpoint from the middle of an epoch goes on at the next batch
    (with :class:`ResumableSampler`), and a validation that was due and did
    not end is made up for, so that the best checkpoint is not missed.

    For epoch-based training; runs by iterations resume as in mmengine.
    """

    priority = 'LOWEST'

    def __init__(self):
        self._resumed: dict | None = None
        self._scored = -1  # epochs trained when the last validation ended
        self._epoch = -1
        self._first_iter = 0  # the iteration with which the epoch began

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume:
            self._resumed = checkpoint.get(_KEY)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        meta = checkpoint['meta']
        batches = 0
        if meta['epoch'] == self._epoch:
            batches = meta['iter'] - self._first_iter
        checkpoint[_KEY] = dict(
            batches=batches,
            samples=batches * self._samples_per_batch(runner),
            scored=self._scored)

    def before_train(self, runner: Runner) -> None:
        positions = all_gather_object((runner.epoch, runner.iter))
        if len(set(positions)) > 1:
            raise RuntimeError(
                'the processes resumed at different (epoch, iteration): '
                f'{positions}. They must see the same files in '
                f'{runner.work_dir}: name the checkpoint, --resume CKPT')
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        sampler = runner.train_dataloader.sampler
        randomness = runner.cfg.get('randomness', {})
        if randomness.get('seed') is None and not randomness.get(
                'diff_rank_seed'):
            # Built before the seed of the run was read from the checkpoint.
            sampler.seed = runner.seed
        if self._resumed is None:
            return
        self._scored = self._resumed['scored']
        if self._resumed['batches'] == 0:
            self._validate_if_due(runner)
        elif not hasattr(sampler, 'skip'):
            raise ValueError(
                'the checkpoint is from the middle of an epoch, where '
                f'{type(sampler).__name__} cannot begin: set '
                'train_dataloader.sampler.type=ResumableSampler, or resume '
                'from the end of an epoch')

    def before_train_epoch(self, runner: Runner) -> None:
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        for dataset in refer_datasets(runner.train_dataloader.dataset):
            dataset.worker_state.set_epoch(runner.seed, runner.epoch)
        self._epoch = runner.epoch
        self._first_iter = runner.iter
        if self._resumed is not None and self._resumed['batches']:
            self._first_iter -= self._resumed['batches']
            runner.train_dataloader.sampler.skip(
                self._resumed['samples'] // runner.world_size)
        self._resumed = None

    def before_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        numbers = np.random.SeedSequence(
            (runner.seed, runner.rank, runner.iter)).generate_state(3)
        random.seed(int(numbers[0]))
        np.random.seed(numbers[1])
        torch.manual_seed(int(numbers[2]))

    def after_val_epoch(self, runner: Runner, *args, **kwargs) -> None:
        self._scored = runner.epoch

    def _validate_if_due(self, runner: Runner) -> None:
        loop, epoch = runner.train_loop, runner.epoch
        due = (runner.val_loop is not None and epoch >= loop.val_begin
               and (epoch % loop.val_interval == 0
                    or epoch == loop.max_epochs))
        if due and self._scored != epoch:
            runner.logger.info(f'Epoch {epoch} was not validated to the end: '
                               'it is now.')
            runner.val_loop.run()

    def _samples_per_batch(self, runner: Runner) -> int:
        return runner.train_dataloader.batch_size * runner.world_size
