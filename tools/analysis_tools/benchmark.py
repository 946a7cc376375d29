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
import os
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from get_flops import STAGES, count_flops
from measuring import (
    Case,
    Clock,
    add_arguments,
    case_of,
    describe_machine,
    in_own_process,
    make_inputs,
    markdown_table,
    peak_bytes,
    prepare,
    reset_peak,
)
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from cris.engine import avoid_fused, optimize_for_inference, use_bfloat16
from cris.engine.precision import has_bfloat16


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
    reset_peak(case.device)
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
        peak_bytes=peak_bytes(case.device),
        rows=rows)


def _stages(model: nn.Module, case: Case, images: Tensor, tokens: Tensor,
            index: Tensor) -> dict[str, Callable]:
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
    before = peak_bytes(case.device)
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
    if case.device == 'cpu':
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
    reset_peak(case.device)
    measured = clock.measure(step, 3 * flops['official'] * len(tokens))
    return dict(
        measured,
        expressions=count,
        images_per_second=case.batch / measured['seconds'],
        bytes_before_the_model=before,
        peak_bytes=peak_bytes(case.device))


def inference_table(results: dict[str, dict]) -> str:
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


def training_table(results: dict[str, dict], batch: int) -> str:
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
    if args.train_batch and 'bf16' in args.precision and (
            args.device == 'cpu' and not has_bfloat16()):
        parser.error('this processor would only emulate bfloat16, so that '
                     'training takes fp32: leave out --precision bf16, or '
                     'training with --train-batch 0')
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
