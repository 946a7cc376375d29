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

    :func:`data_workers` then says which files they were reading.

    With several processes, the others wait for the stalled one until the
    time-out of their group, and then end the run without the name of a file.
    So ``seconds`` must be well below ``env_cfg.dist_cfg.timeout``.

    Args:
        seconds (float): The longest time a batch may take. Defaults to 300.
    """

    def __init__(self, seconds: float = 300):
        self.seconds = seconds
        self._loaders: list[DataLoader] = []

    def files_being_read(self) -> list[str]:
        """The image that each worker of the watched loaders is reading."""
        return [
            f'  worker {worker}: {dataset.name_of(index)}'
            for loader in self._loaders
            for dataset in refer_datasets(loader.dataset) for worker, index in
            dataset.worker_state.samples_being_read().items()
        ]

    def _before_epoch(self, runner: Runner, mode: str = 'train') -> None:
        loader = getattr(runner, f'{mode}_dataloader')
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
def data_workers(runner: Runner) -> Iterator[None]:
    """Around a run: end its data workers, and explain their errors.

    The files that were being read are added to errors. Loaders that are left
    to the garbage collection fill the output with errors of their threads.

    Raises:
        DataWorkerError: In place of PyTorch's RuntimeError.
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
    finally:
        for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
            loader = getattr(loop, 'dataloader', None)  # or still a config
            if loader is not None and loader._iterator is not None:
                loader._iterator._shutdown_workers()
