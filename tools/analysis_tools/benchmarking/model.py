# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Speed and memory of a model, in inference and in training."""
import argparse
import os
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from cris import CRISInferencer
from cris.engine import avoid_fused, optimize_for_inference, use_bfloat16
from cris.engine.precision import has_bfloat16
from cris.models.fast_cpu import optimize_for_cpu_training

from . import measuring
from .flops import STAGES, count_flops
from .measuring import Case, Clock

_DTYPES = dict(bf16=torch.bfloat16, fp16=torch.float16)
_PHOTOGRAPH = (480, 640)  # pixels of an image of COCO
_GROWING = dict(
    expressions='expressions of one image',
    size='side of the image, pixels (1 expression)',
    batch='images at once (1 expression each)')


@torch.inference_mode()
def measure_inference(case: Case) -> dict:
    """Times of the stages and the whole, for each number of expressions."""
    cfg, model = measuring.prepare(case)
    parameters = sum(p.numel() for p in model.parameters())
    optimize_for_inference(model, case.precision, case.compile)
    clock = Clock(case.device, case.runs)
    measuring.reset_peak(case.device)
    rows = []
    for count in case.expressions:
        inputs = measuring.make_inputs(case, cfg, count)
        row = clock.measure(partial(model.predict_logits, *inputs))
        if case.with_stages:
            row.update((name, clock.measure(stage)['seconds'])
                       for name, stage in _stages(model, case, *inputs))
        rows.append(dict(row, expressions=count))
    matrix_rate = statistics.median(clock.rate() for _ in range(9))
    peak = measuring.peak_bytes(case.device)
    # At last, since it takes memory.
    with torch.inference_mode(False):  # torch 2.1 counts nothing in it
        _, model = measuring.prepare(case)
        flops = count_flops(model, *case.size, cfg.context_length)
    for row in rows:
        expressions = case.batch * row['expressions']
        row['ratio'] = row.pop('products') / expressions / flops['official']
    return dict(flops=flops, parameters=parameters, matrix_rate=matrix_rate,
                peak_bytes=peak, rows=rows)


