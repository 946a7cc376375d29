# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Draw samples as they leave the pipeline: image, expressions and masks."""
import argparse
import os.path as osp


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config file')
    add('--out-dir', default='work_dirs/browse')
    add('--num', type=int, default=20, help='samples')
    add('--loader', choices=['train', 'val', 'test'], default='train',
        help='whose dataset (default: train)')
    add('--cfg-options', nargs='+', default=[],
        help='override the config, key=value')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    import mmcv
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS
    from tqdm import tqdm

    from cris.engine import load_config
    from cris.visualization import draw_expressions
    cfg = load_config(args.config, args.cfg_options)
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg[f'{args.loader}_dataloader'].dataset)
    count = min(args.num, len(dataset))
    for i in tqdm(range(count)):
        packed = dataset[i]
        sample = packed['data_samples']
        image = packed['inputs'].numpy()[::-1].transpose(1, 2, 0)
        masks = sample.gt_sem_seg.data.numpy() > 0.5
        if masks.shape[1:] != image.shape[:2]:
            # In evaluation the masks keep the original size.
            image = mmcv.imread(sample.img_path, channel_order='rgb')
        stem = osp.splitext(osp.basename(sample.img_path))[0]
        mmcv.imwrite(
            draw_expressions(image, sample.expressions, masks)[..., ::-1],
            osp.join(args.out_dir, f'{i:05d}_{stem}.jpg'))
    print(f'{count} pictures in {args.out_dir}')


if __name__ == '__main__':
    main()
