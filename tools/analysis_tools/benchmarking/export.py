# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Speed of an exported model, measured as that of a model in PyTorch."""
import argparse
import tempfile
from functools import partial

import torch

from cris.deploy import BACKENDS, ExportedCRIS, export_onnx

from .flops import count_flops
from .measuring import (
    Case,
    Clock,
    case_of,
    describe_machine,
    in_own_process,
    make_inputs,
    prepare,
    print_table,
    write_json,
)


def export_random(case: Case, folder: str) -> None:
    """Export the config's model with random weights."""
    _, model = prepare(case)
    export_onnx(model, folder, fused=False)


@torch.inference_mode()
def measure(case: Case, folder: str, backend: str) -> list[dict]:
    """A row for each number of expressions."""
    cfg, model = prepare(case)
    with torch.inference_mode(False):  # torch 2.1 counts nothing in it
        flops = count_flops(model, *case.size, cfg.context_length)['official']
    del model
    exported = ExportedCRIS(folder, backend, case.precision, case.threads)
    clock = Clock('cpu', case.runs)
    return [
        dict(
            clock.measure(
                partial(exported.predict_logits,
                        *make_inputs(case, cfg, count)), flops * count),
            backend=backend,
            precision=case.precision,
            expressions=count) for count in case.expressions
    ]


def main(args: argparse.Namespace) -> None:
    case = case_of(args, expressions=tuple(args.expressions or (1, 7)))
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as temporary:
        if args.folder is None:
            in_own_process(export_random, case, temporary)
        for backend in args.backend:
            for precision in args.precision:
                if precision in BACKENDS[backend]:
                    rows += in_own_process(
                        measure, case._replace(precision=precision),
                        args.folder or temporary, backend)
    machine = describe_machine('cpu', case.threads)
    print(f'{machine}\n')
    print_table([
        'backend', 'precision', 'expressions', 'an image, ms',
        'an expression, ms', '**ratio**'
    ], [[
        row['backend'], row['precision'], str(row['expressions']),
        f'{1e3 * row["seconds"]:.0f}',
        f'{1e3 * row["seconds"] / row["expressions"]:.0f}',
        f'**{row["ratio"]:.2f}**'
    ] for row in rows])
    write_json(args.json, machine=machine, rows=rows)