def _stages(model: nn.Module, case: Case, images: Tensor, tokens: Tensor,
            index: Tensor) -> list[tuple[str, Callable]]:
    """Each part of a prediction, as a function of the results before it."""
    head, dtype = model.decode_head, _DTYPES.get(case.precision)
    autocast = torch.autocast(case.device, dtype) if dtype else nullcontext()
    stages = []

    def stage(name: str, function: Callable, *args, **kwargs):
        def call():
            with autocast:
                return function(*args, **kwargs)

        stages.append((name, call))
        return call()

    def masks(logits: Tensor):
        for part in logits.split(len(tokens) // len(images)):
            model.original_size(part, _PHOTOGRAPH).gt(head.threshold)

    features = stage('image', model.encode_image, images)
    words, sentence = stage('text', model.encode_text, tokens)
    x = stage('neck', model.neck.fuse, *(f[index] for f in features),
              sentence=sentence)
    decoder = head.decoder or (lambda x, **kwargs: x)
    x = stage('decoder', decoder, x, words=words, padding_mask=tokens == 0)
    logits = stage('head', head.projector, x, sentence)
    return [*stages, ('masks', partial(masks, logits))]


def measure_training(case: Case, official: int) -> dict:
    """Time and memory of an optimisation step of the config.

    It counts as three forward passes, each of ``official`` FLOPs.
    """
    before = measuring.peak_bytes(case.device)
    cfg, model = measuring.prepare(case)
    model.train()
    wrapper = cfg.optim_wrapper
    wrapper.type = 'OptimWrapper'
    if case.precision != 'fp32':
        wrapper.type = 'AmpOptimWrapper'
        wrapper.dtype = str(_DTYPES[case.precision]).removeprefix('torch.')
    if case.device == 'cpu':  # as tools/train.py does
        optimize_for_cpu_training(model)
        avoid_fused(cfg)
        if case.precision != 'fp32':
            use_bfloat16(cfg)
    optimizer = build_optim_wrapper(model, wrapper)
    loss = torch.compile(model.loss) if case.compile else model.loss
    (count, ) = case.expressions
    images, tokens, _ = measuring.make_inputs(case, cfg, count)
    masks = (torch.rand(count, *case.size, device=case.device) > 0.5).float()
    samples = [
        SegDataSample(
            metainfo=dict(tokens=part), gt_sem_seg=PixelData(data=masks))
        for part in tokens.split(count)
    ]

    def step():
        with optimizer.optim_context(model):
            losses = loss(images, samples)
        optimizer.update_params(model.parse_losses(losses)[0])

    clock = Clock(case.device, case.runs)
    measuring.reset_peak(case.device)
    measured = clock.measure(step)
    return dict(
        measured,
        ratio=measured.pop('products') / len(tokens) / (3 * official),
        expressions=count,
        images_per_second=case.batch / measured['seconds'],
        bytes_before_the_model=before,
        peak_bytes=measuring.peak_bytes(case.device))


def measure_api(case: Case, height: int, width: int) -> dict:
    """Seconds of a call with many expressions and of one with one.

    They take turns; both go from the picture to masks at its size.
    """
    _, model = measuring.prepare(case)
    inferencer = CRISInferencer(optimize_for_inference(model, case.precision))
    image = np.random.default_rng(0).integers(
        0, 256, (height, width, 3), dtype=np.uint8)
    (count, ) = case.expressions
    texts = [f'the person in row {i}' for i in range(count)]
    clock = Clock(case.device, case.runs)
    times = []
    for _ in range(1 + case.runs):  # the first one does not count
        one = clock.time(partial(inferencer, image, texts[0]))
        many = clock.time(partial(inferencer, image, texts))
        times.append((one, many, many / one / count))
    single, many, share = np.median(times[1:], axis=0).tolist()
    return dict(
        precision=case.precision, single=single, many=many, share=share)


def main(args: argparse.Namespace) -> None:
    case = measuring.case_of(args, compile=args.compile)
    measure = _api if args.api else _growth if args.growth else _tables
    machine = measuring.describe_machine(case.device, case.threads)
    figures = measure(args, case, machine)
    measuring.write_json(args.json, machine=machine, **figures)


def _tables(args: argparse.Namespace, case: Case, machine: str) -> dict:
    if args.train_batch and 'bf16' in args.precision and (
            case.device == 'cpu' and not has_bfloat16()):
        raise SystemExit(
            'error: this processor only emulates bfloat16, so training uses '
            'fp32: leave out --precision bf16, or use --train-batch 0')
    inference, training = {}, {}
    for precision in args.precision:
        variant = case._replace(precision=precision)
        inference[precision] = measuring.in_own_process(
            measure_inference,
            variant._replace(expressions=args.expressions or [1, 7, 20, 30]))
        if args.train_batch:
            training[precision] = measuring.in_own_process(
                measure_training, variant._replace(
                    batch=args.train_batch,
                    expressions=[args.train_expressions]),
                inference[precision]['flops']['official'])
    first = inference[args.precision[0]]
    flops = {name: f'{n / 1e9:.1f}' for name, n in first['flops'].items()}
    print(f'{os.path.basename(args.config)}, {case.size[0]} x {case.size[1]} '
          f'pixels, {first["parameters"] / 1e6:.2f} M parameters\n{machine}; '
          f'fp32 products at {first["matrix_rate"] / 1e9:.0f} GFLOP/s\n'
          f'GFLOPs of one expression: {flops["official"]} in the official '
          'code; here ' + ', '.join(f'{s} {flops[s]}' for s in STAGES))
    print('\nInference, one image\n')
    stages, rows = (*STAGES, 'masks'), []
    for precision, result in inference.items():
        for r in result['rows']:
            image = r['seconds'] + r['masks']
            times = [*(r[s] for s in stages), image, image / r['expressions']]
            rows.append([precision, r['expressions'],
                         *(f'{1e3 * t:.0f}' for t in times),
                         f'**{r["ratio"]:.2f}**'])
    measuring.print_table(
        ['precision', 'expressions', *(f'{s}, ms' for s in stages),
         'an image, ms', 'an expression, ms', '**ratio**'], rows)
    if training:
        print('\nTraining\n')
        measuring.print_table(
            ['precision', 'batch', 'expressions', 'step, s', 'images/s',
             'expressions/s', '**ratio**', 'peak memory, GB',
             'before the model, GB'],
            [[precision, args.train_batch, r['expressions'],
              f'{r["seconds"]:.2f}', f'{r["images_per_second"]:.2f}',
              f'{r["images_per_second"] * r["expressions"]:.2f}',
              f'**{r["ratio"]:.2f}**', f'{r["peak_bytes"] / 1e9:.2f}',
              f'{r["bytes_before_the_model"] / 1e9:.2f}']
             for precision, r in training.items()])
    return dict(
        case=case._asdict(), inference=inference, training=training)


def _api(args: argparse.Namespace, case: Case, machine: str) -> dict:
    case = case._replace(expressions=[args.api])
    rows = [
        measuring.in_own_process(
            measure_api, case._replace(precision=p), *args.picture)
        for p in args.precision
    ]
    height, width = args.picture
    print(f'{machine}; N = {args.api}, {height} x {width} pixels\n')
    measuring.print_table(
        ['precision', 'one call with 1, s', 'with N, s',
         'share of N single calls'],
        [[r['precision'], f'{r["single"]:.3f}', f'{r["many"]:.3f}',
          f'{r["share"]:.2f}'] for r in rows])
    return dict(rows=rows)


def _growth(args: argparse.Namespace, case: Case, machine: str) -> dict:
    """Each point is measured in a separate process."""
    case = case._replace(with_stages=False, expressions=[1])
    points = [('expressions', n, case._replace(expressions=[n]))
              for n in args.expressions or [1, 4, 8, 16, 32, 64]]
    points += [('size', n, case._replace(size=(n, n))) for n in args.sizes]
    points += [('batch', n, case._replace(batch=n)) for n in args.batches]
    results = {p: {what: [] for what in _GROWING} for p in args.precision}
    for precision in args.precision:
        for what, x, variant in points:
            measured = measuring.in_own_process(
                measure_inference, variant._replace(precision=precision))
            (row, ), peak = measured['rows'], measured['peak_bytes']
            results[precision][what].append(
                dict(x=x, seconds=row['seconds'], ratio=row['ratio'],
                     peak_bytes=peak))
            print(f'{precision}, {what} {x}: {row["seconds"]:.3f} s, ratio '
                  f'{row["ratio"]:.2f}, {peak / 1e9:.2f} GB', flush=True)
    _draw_growth(results, machine, args.growth)
    return dict(results=results)


def _draw_growth(results: dict, caption: str, path: str) -> None:
    """Time above, memory below, one column for each of what grows."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(13, 7), layout='constrained')
    axes = figure.subplots(2, len(_GROWING), sharex='col')
    for column, (what, label) in zip(axes.T, _GROWING.items(), strict=True):
        column[1].set_xlabel(label)
        for ax, key, unit in zip(
                column, ('seconds', 'peak_bytes'), (1, 1e9), strict=True):
            for precision, growing in results.items():
                ax.plot([p['x'] for p in growing[what]],
                        [p[key] / unit for p in growing[what]],
                        'o-', label=precision)
            ax.set_ylim(0, 1.1 * ax.dataLim.y1)
            ax.grid(alpha=0.3)
    axes[0, 0].legend()
    axes[0, 0].set_ylabel('time of a forward pass, s')
    axes[1, 0].set_ylabel('peak memory, GB')
    figure.suptitle(caption, fontsize='small')
    figure.savefig(path, dpi=100)
