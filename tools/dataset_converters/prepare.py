# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Check, convert and describe data sets for referring segmentation.

Examples:
    python tools/dataset_converters/prepare.py check data/refcoco \
        --dataset refcoco
    python tools/dataset_converters/prepare.py convert data/mine \
        --dataset jsonl --to refer --out data/mine_refer
    python tools/dataset_converters/prepare.py stats data/refcoco \
        --dataset refcoco
"""
import argparse
import os.path as osp
import sys

from preparation import (
    DATASETS,
    Located,
    check,
    collect_stats,
    convert,
    locate,
    print_stats,
    write_report,
    write_stats,
)
from preparation.report import summary
from preparation.writers import WRITERS

from cris.datasets.records import raise_faults


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    commands = parser.add_subparsers(dest='command', required=True)
    about = dict(
        check='say what is missing or wrong; exit status 0 if it is usable',
        convert='write it in another form',
        stats='figures and plots')
    parsers = {}
    for name, text in about.items():
        command = parsers[name] = commands.add_parser(name, help=text)
        command.add_argument('root', help='folder of the data set')
        command.add_argument('--dataset', required=True, choices=DATASETS)
        command.add_argument(
            '--split-by', help='which splits, e.g. unc, google, umd')
        command.add_argument(
            '--images', help='folder of the images, relative to the root')
        command.add_argument(
            '--masks', help='folder of the masks, relative to the root')
        command.add_argument(
            '--prompt-keys', nargs='+', metavar='KEY',
            help='official-json: which of the prompts to take')
    parsers['check'].add_argument(
        '--context-length', type=int,
        help='where sentences are cut (default: 17, of refcocog 22)')
    parsers['check'].add_argument(
        '--decode-images', action='store_true',
        help='decode every image, not only its header')
    parsers['check'].add_argument(
        '--workers', type=int, default=0, help='processes that decode images')
    parsers['convert'].add_argument('--to', required=True, choices=WRITERS)
    parsers['convert'].add_argument(
        '--no-images', action='store_true', help='do not copy the images')
    for name in ('check', 'convert', 'stats'):
        parsers[name].add_argument(
            '--out', metavar='DIR', required=name == 'convert',
            help='where to write' + (
                '' if name == 'convert' else
                ' (default: work_dirs/prepare/NAME of the data set)'))
    return parser.parse_args()


def run_check(args: argparse.Namespace, located: Located, out: str) -> int:
    result = check(located, args.context_length, args.decode_images,
                   args.workers)
    print(summary(result))
    print(f'report: {write_report(result, out)} and report.json')
    return 0 if result.usable else 1


def run_convert(args: argparse.Namespace, located: Located) -> int:
    counts = convert(located, args.out, args.to, not args.no_images)
    for split, number in counts.items():
        print(f'{split}: {number} refs')
    print(f'written to {args.out}')
    return 0


def run_stats(located: Located, out: str) -> int:
    raise_faults(located.missing if not located.can_be_read else (),
                 located.name)
    images, faults = located.read()[:2]
    if faults:
        print(f'{len(faults)} entries at fault are left out; see check')
    stats = collect_stats(images)
    print(print_stats(stats))
    print(f'plots: {write_stats(stats, out)}')
    return 0


def main() -> int:
    args = parse_args()
    out = args.out or osp.join('work_dirs', 'prepare', args.dataset)
    try:
        located = locate(args.root, args.dataset, args.split_by, args.images,
                         args.masks, args.prompt_keys)
        if args.command == 'check':
            return run_check(args, located, out)
        if args.command == 'convert':
            return run_convert(args, located)
        return run_stats(located, out)
    except (ImportError, OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
