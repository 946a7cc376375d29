# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Draw how time and memory grow with expressions, image size and batch.

    python tools/analysis_tools/benchmark_growth.py CONFIG --out growth.png
"""
import argparse
import json

from benchmark import measure_inference
from matplotlib.figure import Figure
from measuring import add_arguments, case_of, describe_machine, in_own_process

_GROWING = dict(
    expressions='expressions of one image',
    size='side of the image, pixels (1 expression)',
    batch='images at once (1 expression each)')


def draw(results: dict[str, dict[str, list[dict]]], caption: str) -> Figure:
    """Time above, memory below, a column for each of what grows.

    Args:
        results (dict): Lists of points by precision and by what grows.
        caption (str): Machine and versions.

    Returns:
        Figure: Of matplotlib.
    """
    figure = Figure(figsize=(13, 7), layout='constrained')
    axes = figure.subplots(2, len(_GROWING), sharex='col')
    for (time, memory), (what, label) in zip(
            axes.T, _GROWING.items(), strict=True):
        for precision, growing in results.items():
            points = growing[what]
            x = [point['x'] for point in points]
            line, = time.plot(
                x, [point['seconds'] for point in points],
                'o-',
                label=precision)
            memory.plot(
                x, [point['peak_bytes'] / 1e9 for point in points],
                'o-',
                color=line.get_color())
        for ax in (time, memory):
            ax.set_ylim(bottom=0)
            ax.grid(alpha=0.3)
        memory.set_xlabel(label)
    axes[0, 0].legend()
    axes[0, 0].set_ylabel('time of a forward pass, s')
    axes[1, 0].set_ylabel('peak memory, GB')
    figure.suptitle(caption, fontsize='small')
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add_arguments(parser)
    parser.add_argument(
        '--expressions', type=int, nargs='+', default=[1, 4, 8, 16, 32, 64])
    parser.add_argument(
        '--size', type=int, nargs='+', default=[320, 416, 512, 576, 640])
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 4, 8, 16])
    parser.add_argument('--out', required=True, help='picture to write')
    args = parser.parse_args()
    base = case_of(args)._replace(with_stages=False, expressions=(1, ))
    cases = dict(
        expressions=lambda n: base._replace(expressions=(n, )),
        size=lambda n: base._replace(size=(n, n)),
        batch=lambda n: base._replace(batch=n))
    results: dict = {}
    for precision in args.precision:
        for what, case in cases.items():
            points = results.setdefault(precision, {}).setdefault(what, [])
            for x in getattr(args, what):
                measured = in_own_process(
                    measure_inference, case(x)._replace(precision=precision))
                (row, ) = measured['rows']
                points.append(
                    dict(
                        x=x,
                        seconds=row['seconds'],
                        ratio=row['ratio'],
                        peak_bytes=measured['peak_bytes']))
                print(
                    f'{precision}, {what} {x}: {row["seconds"]:.3f} s, ratio '
                    f'{row["ratio"]:.2f}, '
                    f'{measured["peak_bytes"] / 1e9:.2f} GB',
                    flush=True)
    machine = describe_machine(args.device, args.threads)
    draw(results, machine).savefig(args.out, dpi=100)
    if args.json:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(dict(machine=machine, results=results), file, indent=2)


if __name__ == '__main__':
    main()
