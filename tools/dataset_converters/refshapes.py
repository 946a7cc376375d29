# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Write the synthetic dataset RefShapes in the layout of RefCOCO.

Example:
    python tools/dataset_converters/refshapes.py --out data/refshapes \
        --num-train 8000 --seed 0
"""
import argparse
from functools import partial


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--out', required=True, metavar='DIR',
        help='directory to write to; made if missing')
    add('--num-train', type=int, required=True, metavar='N',
        help='images in train')
    add('--num-eval', type=int, default=200, metavar='N', help='images in '
        'each of val, testA and testB (default: %(default)s)')
    add('--seed', type=int, default=0, metavar='S',
        help='the same seed gives the same files (default: %(default)s)')
    add('--generalized', action='store_true',
        help='also write grefs(unc).json, read like gRefCOCO: expressions '
        'for no, one or several objects')
    args = parser.parse_args(argv)
    from tqdm import tqdm

    from cris.datasets.refshapes import write_refshapes
    try:
        summary = write_refshapes(
            args.out, args.num_train, args.num_eval, args.seed,
            progress=partial(tqdm, desc='RefShapes', unit='image'),
            generalized=args.generalized)
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    for split, numbers in summary.items():
        print(f'{split}: ' + ', '.join(
            f'{number} {name}' for name, number in numbers.items()))


if __name__ == '__main__':
    main()
