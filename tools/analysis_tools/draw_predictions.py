# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Draw a sheet of predictions, one expression for each of some images."""
import argparse

import mmcv
import numpy as np
import torch
from mmengine.config import DictAction
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS
from tqdm import tqdm

from cris.engine import load_config
from cris.io.checkpoints import load_weights
from cris.visualization import draw_sheet, expression_tile


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Draw a sheet of predictions: ground truth outlined in '
        'yellow, prediction tinted cyan')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('out', help='picture to write')
    parser.add_argument('--num', type=int, default=16, help='images')
    parser.add_argument('--columns', type=int, default=4)
    parser.add_argument('--seed', type=int, default=0, help='of the choice')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    if args.num < 1 or args.columns < 1:
        parser.error('--num and --columns must be 1 or more')
    if not args.out.lower().endswith(('.jpg', '.jpeg', '.png', '.webp')):
        parser.error(f'end {args.out} in .jpg, .png or .webp')
    return args


@torch.no_grad()
def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    load_weights(model, args.checkpoint)
    model.to('cuda' if torch.cuda.is_available() else 'cpu').eval()
    dataset = DATASETS.build(cfg.test_dataloader.dataset)

    rng = np.random.default_rng(args.seed)
    chosen = rng.permutation(len(dataset))[:args.num]
    tiles = []
    for i in tqdm(chosen):
        (sample, ) = model.test_step(pseudo_collate([dataset[int(i)]]))
        k = rng.integers(len(sample.expressions))
        gt = sample.gt_sem_seg.data[k].cpu().numpy() > 0.5
        pred = sample.pred_sem_seg.data[k].cpu().numpy()
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        tiles.append(
            expression_tile(image, sample.expressions[k], gt, pred))
    sheet = draw_sheet(tiles, columns=args.columns)
    mmcv.imwrite(sheet[..., ::-1], args.out)
    print(f'{len(tiles)} predictions in {args.out}')


if __name__ == '__main__':
    main()
