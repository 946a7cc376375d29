# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Measure an exported model as benchmark.py does one of PyTorch.

    python tools/analysis_tools/benchmark_exported.py CONFIG --folder DIR

DIR is by tools/deployment/export_onnx.py; without it the config's model is
exported with random weights.
"""
import argparse
import json
import tempfile

import torch
from get_flops import count_flops
from measuring import (
    Case,
    Clock,
    add_arguments,
    case_of,
    describe_machine,
    in_own_process,
    make_inputs,
    markdown_table,
    prepare,
)

from cris.deploy import BACKENDS, ExportedCRIS, export_onnx


def export_random(case: Case, folder: str) -> None:
    """Export the config's model."""
    _, model = prepare(case)
    export_onnx(model, folder, fused=False)


@torch.inference_mode()
def measure(case: Case, folder: str, backend: str) -> tuple[dict, ...]:
    """A row for each number of expressions."""
    cfg, model = prepare(case)
    flops = count_flops(model, *case.size, cfg.context_length)['official']
    del model
    exported = ExportedCRIS(folder, backend, case.precision, case.threads)
    clock = Clock('cpu', case.runs)
    rows = []
    for count in case.expressions:
        inputs = make_inputs(case, cfg, count)
        row = clock.measure(lambda i=inputs: exported.predict_logits(*i),
                            flops * count)
        rows.append(
            dict(
                row,
                backend=backend,
                precision=case.precision,
                expressions=count))
    return tuple(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add_arguments(parser)
    parser.add_argument('--folder', help='the exported model')
    parser.add_argument(
        '--backend', nargs='+', choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument('--expressions', type=int, nargs='+', default=[1, 7])
    args = parser.parse_args()
    args.device = 'cpu'
    case = case_of(args)._replace(expressions=tuple(args.expressions))
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
    machine = describe_machine('cpu', args.threads)
    print(f'{machine}\n')
    print(
        markdown_table([
            'backend', 'precision', 'expressions', 'an image, ms',
            'an expression, ms', '**ratio**'
        ], [[
            row['backend'], row['precision'],
            str(row['expressions']), f'{1e3 * row["seconds"]:.0f}',
            f'{1e3 * row["seconds"] / row["expressions"]:.0f}',
            f'**{row["ratio"]:.2f}**'
        ] for row in rows]))
    if args.json:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(dict(machine=machine, rows=rows), file, indent=2)


if __name__ == '__main__':
    main()
