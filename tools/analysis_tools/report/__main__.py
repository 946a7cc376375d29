# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""One HTML page about a test run: scores, curves, samples, words.

The page needs no other file and no network.

Example:
    python tools/test.py CONFIG CHECKPOINT --results results.json
    python tools/analysis_tools/report.py results.json --out report.html
"""
import argparse

from page import write_report


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'results', help='.json or .parquet of tools/test.py --results')
    parser.add_argument('--out', default='report.html', help='page to write')
    parser.add_argument(
        '--img-root',
        help='folder of the images, by their file names, if they are no '
        'longer where the results say')
    parser.add_argument(
        '--num',
        type=int,
        default=8,
        help='pictures of the best, median and worst, each')
    parser.add_argument(
        '--title', help='for instance the model and the split')
    args = parser.parse_args()
    if not args.out.endswith('.html'):
        parser.error(f'--out writes HTML, got {args.out}')
    if not 0 <= args.num <= 100:
        parser.error(f'--num {args.num}: it must be 0 ... 100, so that the '
                     'page stays small')
    return args


def main() -> None:
    args = parse_args()
    try:
        faults = write_report(args.results, args.out, args.img_root, args.num,
                              args.title)
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f'error: {error}') from error
    for fault in faults[:5]:
        print(f'no picture: {fault}')
    if len(faults) > 5:
        print(f'... and {len(faults) - 5} more')
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
