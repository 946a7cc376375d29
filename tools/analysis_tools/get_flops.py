# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Count parameters and FLOPs of a model, for one image and one expression.

A multiply-add counts as two. The head computes the same sums in another order
than the official code, whose FLOPs are printed, too.
"""
import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('config', help='config file')
    add('--shape', type=int, nargs=2, metavar=('H', 'W'),
        help="size of the input in pixels (default: the config's)")
    add('--cfg-options', nargs='+', default=[],
        help='override the config, key=value')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from benchmarking.flops import STAGES, count_flops

    import cris
    from cris.engine import load_config
    cfg = load_config(args.config, args.cfg_options)
    cfg.model.backbone.init_cfg = None
    model = cris.init_model(cfg, device='cpu', pretrained=False)
    shape = args.shape or cfg.image_size
    height, width = (shape, shape) if isinstance(shape, int) else shape

    parameters = sum(p.numel() for p in model.parameters())
    flops = count_flops(model, height, width, cfg.context_length)
    print(f'input {height}x{width}, {cfg.context_length} tokens, one image, '
          'one expression')
    print(f'parameters     {parameters / 1e6:8.2f} M')
    for stage in STAGES:
        print(f'{stage:14} {flops[stage] / 1e9:8.1f} GFLOPs')
    total = sum(flops[stage] for stage in STAGES)
    print(f'total          {total / 1e9:8.1f} GFLOPs')
    print(f'official code  {flops["official"] / 1e9:8.1f} GFLOPs (head '
          f'{flops["official head"] / 1e9:.2f})')


if __name__ == '__main__':
    main()
