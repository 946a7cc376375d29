# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Measure speed and memory of a model with random weights and pictures.

    python tools/analysis_tools/benchmark.py CONFIG --precision fp32 bf16

Every time is the median of several runs. Machines differ, and shared ones
from minute to minute: so each run is also given as a *roofline ratio*, its
time over the time that the official code's FLOPs for the same expressions
would take at the rate of fp32 matrix products (2048 x 2048), measured around
that run. Training counts as three forward passes.
"""
import argparse
import json
import logging
import multiprocessing
import os
import platform
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Callable, Dict, Iterable, List, NamedTuple, Tuple

import mmcv
import mmengine
import torch
from get_flops import STAGES, count_flops
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

import cris
from cris.datasets.tokenizer import tokenize
from cris.engine import (
    PRECISIONS,
    avoid_fused,
    load_config,
    optimize_for_inference,
    reuse_memory,
    use_bfloat16,
)

_SENTENCE = 'the woman in the red coat on the left'
_PRODUCT_SIZE = 2048


class Case(NamedTuple):
    """What one process measures."""
    config: str
    cfg_options: dict
    device: str
    precision: str
    threads: int
    runs: int
    size: Tuple[int, int]
    compile: bool = False
    batch: int = 1
    expressions: Tuple[int, ...] = ()
    with_stages: bool = True


class Clock:
    """Times functions, and matrix products around them.

    Args:
        device (str): Where both run.
        runs (int): Of which the median is taken, after two that do not count.
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
        """FLOPs a second of one fp32 product."""
        return 2 * _PRODUCT_SIZE**3 / self.time(
            lambda: self._factor @ self._factor)

    def measure(self, function: Callable, flops: float) -> Dict[str, float]:
        """Seconds, and their ratio to those of ``flops`` at the rate."""
        for _ in range(2):
            function()
            self.rate()
        seconds, ratios = [], []
        before = self.rate()
        for _ in range(self.runs):
            seconds.append(self.time(function))
            after = self.rate()
            ratios.append(seconds[-1] * (before + after) / 2 / flops)
            before = after
        return dict(
            seconds=statistics.median(seconds),
            ratio=statistics.median(ratios))


def prepare(case: Case) -> Tuple[Config, nn.Module]:
    """The config, and its model with random weights."""
    torch.set_num_threads(case.threads)
    if case.device == 'cpu':
        reuse_memory()  # as in tools/train.py and test.py
    torch.manual_seed(0)
    # Of the learning rate of every parameter.
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    cfg = load_config(case.config, case.cfg_options)
    # Times do not depend on the weights.
    cfg.model.backbone.init_cfg = None
    model = cris.init_model(cfg, device=case.device, pretrained=False)
    return cfg, model


def make_inputs(case: Case, cfg: Config,
                expressions: int) -> Tuple[Tensor, ...]:
    """Images, tokens and image_index of ``predict_logits``."""
    images = torch.randn(case.batch, 3, *case.size, device=case.device)
    tokens = tokenize([_SENTENCE] * case.batch * expressions,
                      cfg.context_length).to(case.device)
    index = torch.arange(
        case.batch, device=case.device).repeat_interleave(expressions)
    return images, tokens, index


@torch.inference_mode()
def measure_inference(case: Case) -> dict:
    """Times of the stages and of the whole, for each number of expressions."""
    cfg, model = prepare(case)
    with torch.inference_mode(False):  # torch 2.1 counts nothing there
        flops = count_flops(model.cpu(), *case.size, cfg.context_length)
    model.to(case.device)
    parameters = sum(p.numel() for p in model.parameters())
    optimize_for_inference(model, case.precision, case.compile)
    clock = Clock(case.device, case.runs)
    _reset_peak(case.device)
    rows = []
    for count in case.expressions:
        images, tokens, index = make_inputs(case, cfg, count)
        official = flops['official'] * len(tokens)
        predict = partial(model.predict_logits, images, tokens, index)
        row = clock.measure(predict, official)
        if case.with_stages:
            stages = _stages(model, case, images, tokens, index)
            row.update((name, clock.measure(stage, official)['seconds'])
                       for name, stage in stages.items())
        rows.append(dict(row, expressions=count))
    return dict(
        flops=flops,
        parameters=parameters,
        matrix_rate=statistics.median(clock.rate() for _ in range(9)),
        peak_bytes=_peak(case.device),
        rows=rows)


