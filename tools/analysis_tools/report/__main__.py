# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Write one HTML page about a test run: scores, curves, samples, words.

The page needs no other file and no network.

    python tools/test.py CONFIG CHECKPOINT --results results.json
    python tools/analysis_tools/report results.json --out report.html
"""
import argparse
import sys
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='report', description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('results', help='.json or .parquet of tools/test.py --results')
    add('--out', default='report.html', help='page to write')
    add('--img-root', help='folder of the images, by file name, if they have '
        'moved since the test')
    add('--num', type=int, default=8,
        help='number of best, median and worst samples, each')
    add('--title', help='title of the page, e.g. the model and the split')
    args = parser.parse_args()
    if not args.out.endswith('.html'):
        parser.error(f'--out writes HTML, got {args.out}')
    if not 0 <= args.num <= 100:
        parser.error(f'--num must be 0 to 100, so that the page stays small, '
                     f'got {args.num}')
    return args


def main() -> None:
    args = parse_args()
    # Run as a folder, Python puts that folder on the path, not its parent.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from report.page import write_report
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
