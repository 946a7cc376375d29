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

from .flops import STAGES, count_flops
from .measuring import (
    Case,
    Clock,
    case_of,
    describe_machine,
    in_own_process,
    make_inputs,
    peak_bytes,
    prepare,
    print_table,
    reset_peak,
    write_json,
)

_PHOTOGRAPH = (480, 640)  # pixels of a picture of COCO
_GROWING = dict(
    expressions='expressions of one image',
    size='side of the image, pixels (1 expression)',
    batch='images at once (1 expression each)')


@torch.inference_mode()
def measure_inference(case: Case) -> dict:
    """Times of the stages and the whole, for each number of expressions."""
    cfg, model = prepare(case)
    with torch.inference_mode(False):  # torch 2.1 counts nothing in it
        flops = count_flops(model.cpu(), *case.size, cfg.context_length)
    model.to(case.device)
    parameters = sum(p.numel() for p in model.parameters())
    optimize_for_inference(model, case.precision, case.compile)
    clock = Clock(case.device, case.runs)
    reset_peak(case.device)
    rows = []
    for count in case.expressions:
        inputs = make_inputs(case, cfg, count)
        official = flops['official'] * case.batch * count
        row = clock.measure(partial(model.predict_logits, *inputs), official)
        if case.with_stages:
            row.update((name, clock.measure(stage, official)['seconds'])
                       for name, stage in _stages(model, case, *inputs))
        rows.append(dict(row, expressions=count))
    return dict(
        flops=flops,
        parameters=parameters,
        matrix_rate=statistics.median(clock.rate() for _ in range(9)),
        peak_bytes=peak_bytes(case.device),
        rows=rows)


