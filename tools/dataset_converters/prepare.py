# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Get, check, split, convert and describe datasets.

Examples:
    python tools/dataset_converters/prepare.py get refcoco \
        --out data/refcoco --images data/coco/train2014
    python tools/dataset_converters/prepare.py check data/refcoco \
        --dataset refcoco
    python tools/dataset_converters/prepare.py split data/mine \
        --dataset coco --val-fraction 0.2 --out data/mine_split
    python tools/dataset_converters/prepare.py convert data/mine \
        --dataset jsonl --to refer --out data/mine_refer
    python tools/dataset_converters/prepare.py stats data/refcoco \
        --dataset refcoco
"""
import argparse
import os.path as osp
import sys
import tempfile

from preparation.known_sets import DATASETS, FORMS, HUB


def parse_args() -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add('root', help='folder of the dataset')
    add('--dataset', required=True, choices=DATASETS)
    add('--split-by', help='which splits, e.g. unc, google, umd')
    add('--images', help='folder of the images, relative to the root')
    add('--masks', help='folder of the masks, relative to the root')
    add('--prompt-keys', nargs='+', metavar='KEY',
        help='official-json: which of the prompts to take')
    add('--size-mismatch', choices=['error', 'resize_image', 'resize_mask'],
        help='pictures that are not of the annotated size (default: error; '
        'resize_image for rrsis-d, resize_mask for refcocog)')

    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    commands = parser.add_subparsers(dest='command', required=True)
    get = commands.add_parser(
        'get', help='download annotations from the Hugging Face Hub')
    add = get.add_argument
    add('name', choices=[*HUB, 'grefcoco'])
    add('--out', metavar='DIR', required=True, help='folder to write to; what '
        'is there already is not downloaded again')
    add('--images', help="COCO's train2014, a folder (linked) or its zip "
        '(of which the pictures of the set are unpacked)')
    add('--to', choices=['refer', 'parquet'], default='refer',
        help='refer (default): also write the REFER layout that the configs '
        "read; parquet: keep the Hub's files only")
    check, split, convert, stats = (
        commands.add_parser(name, help=text, parents=[common])
        for name, text in dict(
            check='report missing and faulty data; exit status 0 if usable',
            split='divide into train and val, image by image',
            convert='write it in another form',
            stats='statistics and plots').items())
    for command in (check, stats):
        command.add_argument('--out', metavar='DIR', help='folder to write to '
                             '(default: work_dirs/prepare/DATASET)')
    for command in (split, convert):
        command.add_argument('--out', metavar='DIR', required=True,
                             help='new folder to write to')
    add = check.add_argument
    add('--context-length', type=int,
        help='where sentences are cut (default: 17; refcocog 22)')
    add('--decode-images', action='store_true',
        help='decode every image, not only its header')
    add('--workers', type=int, default=0, help='processes that decode images')
    add = split.add_argument
    add('--val-fraction', type=float, default=0.2, metavar='F',
        help='share of the images for val (default: %(default)s)')
    add('--seed', type=int, default=0,
        help='the same seed gives the same files (default: %(default)s)')
    add('--copy-images', action='store_true', help='copy the images, too')
    add = convert.add_argument
    add('--to', required=True, choices=FORMS)
    add('--no-images', action='store_true', help='do not copy the images')
    add('--shards', type=int, default=1, help='parquet: files per split')
    add('--shuffle', action='store_true', help='parquet: write the images in '
        'random order, for sets that are too large to shuffle in training')
    args = parser.parse_args()
    if args.command in ('check', 'stats') and args.out is None:
        args.out = osp.join('work_dirs', 'prepare', args.dataset)
    return args


def run(args: argparse.Namespace, scratch: str) -> int:
    """Run the command; return the exit status."""
    if args.command == 'get':
        from preparation.get import get
        print(get(args.name, args.out, args.to, args.images))
        return 0
    from preparation.locate import locate
    located = locate(args.root, args.dataset, args.split_by, args.images,
                     args.masks, args.prompt_keys, scratch, args.size_mismatch)
    if args.command == 'check':
        from preparation.check import check
        from preparation.report import summary, write_report
        result = check(located, args.context_length, args.decode_images,
                       args.workers)
        print(summary(result))
        print(f'report: {write_report(result, args.out)} and report.json')
        return 0 if result.usable else 1
    if args.command == 'stats':
        from preparation.stats import write_stats
        print(write_stats(located.read(), args.out))
        return 0
    from preparation.convert import convert, split_dataset
    if args.command == 'convert':
        copied = not args.no_images
        counts = convert(located, args.out, args.to, copied, args.shards,
                         args.shuffle)
    else:
        copied = (args.copy_images or bool(located.lmdb)
                  or located.info.reader == 'parquet')
        counts = split_dataset(located, args.out, args.val_fraction,
                               args.seed, copied)
    for split, n in counts.items():
        print(f'{split}: {n["refs"]} refs of {n["images"]} images')
    print(f'written to {args.out}. To train on it: data_root={args.out!r}' +
          ('' if copied or located.lmdb else ', data_prefix.img_path='
           f'{osp.abspath(located.img_folder)!r}'))
    return 0


def main() -> int:
    args = parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return run(args, scratch)
    except (ImportError, OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('stopped' + ('; the same command goes on'
                           if args.command == 'get' else ''), file=sys.stderr)
        return 130  # as shells say it


if __name__ == '__main__':
    sys.exit(main())
