# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Time many expressions of a picture against as many single calls.

    python tools/analysis_tools/benchmark_inference.py CONFIG

It is CRISInferencer that is called, from the picture to masks at the
picture's size. The weights are random.
"""
import argparse
import json
import statistics

import numpy as np
from measuring import (
    Clock,
    add_arguments,
    case_of,
    describe_machine,
    markdown_table,
    prepare,
)

from cris import CRISInferencer
from cris.engine import optimize_for_inference

_COLUMNS = [
    'precision', 'one call with 1, s', 'with N, s', 'share of N single calls'
]


def measure(case, expressions: int, height: int, width: int) -> dict:
    """Seconds of both, which take turns."""
    _, model = prepare(case)
    inferencer = CRISInferencer(optimize_for_inference(model, case.precision))
    image = np.random.default_rng(0).integers(
        0, 256, (height, width, 3), dtype=np.uint8)
    texts = [f'the person in row {i}' for i in range(expressions)]
    clock = Clock(case.device, case.runs)
    single, many, shares = [], [], []
    for run in range(-1, case.runs):  # the first one does not count
        one = clock.time(lambda: inferencer(image, texts[0]))
        all_ = clock.time(lambda: inferencer(image, texts))
        if run >= 0:
            single.append(one)
            many.append(all_)
            shares.append(all_ / one / expressions)
    return dict(
        precision=case.precision,
        single=statistics.median(single),
        many=statistics.median(many),
        share=statistics.median(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add_arguments(parser)
    parser.add_argument('--expressions', type=int, default=20)
    parser.add_argument(
        '--picture',
        nargs=2,
        type=int,
        default=[480, 640],
        metavar=('HEIGHT', 'WIDTH'))
    args = parser.parse_args()
    case = case_of(args)
    rows = [
        measure(case._replace(precision=p), args.expressions, *args.picture)
        for p in args.precision
    ]
    machine = describe_machine(args.device, args.threads)
    print(f'{machine}; N = {args.expressions}, '
          f'{args.picture[0]} x {args.picture[1]} pixels\n')
    print(
        markdown_table(
            _COLUMNS,
            [[r['precision'], f'{r["single"]:.3f}', f'{r["many"]:.3f}',
              f'{r["share"]:.2f}'] for r in rows]))
    if args.json:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(dict(machine=machine, rows=rows), file, indent=2)


if __name__ == '__main__':
    main()
