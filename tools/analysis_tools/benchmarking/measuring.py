# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Shared by the benchmarks: the case, the model, the clock, the output."""
import argparse
import json
import logging
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import mmcv
import mmengine
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor, nn

import cris
from cris.datasets.tokenizer import tokenize
from cris.engine import load_config
from cris.engine.precision import has_bfloat16
from cris.models.fast_cpu import reuse_memory

_SENTENCE = 'the woman in the red coat on the left'
_PRODUCT_SIZE = 2048


class Case(NamedTuple):
    """What one process measures."""
    config: str
    cfg_options: list[str]
    device: str
    precision: str
    threads: int
    runs: int
    size: tuple[int, int]
    compile: bool = False
    batch: int = 1
    expressions: Sequence[int] = ()
    with_stages: bool = True


def case_of(args: argparse.Namespace, **options: Any) -> Case:
    """The case of the command line, in fp32, with further options."""
    size = load_config(args.config, args.cfg_options).image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    return Case(args.config, args.cfg_options, device_of(args), 'fp32',
                threads_of(args), args.runs, size, **options)


def device_of(args: argparse.Namespace) -> str:
    if args.command == 'export':
        return 'cpu'
    chosen = getattr(args, 'device', None)
    return chosen or ('cuda' if torch.cuda.is_available() else 'cpu')


def threads_of(args: argparse.Namespace) -> int:
    return args.threads or torch.get_num_threads()


class Clock:
    """Times functions, and matrix products around them.

    Machines differ, and shared ones from minute to minute. So each run is
    also given as a *roofline ratio*: its time over the time that its FLOPs
    would take at the rate of fp32 matrix products measured around that run.

    Args:
        device (str): Device of both.
        runs (int): The median of these is taken, after two that do not count.
    """

    def __init__(self, device: str, runs: int):
        self.device = device
        self.runs = runs
        self._factor = torch.randn(_PRODUCT_SIZE, _PRODUCT_SIZE, device=device)

    def time(self, function: Callable) -> float:
        """Seconds of one call."""
        self._synchronize()
        begin = time.perf_counter()
        function()
        self._synchronize()
        return time.perf_counter() - begin

    def _synchronize(self) -> None:
        if self.device != 'cpu':
            torch.cuda.synchronize()

    def rate(self) -> float:
        """FLOPs per second of one fp32 product."""
        return 2 * _PRODUCT_SIZE**3 / self.time(
            lambda: self._factor @ self._factor)

    def measure(self, function: Callable) -> dict[str, float]:
        """Medians of the seconds and of the FLOPs of matrix products that
        would take as long, ``products``."""
        for _ in range(2):
            function()
            self.rate()
        seconds, products = [], []
        before = self.rate()
        for _ in range(self.runs):
            seconds.append(self.time(function))
            after = self.rate()
            products.append(seconds[-1] * (before + after) / 2)
            before = after
        return dict(
            seconds=statistics.median(seconds),
            products=statistics.median(products))


def prepare(case: Case) -> tuple[Config, nn.Module]:
    """The config, and its model with random weights."""
    torch.set_num_threads(case.threads)
    if case.device == 'cpu':
        reuse_memory()  # as tools/train.py and test.py do
    torch.manual_seed(0)
    # Silences the learning rate of every parameter.
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    cfg = load_config(case.config, case.cfg_options)
    # Times do not depend on the weights.
    cfg.model.backbone.init_cfg = None
    return cfg, cris.init_model(cfg, device=case.device, pretrained=False)


def make_inputs(case: Case, cfg: Config,
                expressions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, tokens and image_index of ``predict_logits``."""
    images = torch.randn(case.batch, 3, *case.size, device=case.device)
    tokens = tokenize([_SENTENCE] * case.batch * expressions,
                      cfg.context_length).to(case.device)
    index = torch.arange(
        case.batch, device=case.device).repeat_interleave(expressions)
    return images, tokens, index


def reset_peak(device: str) -> None:
    if device != 'cpu':
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: str) -> int:
    """Peak of the tensors on a GPU, or of the whole process on a CPU."""
    if device != 'cpu':
        return torch.cuda.max_memory_allocated()
    import resource  # not on Windows
    unit = 1 if platform.system() == 'Darwin' else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_own_process(function: Callable, *args: Any) -> Any:
    """Call it where no earlier measurement has used memory."""
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def describe_machine(device: str, threads: int) -> str:
    """Processor, threads and versions, for the caption of a table."""
    name = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            name = next((line.split(':')[1].strip()
                         for line in file if line.startswith('model name')),
                        name)
    isa = torch.backends.cpu.get_cpu_capability()
    bf16 = ', bf16' if has_bfloat16() else ''
    if device != 'cpu':
        name = f'{torch.cuda.get_device_name()}; {name}'
    return (f'{name} ({isa}{bf16}), {threads} threads; '
            f'Python {platform.python_version()}, torch {torch.__version__}, '
            f'mmcv {mmcv.__version__}, mmengine {mmengine.__version__}')


def print_table(head: Sequence[str], rows: Iterable[Iterable]) -> None:
    """Print in GitHub's Markdown."""
    for line in (head, ['---'] * len(head), *rows):
        print(f'| {" | ".join(map(str, line))} |')


def write_json(path: str | None, **figures: Any) -> None:
    """Write all figures, unless the path is None."""
    if path is not None:
        with open(path, 'w', encoding='utf-8') as file:
            json.dump(figures, file, indent=2)
