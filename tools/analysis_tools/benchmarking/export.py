# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Speed of an exported model, measured like that of a model in PyTorch."""
import argparse
import tempfile
from functools import partial

import torch

from cris.deploy import BACKENDS, ExportedCRIS, export_onnx

from . import measuring
from .flops import count_flops
from .measuring import Case


def export_random(case: Case, folder: str) -> None:
    """Export the config's model with random weights."""
    _, model = measuring.prepare(case)
    export_onnx(model, folder, fused=False)


def measure(case: Case, folder: str, backend: str) -> list[dict]:
    """A row for each number of expressions."""
    cfg, model = measuring.prepare(case)
    flops = count_flops(model, *case.size, cfg.context_length)['official']
    del model
    exported = ExportedCRIS(folder, backend, case.precision, case.threads)
    clock = measuring.Clock('cpu', case.runs)
    rows = []
    for count in case.expressions:
        inputs = measuring.make_inputs(case, cfg, count)
        with torch.inference_mode():
            row = clock.measure(partial(exported.predict_logits, *inputs))
        rows.append(dict(
            seconds=row['seconds'], ratio=row['products'] / flops / count,
            backend=backend, precision=case.precision, expressions=count))
    return rows


def main(args: argparse.Namespace) -> None:
    case = measuring.case_of(args, expressions=args.expressions or [1, 7])
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as temporary:
        if args.folder is None:
            measuring.in_own_process(export_random, case, temporary)
        for backend in args.backend:
            for precision in args.precision:
                if precision in BACKENDS[backend]:
                    rows += measuring.in_own_process(
                        measure, case._replace(precision=precision),
                        args.folder or temporary, backend)
    machine = measuring.describe_machine('cpu', case.threads)
    print(f'{machine}\n')
    measuring.print_table(
        ['backend', 'precision', 'expressions', 'an image, ms',
         'an expression, ms', '**ratio**'],
        [[r['backend'], r['precision'], r['expressions'],
          f'{1e3 * r["seconds"]:.0f}',
          f'{1e3 * r["seconds"] / r["expressions"]:.0f}',
          f'**{r["ratio"]:.2f}**'] for r in rows])
    measuring.write_json(args.json, machine=machine, rows=rows)
