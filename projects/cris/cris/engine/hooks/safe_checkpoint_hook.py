# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import os.path as osp
from glob import escape, glob
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from cris.io.atomic import PARTIAL, remove

from ..run_checkpoints import note_last_checkpoint, save_checkpoint

# Key of the message hub (saved in checkpoints): files that a new best may
# replace.
_REPLACED = 'replaced_ckpts'


class _SafeRunner:
    """A runner whose checkpoints are written by :func:`save_checkpoint`."""

    def __init__(self, runner: Runner):
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, *args, **kwargs) -> None:
        save_checkpoint(self._runner, *args, **kwargs)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """A CheckpointHook that never loses the previous checkpoint to a kill or
    a full disk.

    mmengine removes the old checkpoint, then writes the new one. Here the new
    one is complete and verified before the old one, or the best so far, goes.

    Raises:
        OSError: While saving, if the disk is full or the written file cannot
            be read.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        hub = runner.message_hub
        # If a validation is repeated now, this checkpoint is to know the best.
        self.last_ckpt = hub.runtime_info.get('last_ckpt')
        if is_main_process():  # left by a run that was killed while saving
            for path in glob(osp.join(escape(self.out_dir), '*' + PARTIAL)):
                remove(path)
            self._remove_replaced(hub.runtime_info.get(_REPLACED, []))

    def _save_checkpoint(self, runner: Runner) -> None:
        super()._save_checkpoint(_SafeRunner(runner))

    def _save_checkpoint_with_step(self, runner: Runner, step: int,
                                   meta: dict) -> None:
        """Unlike mmengine's, save before removing."""
        kept = []
        if self.max_keep_ckpts > 0:
            kept = [s for s in self.keep_ckpt_ids if s != step] + [step]
            # Include those to be deleted, so that mmengine removes them if
            # we are killed here.
            runner.message_hub.update_info('keep_ckpt_ids', kept)
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = osp.join(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir, name, meta=meta, by_epoch=self.by_epoch,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler, **self.args)
        if is_main_process():
            note_last_checkpoint(runner.work_dir, self.last_ckpt)
            for old in kept[:-self.max_keep_ckpts]:
                remove(osp.join(self.out_dir, self.filename_tmpl.format(old)))

    def _save_best_checkpoint(self, runner: Runner,
                              metrics: dict[str, float]) -> None:
        if not self.save_best:
            return
        before = self._best()
        replaced = [path for path in before.values() if path]
        runner.message_hub.update_info(_REPLACED, replaced)
        # Hide the old best, or mmengine would delete it before the new one is
        # complete.
        self._set_best(dict.fromkeys(before))
        super()._save_best_checkpoint(_SafeRunner(runner), metrics)
        better = {key: path for key, path in self._best().items() if path}
        self._set_best({**before, **better})
        if is_main_process():
            self._remove_replaced(replaced)

    def _best(self) -> dict[str, str | None]:
        if len(self.key_indicators) == 1:
            return {'': self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    def _set_best(self, paths: dict[str, str | None]) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = paths['']
        else:
            self.best_ckpt_path_dict = paths

    def _remove_replaced(self, paths: list[str]) -> None:
        for path in paths:
            if path not in self._best().values():
                remove(path)
