# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Whether the ranks of torchrun add up right, and how fast."""
import os
from argparse import Namespace

import torch
import torch.distributed as dist

from .measuring import DEVICE, Clock, report


def main(args: Namespace) -> None:
    rank, local = int(os.environ['RANK']), int(os.environ['LOCAL_RANK'])
    if DEVICE == 'cuda':
        torch.cuda.set_device(local)
    dist.init_process_group('nccl' if DEVICE == 'cuda' else 'gloo')
    ranks = dist.get_world_size()
    x = torch.full([int(args.megabytes * 2**18)], rank + 1., device=DEVICE)
    dist.all_reduce(x)
    right = bool((x == ranks * (ranks + 1) / 2).all())
    x.fill_(0)
    seconds, _ = Clock(args.runs).measure(lambda: dist.all_reduce(x))
    # As NVIDIA's nccl-tests count: what passes through each rank's link.
    rate = x.numel() * 4 * 2 * (ranks - 1) / ranks / seconds / 1e9
    dist.destroy_process_group()
    if not right:
        raise SystemExit(f'error: rank {rank} has a wrong sum')
    if rank == 0:
        report(args, sums=[{
            'backend': 'nccl' if DEVICE == 'cuda' else 'gloo', 'ranks': ranks,
            'MiB': args.megabytes, 'all-reduce, ms': 1e3 * seconds,
            'bus, GB/s': rate}])
