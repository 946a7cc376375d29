# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Shared by the benchmarks: the model, its inputs, the clock, the output."""
import json
import logging
import multiprocessing
import platform
import re
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import mmcv
import mmengine
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from mmengine.utils import to_2tuple
from torch import Tensor, nn

import cris
from cris.datasets.tokenizer import tokenize
from cris.engine.precision import has_bfloat16
from cris.models.fast_cpu import reuse_memory

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
_SENTENCE = 'the woman in the red coat on the left'
# So that a GPU, too, reaches its rate.
_PRODUCT_SIZE = 2048 if DEVICE == 'cpu' else 8192


class Clock:
    """Times functions, and matrix products around them.

    Machines differ, and shared ones from minute to minute. So each run is
    also given as a *roofline ratio*: its time over the time that its FLOPs
    would take at the rate of matrix products measured around that run.

    Args:
        runs (int): The median of these is taken, after two that do not count.
        dtype (str): Of the products.
    """

    def __init__(self, runs: int, dtype: str = 'float32'):
        self.runs = runs
        self._factor = torch.randn(
            _PRODUCT_SIZE, _PRODUCT_SIZE, device=DEVICE).to(
                getattr(torch, dtype))

    def time(self, function: Callable) -> float:
        """Seconds of one call."""
        _synchronize()
        begin = time.perf_counter()
        function()
        _synchronize()
        return time.perf_counter() - begin

    def rate(self) -> float:
        """FLOPs per second of one product."""
        return 2 * _PRODUCT_SIZE**3 / self.time(
            lambda: self._factor @ self._factor)

    def measure(self, function: Callable,
                flops: float = 1) -> tuple[float, float]:
        """Medians of the seconds and of the ratio for these FLOPs."""
        for _ in range(2):
            function()
            before = self.rate()
        seconds, ratios = [], []
        for _ in range(self.runs):
            seconds.append(self.time(function))
            after = self.rate()
            ratios.append(seconds[-1] * (before + after) / 2 / flops)
            before = after
        return median(seconds), median(ratios)


def _synchronize() -> None:
    if DEVICE != 'cpu':
        torch.cuda.synchronize()


def time_parts(dataset: BaseDataset, indices: np.ndarray) -> dict[str, float]:
    """Milliseconds of CPU time for a sample, by the name of the step."""
    seconds: dict[str, float] = defaultdict(float)
    for i in indices:
        sample = int(i)
        for step in (dataset.get_data_info, *dataset.pipeline.transforms):
            start = time.process_time()
            sample = step(sample)
            name = getattr(step, '__name__', type(step).__name__)
            seconds[name] += time.process_time() - start
    return {name: 1000 * s / len(indices) for name, s in seconds.items()}


def random_model(cfg: Config, device: str = DEVICE) -> nn.Module:
    """With random weights: times do not depend on them."""
    cfg.model.backbone.init_cfg = None
    return cris.init_model(cfg, device=device, pretrained=False)


def make_inputs(cfg: Config, batch: int,
                expressions: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, tokens and image_index of ``predict_logits``."""
    images = torch.randn(batch, 3, *to_2tuple(cfg.image_size), device=DEVICE)
    tokens = tokenize([_SENTENCE] * batch * expressions, cfg.context_length)
    index = torch.arange(batch).repeat_interleave(expressions)
    return images, tokens.to(DEVICE), index.to(DEVICE)


def reset_peak() -> None:
    if DEVICE != 'cpu':
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Peak of the tensors on a GPU, or of the whole process on a CPU."""
    if DEVICE != 'cpu':
        return torch.cuda.max_memory_allocated()
    import resource  # not on Windows
    unit = 1 if platform.system() == 'Darwin' else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_own_process(function: Callable, *args: Any) -> Any:
    """Call it where no earlier measurement has used memory.

    This process must stay small: Linux counts the memory that it used before
    towards the peak of its children.
    """
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, context, _start,
                             [torch.get_num_threads()]) as pool:
        return pool.submit(function, *args).result()


def _start(threads: int) -> None:
    torch.set_num_threads(threads)
    if DEVICE == 'cpu':
        reuse_memory()  # as tools/train.py and test.py do
    torch.manual_seed(0)
    # Silences the learning rate of every parameter.
    MMLogger.get_current_instance().setLevel(logging.WARNING)


def describe_machine() -> str:
    """Processor, threads and versions."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists() and (found := re.search(
            r'^model name\s*: (.*)', cpuinfo.read_text(), re.MULTILINE)):
        name = found[1]
    if DEVICE != 'cpu':
        name = f'{torch.cuda.get_device_name()}; {name}'
    bf16 = ', bf16' if has_bfloat16() else ''
    return (f'{name} ({torch.backends.cpu.get_cpu_capability()}{bf16}), '
            f'{torch.get_num_threads()} threads; '
            f'Python {platform.python_version()}, torch {torch.__version__}, '
            f'mmcv {mmcv.__version__}, mmengine {mmengine.__version__}')


def report(args: Namespace, **tables: list[dict]) -> None:
    """Print tables in GitHub's Markdown, and write them to ``args.json``.

    Each row has the head of a column and its value.
    """
    machine = describe_machine()
    print(machine)
    for title, rows in tables.items():
        print(f'\n{title.capitalize()}\n')
        for line in (rows[0], ['---'] * len(rows[0]),
                     *(map(_text, row.values()) for row in rows)):
            print(f'| {" | ".join(line)} |')
    if args.json:
        Path(args.json).write_text(
            json.dumps(dict(machine=machine, **tables), indent=2))


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'
