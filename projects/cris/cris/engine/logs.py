# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Short logs and short errors for the commands of tools/."""
import json
import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import torch
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn
from torch.distributed import DistNetworkError

from cris.io.atomic import write_text
from cris.version import __version__

# Logged by mmengine at INFO or WARNING; the config is in the work dir, too.
_DETAILS = re.compile(
    r'\s*-*\s*System environment:|Config:|Hooks will be executed|'
    r'paramwise_options -- |Distributed training is not used, all Sync|'
    r'LR is set based on batch size|The prefix is not set in metric class|'
    r'\S+ is skipped since its requires_grad=False|.* will be deprecated')
_PARTS = {'backbone.visual.': 'image', 'backbone.text.': 'text',
          'neck.': 'neck', 'decode_head.': 'head',
          'auxiliary_head.': 'auxiliary head'}


def quiet_logs() -> None:
    """Log mmengine's details of the environment at level DEBUG only.

    mmengine creates its logger and logs in one constructor, so no filter can
    be added in between: a factory of log records lowers the level instead.
    ``log_level='DEBUG'`` shows them again. Warnings of deprecated functions
    are ignored unless ``python -W`` is used.
    """
    make = logging.getLogRecordFactory()

    def make_record(*args, **kwargs) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if record.name == 'mmengine' and _DETAILS.match(str(record.msg)):
            record.levelno, record.levelname = logging.DEBUG, 'DEBUG'
        return record

    logging.setLogRecordFactory(make_record)
    if not sys.warnoptions:
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings('ignore', category=category)


def log_run(runner: Runner) -> None:
    """Log experiment, device, seed and versions in one line."""
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else 'CPU'
    runner.logger.info(
        f'{runner.experiment_name} in {runner.work_dir}: '
        f'{runner.world_size} process(es), {device}, seed {runner.seed}, '
        f'cris {__version__}, PyTorch {torch.__version__}')


def log_trained(runner: Runner, model: nn.Module) -> None:
    """Log in one line how many parameters are trained, of all and by part."""
    counts: dict[str, list[int]] = {'all': [0, 0]}
    for name, weight in model.named_parameters():
        part = next((part for prefix, part in _PARTS.items()
                     if name.startswith(prefix)), 'others')
        for key in ('all', part):
            trained, total = counts.setdefault(key, [0, 0])
            counts[key] = [trained + weight.numel() * weight.requires_grad,
                           total + weight.numel()]
    trained, total = counts.pop('all')
    runner.logger.info(
        f'trained parameters: {_millions(trained, total)} '
        f'({100 * trained / max(1, total):.1f} %); ' + ', '.join(
            f'{part} {_millions(*count)}' for part, count in counts.items()))


def _millions(trained: int, total: int) -> str:
    return f'{trained / 1e6:.4g} of {total / 1e6:.4g} M'


@contextmanager
def short_errors() -> Iterator[SimpleNamespace]:
    """Exit with a one-line message for errors the user can fix.

    These are OSError, FloatingPointError, errors of the network between the
    processes, such as a port that is taken, and errors with a ``kind``; until
    ``running`` is set on what is yielded also ValueError and ImportError. The
    traceback is logged at level DEBUG.
    """
    phase = SimpleNamespace(running=False)
    try:
        yield phase
    except Exception as error:
        kinds = (OSError, FloatingPointError, DistNetworkError)
        if not phase.running:
            kinds += (ValueError, ImportError)
        if not isinstance(error, kinds) and not hasattr(error, 'kind'):
            raise
        print_log(traceback.format_exc(), 'current', logging.DEBUG)
        text = str(error)
        if text.startswith('Caught '):  # by a data worker, has a traceback
            text = re.split(rf'^(?:[\w.]+\.)?{type(error).__name__}: ', text,
                            flags=re.MULTILINE)[-1].strip()
        _tell_torchrun(text)
        raise SystemExit(f'error: {text}') from error


def _tell_torchrun(text: str) -> None:
    """torchrun ends its output with it, after what the other ranks print."""
    if path := os.environ.get('TORCHELASTIC_ERROR_FILE'):
        extra = dict(py_callstack=text, timestamp=str(int(time.time())))
        with suppress(OSError):
            write_text(path, json.dumps(
                dict(message=dict(message=text, extraInfo=extra))))
