# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""INT8: tools/deployment/quantize_onnx.py CONFIG DIR OUT."""
import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Quantize an exported model to INT8. To see the loss of '
        'accuracy, run tools/test.py with CONFIG DIR and with CONFIG OUT')
    parser.add_argument('config', help='config file')
    parser.add_argument('folder', help='folder from export_onnx.py')
    parser.add_argument('out', help='folder of the new model')
    parser.add_argument(
        '--split',
        default='train',
        help='split whose images give the ranges of the activations '
        '(default: %(default)s)')
    parser.add_argument('--num-images', type=int, default=32)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        metavar='KEY=VALUE',
        help='override the config')
    return parser.parse_args()


def calibration_samples(cfg, split: str, count: int):
    """Images of a split, evenly spaced, with all their expressions."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import DATASETS, MODELS
    init_default_scope('mmseg')
    dataset = DATASETS.build(
        dict(cfg.test_dataloader.dataset, split=split, test_mode=True))
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    count = min(count, len(dataset))
    for i in range(count):
        sample = dataset[i * len(dataset) // count]
        data = preprocessor(dict(inputs=[sample['inputs']]), training=False)
        yield dict(
            images=data['inputs'], tokens=sample['data_samples'].tokens)


def main() -> None:
    args = parse_args()
    # After the options: importing takes seconds.
    from cris.deploy.quantize import quantize_onnx
    from cris.engine.config import load_config
    try:
        cfg = load_config(args.config, args.cfg_options)
        quantize_onnx(
            args.folder, args.out,
            calibration_samples(cfg, args.split, args.num_images))
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    print(args.out)


if __name__ == '__main__':
    main()
