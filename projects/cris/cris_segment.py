# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The command ``cris-segment``, and demo/image_demo.py.

It is next to the package ``cris``, which takes seconds to import, so that
``--help`` and wrong options are answered at once.
"""
import argparse
import os.path as osp
import runpy
from collections.abc import Sequence
from pathlib import Path

_OUT_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Segment what phrases refer to in images',
        usage='%(prog)s IMG [IMG ...] [CONFIG CHECKPOINT] --text PHRASE '
        '[options]')
    add = parser.add_argument
    add('inputs', nargs='+', metavar='IMG',
        help='images or folders of images; for a model of your own, its '
        'config file and its checkpoint come last')
    add_model_options(parser)
    add('--text', action='append', default=[], metavar='PHRASE',
        help='what to segment; may be repeated')
    add('--text-file',
        help='a line is PHRASE, for every image, or FILENAME<TAB>PHRASE, for '
        'one image')
    add('--out-file',
        help='overlay of a single image (default: NAME_segmented.jpg in the '
        'current folder)')
    add('--out-dir',
        help='folder for masks (PNG), overlays and predictions.json (default '
        'for several images: NAME_segmented in the current folder, after the '
        'first IMG)')
    add('--threshold', type=float,
        help="of the probability, in [0, 1] (default: the model's)")
    add('--existence-threshold', type=float,
        help='of the probability that there is such a thing, in [0, 1]; below '
        "it, nothing is found (default: the model's, if it can tell)")
    add('--instances', action='store_true',
        help='also the connected parts of each mask, with their boxes, in the '
        'overlay and predictions.json')
    add('--precision', choices=['fp32', 'bf16', 'fp16'], default='fp32',
        help='bf16 is faster on processors that support it; fp16 needs a GPU '
        '(default: %(default)s)')
    version = runpy.run_path(str(Path(__file__).with_name('cris') /
                                 'version.py'))['__version__']
    add('--version', action='version', version=version)
    # CONFIG CHECKPOINT may come after the options.
    args = parser.parse_intermixed_args(argv)
    words = args.inputs
    args.config = next((w for w in words if w.endswith('.py')), None)
    args.checkpoint = None
    if args.config:
        at = words.index(args.config)
        if not at:
            parser.error(f'give an image before the config {args.config}')
        args.inputs = words[:at]
        args.checkpoint = words[-1] if len(words) == at + 2 else None
    check_model_options(parser, args)
    first = args.inputs[0]
    several = len(args.inputs) > 1 or osp.isdir(first)
    if several and args.out_file:
        parser.error('--out-file is for a single image; use --out-dir')
    if args.out_file and not args.out_file.lower().endswith(_OUT_SUFFIXES):
        parser.error(f'--out-file {args.out_file} must end in one of '
                     f'{", ".join(_OUT_SUFFIXES)}')
    for name in ('threshold', 'existence_threshold'):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            option = name.replace('_', '-')
            parser.error(f'--{option} {value} must be in [0, 1]')
    name = osp.basename(osp.abspath(first))
    if not osp.isdir(first):
        name = osp.splitext(name)[0]
    if several and not args.out_dir:
        args.out_dir = f'{name}_segmented'
    elif not args.out_file and not args.out_dir:
        args.out_file = f'{name}_segmented.jpg'
    return args


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add what all demos have in common."""
    parser.add_argument(
        '--model',
        help='name of a model of the model zoo, in place of CONFIG and '
        'CHECKPOINT (default: a small model that knows coloured shapes only)')
    parser.add_argument('--device', help='cpu, cuda, cuda:1 ...')


def check_model_options(parser: argparse.ArgumentParser,
                        args: argparse.Namespace) -> None:
    """End with a message if the options contradict each other."""
    if args.config and args.model:
        parser.error('give CONFIG CHECKPOINT or --model NAME, not both')
    if args.config and not args.checkpoint:
        parser.error(f'give one CHECKPOINT after the config {args.config}')


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; errors end in SystemExit with a message."""
    args = parse_args(argv)
    from cris.apis.command_line import run
    run(args)


if __name__ == '__main__':
    main()
