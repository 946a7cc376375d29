# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import json
import os.path as osp
from collections.abc import Callable
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import Tensor

_NOTED = ('img_path', 'img_id', 'ref_ids', 'sent_ids', 'expressions')


class CheckedOptimWrapper(OptimWrapper):
    """Proxy of any wrapper that skips updates with ``check(loss)`` false."""

    def __init__(self, wrapped: OptimWrapper, check: Callable[[Tensor], bool]):
        self.__dict__.update(wrapped=wrapped, check=check)

    def __getattribute__(self, name: str) -> Any:
        if name in ('__class__', '__dict__', 'update_params'):
            return super().__getattribute__(name)
        attrs = super().__getattribute__('__dict__')
        if name in attrs:
            return attrs[name]
        return getattr(attrs['wrapped'], name)

    def update_params(self, loss: Tensor, *args, **kwargs) -> None:
        if self.check(loss):
            self.wrapped.update_params(loss, *args, **kwargs)


@HOOKS.register_module()
class CheckLossHook(Hook):
    """Stop where the loss is not finite, or skip the batch on all ranks.

    To skip, the loss must be known before the backward pass: a GPU then waits
    for the processor in every iteration. To stop, it is read after the step.

    Paths, ids and expressions of the batch are written to
    ``nonfinite_loss_iter<I>_rank<R>.json`` in the work dir. A skipped batch
    leaves no trace in the model: no gradient is taken, and the statistics of
    batch norm are restored. The number of skipped batches is in the log and,
    as ``num_skipped_batches``, in the checkpoints.

    Args:
        action (str): 'stop' or 'skip'.
        max_in_a_row (int): More skipped batches in a row end the run, since
            the model itself is then the cause.

    Raises:
        FloatingPointError: In training, to end the run.
    """

    def __init__(self, action: str = 'stop', max_in_a_row: int = 10):
        if action not in ('stop', 'skip'):
            raise ValueError(f"action={action!r} must be 'stop' or 'skip'")
        self.action = action
        self.max_in_a_row = max_in_a_row
        self._batch: dict | None = None
        self._buffers: list[Tensor] = []
        self._in_a_row = 0

    def before_train(self, runner: Runner) -> None:
        if self.action == 'skip':
            # The only hook point between loss and step, for every wrapper.
            runner.optim_wrapper = CheckedOptimWrapper(
                runner.optim_wrapper,
                lambda loss: self._check_loss(runner, loss))

    def after_train(self, runner: Runner) -> None:
        if self.action == 'skip':
            runner.optim_wrapper = runner.optim_wrapper.wrapped

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: dict | None = None) -> None:
        self._batch = data_batch
        if self.action == 'skip':
            self._buffers = [b.clone() for b in runner.model.buffers()]

    def after_train_iter(self, runner: Runner, batch_idx: int,
                         data_batch: dict | None = None,
                         outputs: dict | None = None) -> None:
        if self.action == 'stop':  # earlier, the GPU would have to wait
            self._check_loss(runner, outputs['loss'])

    def _check_loss(self, runner: Runner, loss: Tensor) -> bool:
        bad_here = not bool(torch.isfinite(loss))
        bad = torch.tensor(int(bad_here), device=loss.device)
        all_reduce(bad, 'max')
        if not bad:
            self._in_a_row = 0
            return True
        where = 'another rank has written its samples'
        if bad_here:
            try:
                where = f'see {self._write(runner, loss)}'
            except OSError as error:  # a full disk
                where = f'its samples could not be written: {error}'
        message = (f'the loss of iteration {runner.iter + 1} is not finite: '
                   f'{where}')
        self._in_a_row += 1
        if self.action == 'stop' or self._in_a_row > self.max_in_a_row:
            raise FloatingPointError(
                f'{message}. Look at these samples; if they are fine, lower '
                'the learning rate or clip the gradient. '
                'CheckLossHook(action="skip") skips up to '
                f'{self.max_in_a_row} such batches in a row')
        hub = runner.message_hub
        skipped = hub.runtime_info.get('num_skipped_batches', 0) + 1
        hub.update_info('num_skipped_batches', skipped)
        runner.logger.warning(
            f'{message}; the batch is skipped, {skipped} in total')
        for buffer, before in zip(
                runner.model.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        return False

    def _write(self, runner: Runner, loss: Tensor) -> str:
        path = osp.join(
            runner.work_dir,
            f'nonfinite_loss_iter{runner.iter + 1}_rank{runner.rank}.json')
        samples = [
            {key: sample.get(key) for key in _NOTED if key in sample}
            for sample in self._batch['data_samples']
        ]
        record = dict(loss=str(loss.item()), epoch=runner.epoch + 1,
                      iter=runner.iter + 1, samples=samples)
        with open(path, 'w') as file:
            json.dump(record, file, indent=2)
        return path
