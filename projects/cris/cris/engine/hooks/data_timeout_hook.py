# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch.utils.data import DataLoader

from cris.datasets.base import refer_datasets


@HOOKS.register_module()
class DataTimeoutHook(Hook):
    """End a run whose data workers have stalled, instead of waiting forever.

    :func:`explain_data_errors` then says which files they were reading.

    Args:
        seconds (float): The longest time a batch may take. Defaults to 600.
    """

    def __init__(self, seconds: float = 600):
        self.seconds = seconds
        self._loaders: list[DataLoader] = []

    def before_train_epoch(self, runner: Runner) -> None:
        self._watch(runner.train_dataloader)

    def before_val_epoch(self, runner: Runner) -> None:
        self._watch(runner.val_dataloader)

    def before_test_epoch(self, runner: Runner) -> None:
        self._watch(runner.test_dataloader)

    def files_being_read(self) -> list[str]:
        """The image that each worker of the watched loaders is reading."""
        lines = []
        for loader in self._loaders:
            for dataset in refer_datasets(loader.dataset):
                for worker, index in (
                        dataset.worker_state.samples_being_read().items()):
                    path = dataset.get_data_info(index)['img_path']
                    lines.append(f'  worker {worker}: {path}')
        return lines

    def _watch(self, loader: DataLoader) -> None:
        if loader.num_workers == 0 or loader in self._loaders:
            return
        self._loaders.append(loader)
        loader.timeout = self.seconds
        for dataset in refer_datasets(loader.dataset):
            dataset.worker_state.share()


class DataWorkerError(RuntimeError):
    """A data worker stalled or was killed."""

    kind = 'data-worker'


@contextmanager
def explain_data_errors(runner: Runner) -> Iterator[None]:
    """Add the files that were being read to errors of data workers.

    Args:
        runner (Runner): Its train() or test() is called in the block.

    Raises:
        DataWorkerError: In place of the RuntimeError that PyTorch raises
            when a worker stalls or is killed.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith('DataLoader'):
            raise
        files = [
            line for hook in runner.hooks if isinstance(hook, DataTimeoutHook)
            for line in hook.files_being_read()
        ]
        raise DataWorkerError(
            f'{error}\nFiles being read:\n' +
            ('\n'.join(files) or '  unknown') +
            '\nCheck the disk or the network they are on, or remove broken '
            'files. DataTimeoutHook(seconds=...) sets the longest wait.'
        ) from error
