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

    :func:`explain_data_errors` then says which files they were at.

    Args:
        seconds (float): How long a batch may take. Defaults to 600.
    """

    def __init__(self, seconds: float = 600):
        self.seconds = seconds

    def before_train_epoch(self, runner: Runner) -> None:
        self._set(runner.train_dataloader)

    def before_val_epoch(self, runner: Runner) -> None:
        self._set(runner.val_dataloader)

    def before_test_epoch(self, runner: Runner) -> None:
        self._set(runner.test_dataloader)

    def _set(self, loader: DataLoader) -> None:
        if loader.num_workers == 0:
            return
        loader.timeout = self.seconds
        for dataset in refer_datasets(loader.dataset):
            dataset.worker_state.share()


@contextmanager
def explain_data_errors(runner: Runner) -> Iterator[None]:
    """Add to an error of a data worker the files that were being read.

    Args:
        runner (Runner): Whose train() or test() is called within.

    Raises:
        RuntimeError: In place of the one that PyTorch raises when a worker
            stalls or is killed.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith('DataLoader'):
            raise
        files = _files_being_read(runner)
        raise RuntimeError(
            f'{error}\nFiles being read:\n' +
            ('\n'.join(files) or '  none is known') +
            '\nLook at the disk or the network they are on, or remove what '
            'is broken. DataTimeoutHook(seconds=...) sets how long is '
            'waited.') from error


def _files_being_read(runner: Runner) -> list[str]:
    lines = []
    for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
        if not hasattr(loop, 'dataloader'):  # not built
            continue
        for dataset in refer_datasets(loop.dataloader.dataset):
            for worker, index in (
                    dataset.worker_state.samples_being_read().items()):
                path = dataset.get_data_info(index)['img_path']
                lines.append(f'  worker {worker}: {path}')
    return lines
