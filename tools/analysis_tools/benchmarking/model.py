# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Speed and memory of a model, in inference and in training."""
import os
from argparse import Namespace
from functools import partial

import numpy as np
import torch
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from cris import CRISInferencer
from cris.engine import load_config, optimize_for_inference

from . import measuring
from .flops import STAGES, count_flops, make_stages
from .measuring import Clock
from .train import check_precision, measure_training

_PHOTOGRAPH = (480, 640)  # pixels of an image of COCO


@torch.inference_mode()
def measure_inference(args: Namespace, precision: str,
                      flops: int) -> list[dict]:
    """Times of the stages and the whole, for each number of expressions.

    ``flops`` are those of the official code for one expression.
    """
    cfg = load_config(args.config, args.cfg_options)
    model = optimize_for_inference(
        measuring.random_model(cfg), precision, args.compile)
    clock = Clock(args.runs)
    rows = []
    for count in args.expressions or [1, 7, 20, 30]:
        inputs = measuring.make_inputs(cfg, 1, count)
        measuring.reset_peak()
        seconds, ratio = clock.measure(
            partial(model.predict_logits, *inputs), count * flops)
        peak = measuring.peak_bytes()
        stages = make_stages(model, *inputs)
        stages['masks'] = partial(_make_masks, model, stages['head']())
        times = {name: 1e3 * clock.measure(stage)[0]
                 for name, stage in stages.items()}
        image = 1e3 * seconds + times['masks']
        rows.append({
            'precision': precision, 'expressions': count,
            **{f'{name}, ms': t for name, t in times.items()},
            'an image, ms': image, 'an expression, ms': image / count,
            'ratio': ratio, 'peak memory, GB': peak / 1e9,
            'products, GFLOP/s': ratio * count * flops / seconds / 1e9})
    return rows


def _make_masks(model: nn.Module, logits: Tensor) -> Tensor:
    probs = model.original_size(logits, _PHOTOGRAPH)
    return probs > model.decode_head.threshold


def measure_api(args: Namespace, precision: str) -> dict:
    """Seconds of a call with many expressions and of one with one.

    They take turns; both go from the picture to masks at its size.
    """
    cfg = load_config(args.config, args.cfg_options)
    inferencer = CRISInferencer(
        optimize_for_inference(measuring.random_model(cfg), precision))
    image = np.random.default_rng(0).integers(
        0, 256, (*_PHOTOGRAPH, 3), dtype=np.uint8)
    texts = [f'the person in row {i}' for i in range(args.api)]
    clock = Clock(args.runs)
    times = np.array([
        [clock.time(partial(inferencer, image, given))
         for given in (texts[0], texts)] for _ in range(1 + args.runs)])
    one, many = times[1:].T  # the first one does not count
    return {
        'precision': precision, 'one call with 1, s': np.median(one),
        f'with {args.api}, s': np.median(many),
        f'share of {args.api} single calls': np.median(many / one) / args.api}


def main(args: Namespace) -> None:
    if args.api:
        measuring.report(args, calls=[
            measuring.in_own_process(measure_api, args, precision)
            for precision in args.precision])
        return
    if args.train_batch:
        check_precision(args.precision, 'use --train-batch 0')
    cfg = load_config(args.config, args.cfg_options)
    flops = measuring.in_own_process(count_flops, cfg)
    tables: dict[str, list] = dict(inference=[], training=[])
    for precision in args.precision:
        case = args, precision, flops['official']
        tables['inference'] += measuring.in_own_process(
            measure_inference, *case)
        if args.train_batch:
            tables['training'].append(
                measuring.in_own_process(measure_training, *case,
                                         args.train_batch))
    height, width = to_2tuple(cfg.image_size)
    giga = {name: f'{n / 1e9:.1f}' for name, n in flops.items()}
    print(f'{os.path.basename(args.config)}, {height} x {width} pixels, '
          f'{flops["parameters"] / 1e6:.2f} M parameters\n'
          f'GFLOPs of one expression: {giga["official"]} in the official '
          'code; here ' + ', '.join(f'{s} {giga[s]}' for s in STAGES))
    measuring.report(args, **tables)
