# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Speed of one sample on one core: samples/s, and where the time goes.

Compared with reading and decoding the image alone, below which no data set of
files can get.

Example:
    python tools/analysis_tools/benchmark_data.py \
        configs/cris/cris_tiny_1xb8-50e_refer-192x256.py \
        --cfg-options train_dataloader.dataset.data_root=DIR
"""
import argparse
import time
from collections import defaultdict
from collections.abc import Callable

import cv2
import numpy as np
import torch
from mmengine.config import DictAction
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from cris.engine import load_config
from cris.io.files import read_bytes


def time_parts(dataset: BaseDataset, indices: np.ndarray) -> dict[str, float]:
    """Milliseconds of a sample in each transform, and of decoding alone.

    Args:
        dataset (BaseDataset): With mmengine's pipeline.
        indices (np.ndarray): Which samples.

    Returns:
        dict[str, float]: By name of the transform; 'record' is what
        fetching the record takes, 'decode' the image alone.
    """
    seconds: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable, *args):
        start = time.process_time()
        result = function(*args)
        seconds[name] += time.process_time() - start
        return result

    for i in indices:
        record = timed('record', dataset.get_data_info, int(i))
        path = record['img_path']
        timed('decode', lambda path=path: cv2.imdecode(
            np.frombuffer(read_bytes(path), np.uint8), cv2.IMREAD_COLOR))
        for transform in dataset.pipeline.transforms:
            record = timed(type(transform).__name__, transform, record)
    return {k: 1000 * v / len(indices) for k, v in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--loader', choices=['train', 'val', 'test'], default='train')
    parser.add_argument('--num', type=int, default=500, help='samples')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    cfg = load_config(args.config, args.cfg_options)
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg[f'{args.loader}_dataloader'].dataset)
    if isinstance(dataset, ConcatDataset):
        dataset = dataset.datasets[0]
        print('Of a mixed set, its first part:')
    rng = np.random.default_rng(0)
    indices = rng.integers(0, len(dataset), args.num)
    time_parts(dataset, indices[:20])  # warm up
    parts = time_parts(dataset, indices)
    decode = parts.pop('decode')
    total = sum(parts.values())
    for name, ms in parts.items():
        print(f'{name:22}{ms:8.2f} ms {100 * ms / total:5.1f} %')
    print(f'{"sample":22}{total:8.2f} ms: {1000 / total:.0f} samples/s of one '
          'core (CPU time)')
    print(f'{"decoding alone":22}{decode:8.2f} ms: {1000 / decode:.0f} '
          f'images/s; a sample takes {total / decode:.2f} times that')


if __name__ == '__main__':
    main()
