# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import os
import os.path as osp
from glob import escape, glob

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from cris.io.atomic import PARTIAL, AtomicBackend, use_atomic_files

from ..latest_checkpoint import can_resume

# In the message hub, so in checkpoints: files that the best so far replaces.
_REPLACED = 'replaced_ckpts'


class _RemovesLater(AtomicBackend):
    """Adds to a list what it was to remove."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def remove(self, filepath: str) -> None:
        self.paths.append(filepath)

    rmtree = remove


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's, but no kill and no full disk costs what was saved before.

    mmengine removes the old checkpoint, then overwrites or writes the new
    one. Here the new one is written beside, renamed, and read back; only then
    the old one, or the best so far, is removed. Takes the same arguments.

    Raises:
        OSError: While saving, if the disk is full or what was written cannot
            be read.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        use_atomic_files()

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if is_main_process():  # of a run that was killed while saving
            for path in glob(osp.join(escape(self.out_dir), '*' + PARTIAL)):
                os.remove(path)
            hub = runner.message_hub
            self._remove_replaced(hub.runtime_info.get(_REPLACED, []))

    def _save_checkpoint_with_step(self, runner: Runner, step: int,
                                   meta: dict) -> None:
        """In place of mmengine's, which removes before it saves."""
        kept = []
        if self.max_keep_ckpts > 0:
            kept = [s for s in self.keep_ckpt_ids if s != step] + [step]
            # With those that will go: after a kill mmengine removes them.
            runner.message_hub.update_info('keep_ckpt_ids', kept)
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(kept)
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            osp.basename(self.last_ckpt),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args)
        if not is_main_process():
            return
        self._verify(self.last_ckpt)
        pointer = osp.join(runner.work_dir, 'last_checkpoint')
        self.file_backend.put_text(self.last_ckpt, pointer)
        for old in kept[:-self.max_keep_ckpts]:
            self._remove(self._path(old))

    def _save_best_checkpoint(self, runner: Runner,
                              metrics: dict[str, float]) -> None:
        replaced: list[str] = []
        runner.message_hub.update_info(_REPLACED, replaced)
        backend, self.file_backend = self.file_backend, _RemovesLater(replaced)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        for path in self._best() if replaced else ():
            self._verify(path)
        self._remove_replaced(replaced)

    def _best(self) -> list[str]:
        if self.save_best is None:
            return []
        paths = ([self.best_ckpt_path] if len(self.key_indicators) == 1 else
                 self.best_ckpt_path_dict.values())
        return [path for path in paths if path]

    def _remove_replaced(self, paths: list[str]) -> None:
        for path in paths:
            if path not in self._best():
                self._remove(path)

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir,
                                           self.filename_tmpl.format(step))

    def _verify(self, path: str) -> None:
        try:
            can_resume(path)
        except ValueError as error:
            raise OSError(
                f'{path} was written but cannot be read back ({error}): '
                'check the disk. The checkpoint before it is kept') from error

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)
