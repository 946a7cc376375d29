# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Speed of one sample on one core, and where the time goes."""
from argparse import Namespace

import cv2
import numpy as np
import torch
from mmengine.dataset import ConcatDataset
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from cris.engine import load_config

from . import index, scale
from .measuring import report, time_parts


def main(args: Namespace) -> None:
    if args.index is not None:
        index.main(args)
        return
    if args.scale is not None:
        scale.main(args)
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
    total = sum(parts.values())
    report(args, parts=[
        {'part': name, 'ms': ms, 'share, %': 100 * ms / total}
        for name, ms in parts.items()])
    print(f'\nsample {total:.2f} ms: {1000 / total:.0f} samples/s of one core '
          '(CPU time)')
