# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Draw a sheet of predictions, one expression for each of some test images.

The ground truth is outlined in yellow, the prediction is tinted cyan.
"""
import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config file')
    add('checkpoint', help='checkpoint file')
    add('out', help='picture to write')
    add('--num', type=int, default=16, help='images')
    add('--columns', type=int, default=4)
    add('--seed', type=int, default=0, help='seed of the random choice')
    add('--cfg-options', nargs='+', default=[],
        help='override the config, key=value')
    args = parser.parse_args()
    if args.num < 1 or args.columns < 1:
        parser.error('--num and --columns must be 1 or more')
    if not args.out.lower().endswith(('.jpg', '.jpeg', '.png', '.webp')):
        parser.error(f'end {args.out} in .jpg, .png or .webp')
    return args


def draw(args: argparse.Namespace) -> None:
    import mmcv
    import numpy as np
    import torch
    from mmengine.dataset import pseudo_collate
    from mmseg.registry import DATASETS
    from tqdm import tqdm

    import cris
    from cris.engine import load_config, optimize_for_inference
    from cris.visualization import draw_sheet, expression_tile
    cfg = load_config(args.config, args.cfg_options)
    model = optimize_for_inference(cris.init_model(cfg, args.checkpoint))
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    rng = np.random.default_rng(args.seed)
    tiles = []
    for i in tqdm(rng.permutation(len(dataset))[:args.num]):
        with torch.no_grad():
            (sample, ) = model.test_step(pseudo_collate([dataset[int(i)]]))
        k = rng.integers(len(sample.expressions))
        tiles.append(expression_tile(
            mmcv.imread(sample.img_path, channel_order='rgb'),
            sample.expressions[k],
            sample.gt_sem_seg.data[k].cpu().numpy() > 0.5,
            sample.pred_sem_seg.data[k].cpu().numpy()))
    mmcv.imwrite(draw_sheet(tiles, columns=args.columns)[..., ::-1], args.out)
    print(f'{len(tiles)} predictions in {args.out}')


def main() -> None:
    args = parse_args()
    try:
        draw(args)
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