def _stages(model: nn.Module, case: Case, images: Tensor, tokens: Tensor,
            index: Tensor) -> list[tuple[str, Callable]]:
    """Each part of a prediction, as a function of the results before it."""
    head = model.decode_head
    dtype = dict(bf16=torch.bfloat16, fp16=torch.float16).get(case.precision)
    autocast = torch.autocast(case.device, dtype) if dtype else nullcontext()
    stages = []

    def stage(name: str, function: Callable, *args, **kwargs):
        def call():
            with autocast:
                return function(*args, **kwargs)

        stages.append((name, call))
        return call()

    features = stage('image', model.encode_image, images)
    words, sentence = stage('text', model.encode_text, tokens)
    x = stage('neck', model.neck.fuse, *(f[index] for f in features),
              sentence=sentence)
    if head.decoder is None:
        stages.append(('decoder', lambda: None))
    else:
        x = stage('decoder', head.decoder, x, words=words,
                  padding_mask=tokens == 0)
    logits = stage('head', head.projector, x, sentence)

    def masks():
        for own in logits.split(len(tokens) // len(images)):
            model.original_size(own, _PHOTOGRAPH).gt(head.threshold)

    return [*stages, ('masks', masks)]


def measure_training(case: Case) -> dict:
    """Time and memory of an optimisation step of the config.

    It counts as three forward passes.
    """
    before = peak_bytes(case.device)
    cfg, model = prepare(case)
    flops = count_flops(model.cpu(), *case.size, cfg.context_length)
    model.to(case.device).train()
    # As tools/train.py prepares a model on a CPU, before the optimizer:
    # (nothing yet)
    cfg.optim_wrapper.type = 'OptimWrapper'
    if case.precision != 'fp32':
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        if case.device == 'cpu':
            use_bfloat16(cfg)
        else:
            cfg.optim_wrapper.dtype = dict(
                bf16='bfloat16', fp16='float16')[case.precision]
    if case.device == 'cpu':
        avoid_fused(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    loss = torch.compile(model.loss) if case.compile else model.loss
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
            losses = loss(images, samples)
        optimizer.update_params(model.parse_losses(losses)[0])

    clock = Clock(case.device, case.runs)
    reset_peak(case.device)
    measured = clock.measure(step, 3 * flops['official'] * len(tokens))
    return dict(
        measured,
        expressions=count,
        images_per_second=case.batch / measured['seconds'],
        bytes_before_the_model=before,
        peak_bytes=peak_bytes(case.device))


def print_inference(results: dict[str, dict]) -> None:
    """The table of :func:`measure_inference`, by precision."""
    rows = []
    for precision, result in results.items():
        for row in result['rows']:
            image = row['seconds'] + row['masks']
            times = [
                *(row[stage] for stage in (*STAGES, 'masks')), image,
                image / row['expressions']
            ]
            rows.append([
                precision, str(row['expressions']),
                *(f'{1e3 * t:.0f}' for t in times), f'**{row["ratio"]:.2f}**'
            ])
    print_table([
        'precision', 'expressions', *(f'{stage}, ms' for stage in STAGES),
        'masks, ms', 'an image, ms', 'an expression, ms', '**ratio**'
    ], rows)


def print_training(results: dict[str, dict], batch: int) -> None:
    """The table of :func:`measure_training`, by precision."""
    print_table([
        'precision', 'batch', 'expressions', 'step, s', 'images/s',
        'expressions/s', '**ratio**', 'peak memory, GB', 'before the model, GB'
    ], [[
        precision, str(batch), str(r['expressions']), f'{r["seconds"]:.2f}',
        f'{r["images_per_second"]:.2f}',
        f'{batch * r["expressions"] / r["seconds"]:.2f}',
        f'**{r["ratio"]:.2f}**', f'{r["peak_bytes"] / 1e9:.2f}',
        f'{r["bytes_before_the_model"] / 1e9:.2f}'
    ] for precision, r in results.items()])


def measure_api(case: Case, height: int, width: int) -> dict:
    """Seconds of one call with many expressions and of one with one.

    They take turns; both go from the picture to masks at its size.
    """
    _, model = prepare(case)
    inferencer = CRISInferencer(optimize_for_inference(model, case.precision))
    image = np.random.default_rng(0).integers(
        0, 256, (height, width, 3), dtype=np.uint8)
    (count, ) = case.expressions
    texts = [f'the person in row {i}' for i in range(count)]
    clock = Clock(case.device, case.runs)
    times = []
    for _ in range(1 + case.runs):  # the first one does not count
        one = clock.time(lambda: inferencer(image, texts[0]))
        many = clock.time(lambda: inferencer(image, texts))
        times.append((one, many, many / one / count))
    single, many, share = np.median(times[1:], axis=0).tolist()
    return dict(
        precision=case.precision, single=single, many=many, share=share)


def grow(args: argparse.Namespace, base: Case) -> dict:
    """Points by precision and by what grows, each in a process of its own."""
    cases = dict(
        expressions=[(n, base._replace(expressions=(n, )))
                     for n in args.expressions or (1, 4, 8, 16, 32, 64)],
        size=[(n, base._replace(size=(n, n))) for n in args.sizes],
        batch=[(n, base._replace(batch=n)) for n in args.batches])
    results: dict = {}
    for precision in args.precision:
        for what, growing in cases.items():
            points = results.setdefault(precision, {}).setdefault(what, [])
            for x, case in growing:
                measured = in_own_process(
                    measure_inference, case._replace(precision=precision))
                (row, ) = measured['rows']
                peak = measured['peak_bytes']
                points.append(
                    dict(
                        x=x,
                        seconds=row['seconds'],
                        ratio=row['ratio'],
                        peak_bytes=peak))
                print(
                    f'{precision}, {what} {x}: {row["seconds"]:.3f} s, ratio '
                    f'{row["ratio"]:.2f}, {peak / 1e9:.2f} GB',
                    flush=True)
    return results


def draw_growth(results: dict, caption: str, path: str) -> None:
    """Time above, memory below, one column for each of what grows."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(13, 7), layout='constrained')
    axes = figure.subplots(2, len(_GROWING), sharex='col')
    for (time, memory), (what, label) in zip(
            axes.T, _GROWING.items(), strict=True):
        for precision, growing in results.items():
            x, seconds, peaks = zip(*(
                (p['x'], p['seconds'], p['peak_bytes'] / 1e9)
                for p in growing[what]), strict=True)
            line, = time.plot(x, seconds, 'o-', label=precision)
            memory.plot(x, peaks, 'o-', color=line.get_color())
        for ax in (time, memory):
            ax.set_ylim(0, 1.1 * ax.dataLim.y1)
            ax.grid(alpha=0.3)
        memory.set_xlabel(label)
    axes[0, 0].legend()
    axes[0, 0].set_ylabel('time of a forward pass, s')
    axes[1, 0].set_ylabel('peak memory, GB')
    figure.suptitle(caption, fontsize='small')
    figure.savefig(path, dpi=100)


def main(args: argparse.Namespace) -> None:
    case = case_of(args, compile=args.compile)
    machine = describe_machine(case.device, case.threads)
    if args.growth is not None:
        results = grow(
            args, case._replace(with_stages=False, expressions=(1, )))
        draw_growth(results, machine, args.growth)
        write_json(args.json, machine=machine, results=results)
        return
    if args.api is not None:
        rows = [
            in_own_process(
                measure_api,
                case._replace(precision=p, expressions=(args.api, )),
                *args.picture) for p in args.precision
        ]
        height, width = args.picture
        print(f'{machine}; N = {args.api}, {height} x {width} pixels\n')
        print_table([
            'precision', 'one call with 1, s', 'with N, s',
            'share of N single calls'
        ], [[
            r['precision'], f'{r["single"]:.3f}', f'{r["many"]:.3f}',
            f'{r["share"]:.2f}'
        ] for r in rows])
        write_json(args.json, machine=machine, rows=rows)
        return
    if args.train_batch and 'bf16' in args.precision and (
            case.device == 'cpu' and not has_bfloat16()):
        raise SystemExit(
            'error: this processor only emulates bfloat16, so training uses '
            'fp32: leave out --precision bf16, or training with '
            '--train-batch 0')
    inference, training = {}, {}
    for precision in args.precision:
        own = case._replace(precision=precision)
        inference[precision] = in_own_process(
            measure_inference,
            own._replace(expressions=tuple(args.expressions or
                                           (1, 7, 20, 30))))
        if args.train_batch:
            training[precision] = in_own_process(
                measure_training,
                own._replace(
                    batch=args.train_batch,
                    expressions=(args.train_expressions, )))
    first = inference[args.precision[0]]
    flops = {name: count / 1e9 for name, count in first['flops'].items()}
    print(f'{os.path.basename(args.config)}, {case.size[0]} x {case.size[1]} '
          f'pixels, {first["parameters"] / 1e6:.2f} M parameters\n{machine}; '
          f'fp32 products at {first["matrix_rate"] / 1e9:.0f} GFLOP/s\n'
          f'GFLOPs of one expression: {flops["official"]:.1f} in the official '
          'code; here ' +
          ', '.join(f'{stage} {flops[stage]:.1f}' for stage in STAGES) +
          '\n\nInference, one image\n')
    print_inference(inference)
    if training:
        print('\nTraining\n')
        print_training(training, args.train_batch)
    write_json(
        args.json,
        machine=machine,
        case=case._asdict(),
        inference=inference,
        training=training)
