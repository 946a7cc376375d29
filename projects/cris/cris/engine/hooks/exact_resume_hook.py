# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import json
import os.path as osp
import random
import uuid

import numpy as np
import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmseg.registry import HOOKS

from cris.datasets.base import refer_datasets
from cris.datasets.sampling import ShardBatchSampler
from cris.io.atomic import write_text

from ..param_groups import regroup

_KEY = 'exact_resume'
_VALIDATED = 'validated.json'
_STEP = 'samples per step'  # over all ranks


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """A resumed run goes on as if it had never been interrupted.

    mmengine restores weights, optimizer, schedule and the logs. Here all
    random draws become a function of the run's seed and the position (epoch
    and sample, or iteration and rank), so no generator's state is saved. With
    :class:`ResumableSampler` or :class:`ShardBatchSampler` a checkpoint from
    the middle of an epoch goes on at the next batch. With another number of
    ranks, too, if a step has as many samples; ShardBatchSampler then needs the
    same ranks, streams and window.

    The checkpoint of an epoch is saved before its validation. Which epochs
    were validated is therefore in ``validated.json`` in the work dir; an
    interrupted validation is repeated.

    For epoch-based training; runs by iterations resume as in mmengine.

    Raises:
        ValueError: Before training, if the rest of an epoch would be samples
            in another order, or the ranks resumed from different ones.
    """

    priority = 'LOWEST'

    def __init__(self):
        self._resumed: dict | None = None
        self._run = uuid.uuid4().hex  # stays the same when a run is resumed
        self._validated: list[int] = []  # epochs
        self._epoch = -1
        self._first_iter = 0  # the iteration with which the epoch began

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._resumed = checkpoint.get(_KEY)
        if 'optimizer' in checkpoint and isinstance(
                runner.optim_wrapper, OptimWrapper):
            regroup(checkpoint['optimizer'], runner.optim_wrapper.optimizer,
                    runner.model)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        meta = checkpoint['meta']
        batches = 0
        if meta['epoch'] == self._epoch:
            batches = meta['iter'] - self._first_iter
        order = _order(runner)
        checkpoint[_KEY] = dict(
            batches=batches, samples=batches * order[_STEP], order=order,
            run=self._run)

    def before_train(self, runner: Runner) -> None:
        positions = dist.all_gather_object((runner.epoch, runner.iter))
        if len(set(positions)) > 1:
            raise ValueError(
                'the processes resumed at different (epoch, iteration): '
                f'{positions}. They must see the same files in '
                f'{runner.work_dir}: name the checkpoint, --resume CKPT')
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        batch_sampler = runner.train_dataloader.batch_sampler
        sampler = batch_sampler.sampler
        randomness = runner.cfg.get('randomness', {})
        if randomness.get('seed') is None and not randomness.get(
                'diff_rank_seed'):
            # Built before the seed of the run was read from the checkpoint.
            sampler.seed = runner.seed
        if runner.iter == 0:  # load_from restores only weights
            self._resumed = None
        if self._resumed is None:
            return
        # Checkpoints of older versions have no 'run'.
        self._run = self._resumed.get('run', self._run)
        self._validated = self._read_validated(runner)
        self._write_validated(runner)
        if self._resumed['batches'] == 0:
            self._validate_if_due(runner)
        elif not hasattr(batch_sampler, 'skip') and not hasattr(
                sampler, 'skip'):
            raise ValueError(
                'the checkpoint is from the middle of an epoch, where '
                f'{type(sampler).__name__} cannot begin: set '
                'train_dataloader.sampler.type=ResumableSampler, or resume '
                'from the end of an epoch')
        self._check_order(runner, self._resumed)

    def before_train_epoch(self, runner: Runner) -> None:
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            return
        for dataset in refer_datasets(runner.train_dataloader.dataset):
            dataset.worker_state.set_epoch(runner.seed, runner.epoch)
        self._epoch = runner.epoch
        self._first_iter = runner.iter
        if self._resumed is not None and self._resumed['batches']:
            self._first_iter -= self._resumed['batches']
            self._skip(runner, self._resumed)
        self._resumed = None

    def _check_order(self, runner: Runner, position: dict) -> None:
        """Whether the samples of the epoch go on in the order it began with.

        At the end of an epoch, another number of samples per step is only
        warned of.
        """
        before = position.get('order')
        if before is None:  # by an earlier version
            before = {}
            if position['batches']:
                before[_STEP] = position['samples'] // position['batches']
        now = _order(runner)
        changed = [f'{name} were {before[name]}, now {now.get(name)}'
                   for name in before if before[name] != now.get(name)]
        if not changed:
            return
        if position['batches']:
            raise ValueError(
                'the checkpoint is from the middle of an epoch, the rest of '
                f'which would be another one now ({"; ".join(changed)}): set '
                'it as it was (samples per step = processes x '
                'train_dataloader.batch_size), or resume from the end of an '
                'epoch, --resume CKPT')
        if before[_STEP] != now[_STEP]:
            runner.logger.warning(
                f'{changed[0]}. The learning '
                'rate and its schedules by iteration stay those of the '
                'checkpoint.')

    def _skip(self, runner: Runner, position: dict) -> None:
        batch_sampler = runner.train_dataloader.batch_sampler
        if hasattr(batch_sampler, 'skip'):
            batch_sampler.skip(position['batches'])
        else:
            batch_sampler.sampler.skip(
                position['samples'] // runner.world_size)

    def before_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        numbers = np.random.SeedSequence(
            (runner.seed, runner.rank, runner.iter)).generate_state(3)
        random.seed(int(numbers[0]))
        np.random.seed(numbers[1])
        torch.manual_seed(int(numbers[2]))

    def after_val_epoch(self, runner: Runner, *args, **kwargs) -> None:
        if runner.epoch:  # not runner.val() without training
            self._validated.append(runner.epoch)
            self._write_validated(runner)

    def _write_validated(self, runner: Runner) -> None:
        if dist.is_main_process():
            record = dict(run=self._run, epochs=self._validated)
            write_text(osp.join(runner.work_dir, _VALIDATED),
                       json.dumps(record))

    def _read_validated(self, runner: Runner) -> list[int]:
        """Epochs that were validated before this position of this run."""
        epochs: list = [[]]
        path = osp.join(runner.work_dir, _VALIDATED)
        if dist.is_main_process() and osp.isfile(path):
            with open(path) as file:
                record = json.load(file)
            if record['run'] == self._run:
                epochs = [[e for e in record['epochs'] if e <= runner.epoch]]
        dist.broadcast_object_list(epochs)
        return epochs[0]

    def _validate_if_due(self, runner: Runner) -> None:
        loop, epoch = runner.train_loop, runner.epoch
        due = epoch % loop.val_interval == 0 or epoch == loop.max_epochs
        if (due and runner.val_loop is not None and epoch >= loop.val_begin
                and epoch not in self._validated):
            runner.logger.info(f'The validation of epoch {epoch} was '
                               'interrupted: it is repeated.')
            runner.val_loop.run()


def _order(runner: Runner) -> dict[str, int]:
    """What the order of samples depends on, besides seed and epoch."""
    batches = runner.train_dataloader.batch_sampler
    order = {_STEP: batches.batch_size * runner.world_size}
    if isinstance(batches, ShardBatchSampler):
        order.update(processes=runner.world_size, streams=batches.streams,
                     window=batches.window)
    return order
