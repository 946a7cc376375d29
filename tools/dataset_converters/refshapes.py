# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Write the synthetic data set RefShapes in the layout of RefCOCO.

Example:
    python tools/dataset_converters/refshapes.py --out data/refshapes \
        --num-train 8000 --seed 0
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from cris.datasets.refshapes import write_refshapes


def count(text: str) -> int:
    """Read a number that must be at least 1.

    Args:
        text: What the user wrote.

    Returns:
        The number.

    Raises:
        argparse.ArgumentTypeError: If it is no integer, or less than 1.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(
            f'must be an integer of at least 1, but is {text!r}')
    return number


def seed(text: str) -> int:
    """Read a seed; like :func:`count`, but 0 is allowed.

    Args:
        text: What the user wrote.

    Returns:
        The seed.

    Raises:
        argparse.ArgumentTypeError: If it is no integer, or negative.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f'must be an integer of at least 0, but is {text!r}')
    return int(text)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the name of the program; those of the process
            by default.

    Returns:
        The options ``out``, ``num_train``, ``num_eval`` and ``seed``.
    """
    parser = argparse.ArgumentParser(
        description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--out', type=Path, required=True, metavar='DIR',
                        help='directory to write to; made if missing')
    parser.add_argument('--num-train', type=count, required=True, metavar='N',
                        help='pictures in train')
    parser.add_argument('--num-eval', type=count, default=200, metavar='N',
                        help='pictures in each of val, testA and testB '
                        '(default: %(default)s)')
    parser.add_argument('--seed', type=seed, default=0, metavar='S',
                        help='the same seed gives the same files '
                        '(default: %(default)s)')
    args = parser.parse_args(argv)
    if args.out.exists() and not args.out.is_dir():
        parser.error(f'argument --out: {args.out} is not a directory')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Write the data set and print what it holds.

    Args:
        argv: Arguments without the name of the program; those of the process
            by default.

    Raises:
        SystemExit: If the directory holds a data set already, or the
            arguments are wrong.
    """
    args = parse_args(argv)
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
