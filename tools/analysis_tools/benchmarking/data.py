# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Speed of one sample on one core, and where the time goes.

The lower bound is reading and decoding the image alone.
"""
import argparse
import time
from collections import defaultdict
from collections.abc import Callable

import cv2
import numpy as np
import torch
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from cris.engine import load_config
from cris.io.files import read_bytes

from . import index
from .measuring import print_table, write_json


def time_parts(dataset: BaseDataset, indices: np.ndarray) -> dict[str, float]:
    """Milliseconds of CPU time for a sample.

    Args:
        dataset (BaseDataset): With mmengine's pipeline.
        indices (np.ndarray): Which samples.

    Returns:
        dict[str, float]: By name of the transform; 'record' for fetching
        the record and 'decode' for the image alone.
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


def main(args: argparse.Namespace) -> None:
    if args.index is not None:
        index.main(args)
        return
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    cfg = load_config(args.config, args.cfg_options)
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg[f'{args.loader}_dataloader'].dataset)
    if isinstance(dataset, ConcatDataset):
        dataset = dataset.datasets[0]
        print('The first part of a concatenated dataset:')
    indices = np.random.default_rng(0).integers(0, len(dataset), args.num)
    time_parts(dataset, indices[:20])  # warm up
    parts = time_parts(dataset, indices)
    write_json(args.json, milliseconds=parts)
    decode = parts.pop('decode')
    total = sum(parts.values())
    print_table(['part', 'ms', 'share'], [[
        name, f'{ms:.2f}', f'{100 * ms / total:.1f} %'
    ] for name, ms in parts.items()])
    print(f'\nsample {total:.2f} ms: {1000 / total:.0f} samples/s of one core '
          f'(CPU time)\ndecoding alone {decode:.2f} ms: {1000 / decode:.0f} '
          f'images/s; a sample takes {total / decode:.2f} times that')
