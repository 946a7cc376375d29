# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Turn the official repository's LMDB files into its JSON form.

Example:
    python tools/dataset_converters/lmdb_to_json.py data/lmdb data/official
"""
import argparse
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('src', help='folder of <split>.lmdb, or one of them')
    parser.add_argument(
        'dst', help='new folder, for anns/<split>.json, masks/ and images/')
    args = parser.parse_args()
    from preparation.official_lmdb import convert_lmdb
    try:
        counts, faults = convert_lmdb(args.src, args.dst)
    except (ImportError, OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    for fault in faults:
        print(f'left out: {fault}', file=sys.stderr)
    for split, number in counts.items():
        print(f'{split}: {number} refs')
    print(f'written to {args.dst}; {len(faults)} broken entries left out')
    return 1 if faults else 0


if __name__ == '__main__':
    sys.exit(main())
