# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Print a config with its bases merged: print_config.py CONFIG."""
import argparse

from mmengine.config import DictAction

from cris.engine import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description='Print the whole config')
    parser.add_argument('config', help='config file')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    cfg = load_config(args.config, args.cfg_options)
    print(cfg.pretty_text)


if __name__ == '__main__':
    main()
