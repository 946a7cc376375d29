# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Speed and memory of training steps."""
from argparse import Namespace
from collections.abc import Sequence

import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from cris.engine import load_config
from cris.engine.inference import compile_parts
from cris.engine.precision import has_bfloat16
from cris.engine.training import build_config
from cris.models.fast_cpu import optimize_for_cpu_training

from . import measuring
from .flops import STAGES, count_flops
from .measuring import DEVICE, Clock

_WRAPPERS = dict(fp32=('OptimWrapper', None),
                 bf16=('AmpOptimWrapper', 'bfloat16'),
                 fp16=('AmpOptimWrapper', 'float16'))
NO_ROOM = 'does not fit'
_SPEED, _SHARE, _MEMORY = (
    'images/s', '% of the rate of matrix products', 'peak memory, GB')
_RECOMPUTE = ('model.backbone.with_cp=True', 'model.decode_head.with_cp=True')


def check_precision(precisions: Sequence[str], otherwise: str) -> None:
    """End where training would not use what was asked for."""
    if 'bf16' in precisions and DEVICE == 'cpu' and not has_bfloat16():
        raise SystemExit(
            'error: this processor only emulates bfloat16, so training uses '
            f'fp32: leave out --precision bf16, or {otherwise}')


def measure_training(args: Namespace, precision: str, flops: int, batch: int,
                     mode: str = 'default', products: str = 'float32') -> dict:
    """Time and memory of an optimisation step, set up as in tools/train.py.

    It counts as three forward passes of ``flops`` an expression, against
    matrix products of the type ``products``.
    """
    before = measuring.peak_bytes()
    kind, dtype = _WRAPPERS[precision]
    options = [*args.cfg_options, f'optim_wrapper.type={kind}']
    if dtype:
        options.append(f'optim_wrapper.dtype={dtype}')
    if mode == 'recompute':
        options += _RECOMPUTE
    cfg = build_config(Namespace(
        config=args.config, cfg_options=options, work_dir=None, resume=None,
        launcher='none', amp=False, max_minutes=None,
        auto_scale_lr=False))
    torch.backends.cudnn.benchmark = cfg.env_cfg.get('cudnn_benchmark', False)
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model).to(DEVICE).train()
    if DEVICE == 'cpu':
        optimize_for_cpu_training(model)
    if mode == 'channels-first':
        model.backbone.register_forward_pre_hook(
            lambda module, inputs: inputs[0].contiguous())
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    if mode == 'compile' or args.compile:
        compile_parts(model)
    count = args.train_expressions
    cfg.image_size = cfg.get('train_image_size') or cfg.image_size
    images, tokens, _ = measuring.make_inputs(cfg, batch, count)
    masks = (torch.rand(count, *images.shape[2:], device=DEVICE) > .5).float()
    samples = [
        SegDataSample(metainfo=dict(tokens=part),
                      gt_sem_seg=PixelData(data=masks))
        for part in tokens.split(count)
    ]

    def step():
        with optimizer.optim_context(model):
            losses = model.loss(images, samples)
        optimizer.update_params(model.parse_losses(losses)[0])

    measuring.reset_peak()
    step()
    step()  # with the optimizer's state
    peak = measuring.peak_bytes()
    seconds, ratio = Clock(args.runs, products).measure(
        step, 3 * len(tokens) * flops)
    return {
        'precision': precision, 'batch': batch, 'expressions': count,
        'step, s': seconds, 'images/s': batch / seconds,
        'expressions/s': len(tokens) / seconds, 'ratio': ratio,
        'peak memory, GB': peak / 1e9,
        'before the model, GB': before / 1e9}


def largest_batches(args: Namespace, precision: str, flops: int,
                    mode: str) -> list[dict]:
    """A row for each batch up to the first that does not fit; if none does,
    for smaller ones, too.
    """
    rows = []
    batches = sorted(args.batch)
    while batches:
        batch = batches.pop(0)
        row = {'model': args.name, 'mode': mode, 'precision': precision,
               'batch': batch}
        try:
            found = measure_training(args, precision, flops, batch, mode,
                                     _WRAPPERS[precision][1] or 'float32')
        except torch.cuda.OutOfMemoryError:
            smaller = not rows or rows[-1][_SPEED] == NO_ROOM
            batches = [batch // 2] if smaller and batch > 2 else []
            row |= dict.fromkeys((_SPEED, _SHARE, _MEMORY), NO_ROOM)
            torch.cuda.empty_cache()
        else:
            row |= {_SPEED: found['images/s'], _SHARE: 100 / found['ratio'],
                    _MEMORY: found['peak memory, GB']}
        rows.append(row)
        print(row, flush=True)
    return rows


def main(args: Namespace) -> None:
    check_precision([args.precision], 'choose fp32')
    cfg = load_config(args.config, args.cfg_options)
    args.name = cfg.filename.split('/')[-1].split('_')[1]
    flops = measuring.in_own_process(count_flops, cfg)
    own = sum(flops[stage] for stage in STAGES)
    rows = [row for mode in args.mode for row in measuring.in_own_process(
        largest_batches, args, args.precision, own, mode)]
    measuring.report(args, training=rows)
