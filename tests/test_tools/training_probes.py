# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What tests put into a training, as a user's own module would."""
import atexit
import itertools
import json
import os
import re
import resource
import signal
import time
from pathlib import Path

import torch.distributed
from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmseg.registry import HOOKS, TRANSFORMS
from torch.nn.modules.batchnorm import _BatchNorm

from cris.engine.hooks.safe_checkpoint_hook import SafeCheckpointHook


@atexit.register  # called after what the commands register later
def report_group():
    state = 'kept' if torch.distributed.is_initialized() else 'left'
    tasks = Path('/proc/self/task').iterdir()
    names = [task.joinpath('comm').read_text() for task in tasks]
    threads = sum('gloo' in name for name in names)
    print(f'at exit the group is {state}, {threads} of its threads run')


@TRANSFORMS.register_module()
class Poison(BaseTransform):
    """One image is not a number."""

    def transform(self, packed: dict) -> dict:
        if packed['data_samples'].img_path.endswith('2.jpg'):
            packed['inputs'] = packed['inputs'] * float('nan')
        return packed


@TRANSFORMS.register_module()
class Stall(BaseTransform):
    """One image takes forever."""

    def transform(self, results: dict) -> dict:
        while results['img_path'].endswith('2.jpg'):
            time.sleep(1)
        return results


@HOOKS.register_module()
class Probe(Hook):
    """Writes loss and memory (MiB) of every iteration; freezes batch norm."""

    def __init__(self, freeze_norm: bool = False):
        self.freeze_norm = freeze_norm
        self.lines = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if not self.freeze_norm:
            return
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        status = Path('/proc/self/status').read_text()
        memory = int(re.search(r'VmRSS:\s+(\d+) kB', status)[1]) / 1024
        self.lines.append([float(outputs['loss']), memory])

    def after_train(self, runner):
        path = Path(runner.work_dir, f'probe_rank{runner.rank}.json')
        path.write_text(json.dumps(self.lines))


@HOOKS.register_module()
class LostDisk(Hook):
    """The second rank fails in the second epoch, while others wait for it."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and runner.epoch == 1:
            raise OSError('the disk of rank 1 is lost')


@HOOKS.register_module()
class BetterEveryEpoch(Hook):
    """With a kill, of which epoch and before what is given.

    Args:
        killed (int): The epoch. Defaults to 0, for none.
        before (str): 'val', or 'remove' of the best so far.
    """

    priority = 'HIGH'  # before the hook that saves checkpoints

    def __init__(self, killed: int = 0, before: str = 'remove'):
        self.killed = killed
        self.before = before

    def before_val(self, runner):
        if self.before == 'val' and runner.epoch == self.killed:
            os.kill(os.getpid(), signal.SIGKILL)

    def before_train(self, runner):
        if self.killed and self.before == 'remove':
            hook, = (h for h in runner.hooks
                     if isinstance(h, SafeCheckpointHook))
            hook._remove_replaced = lambda paths: (
                runner.epoch == self.killed and paths
                and os.kill(os.getpid(), signal.SIGKILL))

    def after_val_epoch(self, runner, metrics=None):
        metrics['mIoU'] = runner.epoch


@HOOKS.register_module()
class Fault(Hook):
    """Something happens to one rank, once: not again after a restart.

    Args:
        kind (str): 'kill'; 'slow', for two seconds; 'wait', for the file
            ``go`` in the work dir; or 'full disk', which takes no file larger
            than ``size`` bytes.
        rank (int): The rank.
        at (int): The iteration before which it happens. Defaults to -1, for
            the second batch of the first validation.
        size (int): For 'full disk'.
    """

    def __init__(self, kind: str, rank: int, at: int = -1, size: int = 0):
        self.kind, self.rank, self.at, self.size = kind, rank, at, size

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            self._happen(runner)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if self.at < 0 and batch_idx == 1:
            self._happen(runner)

    def _happen(self, runner):
        happened = Path(runner.work_dir, 'fault')
        if runner.rank != self.rank or happened.exists():
            return
        happened.touch()
        if self.kind == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == 'slow':
            time.sleep(2)
        elif self.kind == 'wait':
            while not Path(runner.work_dir, 'go').exists():
                time.sleep(0.05)
        elif self.kind == 'full disk':
            resource.setrlimit(resource.RLIMIT_FSIZE, [self.size] * 2)


@HOOKS.register_module()
class Seen(Hook):
    """Writes the refs of every iteration: a line of epoch and ids."""

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        refs = [int(ref) for sample in data_batch['data_samples']
                for ref in sample.ref_ids]
        path = Path(runner.work_dir, f'seen_rank{runner.rank}.jsonl')
        with path.open('a') as file:
            file.write(json.dumps([runner.epoch, *refs]) + '\n')


if 'RANK' in os.environ and os.environ['RANK'] == os.environ.get('NO_CLOCK'):
    # It is wrong by a day, by two when it is asked again, and so on.
    _real, _days = time.time, itertools.count(1)
    time.time = lambda: _real() + 86400 * next(_days)
