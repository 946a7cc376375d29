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


def draw(args: argparse.Namespace) -> int:
    """Write the sheet; return the number of its predictions."""
    import mmcv
    import numpy as np
    import torch
    from mmengine.dataset import pseudo_collate
    from mmseg.registry import DATASETS
    from tqdm import tqdm

    import cris
    from cris.engine import load_config, optimize_for_inference
    from cris.visualization import draw_expression_tile, join_tiles
    cfg = load_config(args.config, args.cfg_options)
    model = optimize_for_inference(cris.init_model(cfg, args.checkpoint))
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    rng = np.random.default_rng(args.seed)
    tiles = []
    for i in tqdm(rng.permutation(len(dataset))[:args.num]):
        with torch.no_grad():
            (sample, ) = model.test_step(pseudo_collate([dataset[int(i)]]))
        k = rng.integers(len(sample.expressions))
        gt = sample.gt_sem_seg.data[k].cpu().numpy() > 0.5
        pred = sample.pred_sem_seg.data[k].cpu().numpy()
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        tiles.append(
            draw_expression_tile(image, sample.expressions[k], gt, pred))
    mmcv.imwrite(join_tiles(tiles, args.columns)[..., ::-1], args.out)
    return len(tiles)


def main() -> None:
    args = parse_args()
    try:
        count = draw(args)
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    print(f'{count} predictions in {args.out}')


if __name__ == '__main__':
    main()
