# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Count parameters and FLOPs of a model, for one image and one expression.

A multiply-add counts as two. The head computes the same sums in another order
than the official code, whose FLOPs are printed, too.
"""
import argparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('config', help='config file')
    add('--shape', type=int, nargs=2, metavar=('H', 'W'),
        help="size of the input in pixels (default: the config's)")
    add('--cfg-options', nargs='+', default=[],
        help='override the config, key=value')
    args = parser.parse_args()
    from benchmarking.flops import STAGES, count_flops
    from mmengine.utils import to_2tuple

    from cris.engine import load_config
    cfg = load_config(args.config, args.cfg_options)
    cfg.image_size = args.shape or cfg.image_size
    height, width = to_2tuple(cfg.image_size)
    flops = count_flops(cfg)
    print(f'input {height}x{width}, {cfg.context_length} tokens, one image, '
          'one expression')
    print(f'parameters     {flops["parameters"] / 1e6:8.2f} M')
    for stage in STAGES:
        print(f'{stage:14} {flops[stage] / 1e9:8.1f} GFLOPs')
    total = sum(flops[stage] for stage in STAGES)
    print(f'total          {total / 1e9:8.1f} GFLOPs')
    print(f'official code  {flops["official"] / 1e9:8.1f} GFLOPs (head '
          f'{flops["official head"] / 1e9:.2f})')


if __name__ == '__main__':
    main()
