# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""INT8: python tools/deployment/quantize_onnx.py CONFIG DIR OUT.

The ranges of activations are found with pictures of the training split. What
it costs: tools/test.py CONFIG DIR against tools/test.py CONFIG OUT.
"""
import argparse
from collections.abc import Iterator

from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, MODELS

from cris.deploy import quantize_onnx
from cris.engine import load_config


def calibration_samples(cfg: Config, split: str, count: int) -> Iterator[dict]:
    """Pictures of a split, evenly spread, with all their expressions."""
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
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('folder', help='by export_onnx.py')
    parser.add_argument('out', help='folder of the new model')
    parser.add_argument('--split', default='train')
    parser.add_argument('--num-images', type=int, default=32)
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={})
    args = parser.parse_args()
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
