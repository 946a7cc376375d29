# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Speed of an exported model, measured like that of a model in PyTorch."""
import tempfile
from argparse import Namespace
from functools import partial

import torch

from cris.deploy import BACKENDS, ExportedCRIS, export_onnx
from cris.engine import load_config

from . import measuring
from .flops import count_flops


@torch.inference_mode()
def measure(args: Namespace, folder: str, backend: str, precision: str,
            flops: int) -> list[dict]:
    """A row for each number of expressions."""
    cfg = load_config(args.config, args.cfg_options)
    exported = ExportedCRIS(
        folder, backend, precision, torch.get_num_threads())
    clock = measuring.Clock(args.runs)
    rows = []
    for count in args.expressions or [1, 7]:
        inputs = measuring.make_inputs(cfg, 1, count)
        seconds, ratio = clock.measure(
            partial(exported.predict_logits, *inputs), count * flops)
        rows.append({
            'backend': backend, 'precision': precision, 'expressions': count,
            'an image, ms': 1e3 * seconds,
            'an expression, ms': 1e3 * seconds / count, 'ratio': ratio})
    return rows


def main(args: Namespace) -> None:
    cfg = load_config(args.config, args.cfg_options)
    flops = measuring.in_own_process(count_flops, cfg)['official']
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or temporary
        if not args.folder:
            export_onnx(measuring.random_model(cfg), folder, fused=False)
        for backend in args.backend:
            for precision in args.precision:
                if precision in BACKENDS[backend]:
                    rows += measuring.in_own_process(
                        measure, args, folder, backend, precision, flops)
    measuring.report(args, exported=rows)
