# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Write the synthetic dataset RefShapes in the layout of RefCOCO.

Example:
    python tools/dataset_converters/refshapes.py --out data/refshapes \
        --num-train 8000 --seed 0
"""
import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path


def at_least(minimum: int) -> Callable[[str], int]:
    """An argparse type: integers of at least ``minimum``."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum:
            raise argparse.ArgumentTypeError(
                f'must be an integer of at least {minimum}, but is {text!r}')
        return number

    return read


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, required=True, metavar='DIR',
                        help='directory to write to; made if missing')
    parser.add_argument('--num-train', type=at_least(1), required=True,
                        metavar='N', help='images in train')
    parser.add_argument('--num-eval', type=at_least(1), default=200,
                        metavar='N', help='images in each of val, testA and '
                        'testB (default: %(default)s)')
    parser.add_argument('--seed', type=at_least(0), default=0, metavar='S',
                        help='the same seed gives the same files '
                        '(default: %(default)s)')
    args = parser.parse_args(argv)
    if args.out.exists() and not args.out.is_dir():
        parser.error(f'argument --out: {args.out} is not a directory')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from tqdm import tqdm

    from cris.datasets.refshapes import write_refshapes
    try:
        summary = write_refshapes(
            args.out, args.num_train, args.num_eval, args.seed,
            progress=partial(tqdm, desc='RefShapes', unit='image'))
    except (FileExistsError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    for split, numbers in summary.items():
        print(f'{split}: ' + ', '.join(
            f'{number} {name}' for name, number in numbers.items()))


if __name__ == '__main__':
    main()