def _stages(model: nn.Module, case: Case, images: Tensor, tokens: Tensor,
            index: Tensor) -> Dict[str, Callable]:
    """The parts of a prediction, each as a function of what is before it."""
    head = model.decode_head
    dtype = dict(bf16=torch.bfloat16, fp16=torch.float16).get(case.precision)
    autocast = torch.autocast(case.device, dtype) if dtype else nullcontext()

    def image():
        return model.encode_image(images)

    def text():
        with autocast:
            return model.backbone.encode_text(tokens)

    features = [feature[index] for feature in image()]
    words, sentence = text()

    def neck():
        with autocast:
            return model.neck.fuse(*features, sentence=sentence)

    fused = neck()

    def decoder():
        if head.decoder is None:
            return fused
        with autocast:
            return head.decoder(
                fused, words=words, padding_mask=tokens == 0)

    decoded = decoder()

    def project():
        with autocast:
            return head.projector(decoded, sentence)

    logits = project()

    def masks():
        for own in logits.split(len(tokens) // len(images)):
            # A photograph of COCO has 480 x 640 pixels.
            model.original_size(own, (480, 640)).gt(head.threshold)

    functions = (image, text, neck, decoder, project)
    return dict(zip(STAGES, functions, strict=True), masks=masks)


def measure_training(case: Case) -> dict:
    """Time and memory of an optimisation step of the config."""
    before = _peak(case.device)
    cfg, model = prepare(case)
    flops = count_flops(model.cpu(), *case.size, cfg.context_length)
    model.to(case.device).train()
    cfg.optim_wrapper.type = 'OptimWrapper'
    if case.precision != 'fp32':
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        if case.device == 'cpu':
            use_bfloat16(cfg)
        else:
            cfg.optim_wrapper.dtype = dict(
                bf16='bfloat16', fp16='float16')[case.precision]
    avoid_fused(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    if case.compile:
        model.predict_logits = torch.compile(model.predict_logits)
    (count, ) = case.expressions
    images, tokens, _ = make_inputs(case, cfg, count)
    masks = (torch.rand(count, *case.size, device=case.device) > 0.5).float()
    samples = [
        SegDataSample(
            metainfo=dict(tokens=own), gt_sem_seg=PixelData(data=masks))
        for own in tokens.split(count)
    ]

    def step():
        with optimizer.optim_context(model):
            losses = model.loss(images, samples)
        optimizer.update_params(model.parse_losses(losses)[0])

    clock = Clock(case.device, case.runs)
    _reset_peak(case.device)
    measured = clock.measure(step, 3 * flops['official'] * len(tokens))
    return dict(
        measured,
        expressions=count,
        images_per_second=case.batch / measured['seconds'],
        bytes_before_the_model=before,
        peak_bytes=_peak(case.device))


def _reset_peak(device: str) -> None:
    if device != 'cpu':
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> int:
    """Bytes: of the device's tensors, or on a CPU of the whole process."""
    if device != 'cpu':
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == 'Darwin' else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_own_process(function: Callable, *args):
    """Memory that others have used before must not count."""
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
    bf16 = ', bf16' if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ''
    if device != 'cpu':
        name = f'{torch.cuda.get_device_name()}; {name}'
    return (f'{name} ({isa}{bf16}), {threads} threads; '
            f'Python {platform.python_version()}, torch {torch.__version__}, '
            f'mmcv {mmcv.__version__}, mmengine {mmengine.__version__}')


def markdown_table(head: List[str], rows: Iterable[Iterable[str]]) -> str:
    """As GitHub shows it."""
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def inference_table(results: Dict[str, dict]) -> str:
    """Of :func:`measure_inference`, by precision."""
    head = [
        'precision', 'expressions', *(f'{stage}, ms' for stage in STAGES),
        'masks, ms', 'an image, ms', 'an expression, ms', '**ratio**'
    ]
    rows = []
    for precision, result in results.items():
        for row in result['rows']:
            stages = [row[stage] for stage in (*STAGES, 'masks')]
            image = row['seconds'] + row['masks']
            times = [*stages, image, image / row['expressions']]
            rows.append([
                precision,
                str(row['expressions']), *(f'{1e3 * t:.0f}' for t in times),
                f'**{row["ratio"]:.2f}**'
            ])
    return markdown_table(head, rows)


def training_table(results: Dict[str, dict], batch: int) -> str:
    """Of :func:`measure_training`, by precision."""
    rows = [[
        precision,
        str(batch),
        str(r['expressions']), f'{r["seconds"]:.2f}',
        f'{r["images_per_second"]:.2f}',
        f'{batch * r["expressions"] / r["seconds"]:.2f}',
        f'**{r["ratio"]:.2f}**', f'{r["peak_bytes"] / 1e9:.2f}',
        f'{r["bytes_before_the_model"] / 1e9:.2f}'
    ] for precision, r in results.items()]
    return markdown_table([
        'precision', 'batch', 'expressions', 'step, s', 'images/s',
        'expressions/s', '**ratio**', 'peak memory, GB', 'before the model, GB'
    ], rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this tool shares with benchmark_growth.py."""
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--device',
        choices=['cpu', 'cuda'],
        default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--precision', nargs='+', choices=PRECISIONS, default=['fp32'])
    parser.add_argument(
        '--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--runs', type=int, default=5)
    parser.add_argument('--json', help='write all figures to this file')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={})


def case_of(args: argparse.Namespace) -> Case:
    """What the arguments of :func:`add_arguments` ask for, in fp32."""
    size = load_config(args.config, args.cfg_options).image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    return Case(args.config, args.cfg_options, args.device, 'fp32',
                args.threads, args.runs, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add_arguments(parser)
    parser.add_argument(
        '--expressions',
        type=int,
        nargs='+',
        default=[1, 7, 20, 30],
        help='expressions of one image')
    parser.add_argument(
        '--train-batch',
        type=int,
        default=4,
        help='images of a training step; 0 measures none')
    parser.add_argument(
        '--train-expressions',
        type=int,
        default=1,
        help='expressions of each image in training')
    parser.add_argument(
        '--compile', action='store_true', help='use torch.compile')
    args = parser.parse_args()
    case = case_of(args)._replace(compile=args.compile)

    inference, training = {}, {}
    for precision in args.precision:
        own = case._replace(precision=precision)
        inference[precision] = in_own_process(
            measure_inference,
            own._replace(expressions=tuple(args.expressions)))
        if args.train_batch:
            training[precision] = in_own_process(
                measure_training,
                own._replace(
                    batch=args.train_batch,
                    expressions=(args.train_expressions, )))
    machine = describe_machine(args.device, args.threads)
    first = inference[args.precision[0]]
    flops = {name: count / 1e9 for name, count in first['flops'].items()}
    print(f'{os.path.basename(args.config)}, {case.size[0]} x {case.size[1]} '
          f'pixels, {first["parameters"] / 1e6:.2f} M parameters\n{machine}; '
          f'fp32 products at {first["matrix_rate"] / 1e9:.0f} GFLOP/s\n'
          f'GFLOPs of one expression: {flops["official"]:.1f} in the official '
          'code; here ' +
          ', '.join(f'{stage} {flops[stage]:.1f}' for stage in STAGES) +
          '\n\nInference, one image\n')
    print(inference_table(inference))
    if training:
        print(f'\nTraining\n\n{training_table(training, args.train_batch)}')
    if args.json:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(
                dict(
                    machine=machine,
                    case=case._asdict(),
                    inference=inference,
                    training=training),
                file,
                indent=2)


if __name__ == '__main__':
    main()
