# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Print a config with its bases merged: print_config.py CONFIG."""
import argparse


def main() -> None:
    parser = argparse.ArgumentParser(description='Print the whole config')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', default=[],
        metavar='KEY=VALUE', help='override the config')
    args = parser.parse_args()
    from cris.engine.config import load_config
    try:
        print(load_config(args.config, args.cfg_options).pretty_text)
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
