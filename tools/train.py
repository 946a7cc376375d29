# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Train a model: python tools/train.py CONFIG."""
import argparse
import os
from collections.abc import Sized

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import get_world_size
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from cris.engine import (
    avoid_fused,
    explain_data_errors,
    init_cpu_process_group,
    latest_checkpoint,
    load_config,
    use_bfloat16,
)
from cris.io.checkpoints import load_weights, use_safe_loader
from cris.models.fast_cpu import reuse_memory


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder of logs and checkpoints')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='resume from a checkpoint; without a name, from the latest one '
        'in the work dir that is not broken, or from the start if there is '
        'none')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='run whatever code the checkpoint brings; only for files whose '
        'origin is known')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision; bfloat16 where there is no GPU')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the rate by this run's batch over all processes / the "
        "config's auto_scale_lr.base_batch_size")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override the config, key=value; nested keys with dots, lists '
        'as key="[a,b]"')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def build_config(args: argparse.Namespace) -> Config:
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    cfg.launcher = args.launcher
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise SystemExit(
                '--auto-scale-lr: the config has no auto_scale_lr='
                'dict(base_batch_size=...), the batch that its rate is for')
        cfg.auto_scale_lr.enable = True
    if (cfg.get('strategy', {}).get('type') == 'FSDPStrategy'
            and cfg.optim_wrapper.get('clip_grad')):
        raise SystemExit(
            'mmengine clips the shard of each process by its own norm, not '
            'by that of all: with FSDPStrategy set '
            'optim_wrapper.clip_grad=None')
    if not torch.cuda.is_available():
        reuse_memory()
        avoid_fused(cfg)
        if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper':
            use_bfloat16(cfg)
        if args.launcher != 'none':
            init_cpu_process_group(cfg)
    return cfg


def is_restart() -> bool:
    """Whether torchrun has started this process anew after a failure."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0


def check_data(runner: Runner) -> None:
    """Read the data sets; end with a sentence if they cannot be used.

    Nor are epochs accepted that have no batch: nothing would be trained.
    """
    try:
        loader = runner.train_dataloader
        if runner.val_loop is not None:
            runner.val_dataloader  # noqa: B018  it is built now
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    if isinstance(loader.dataset, Sized) and not len(loader):
        raise SystemExit(
            f'an epoch has no batch: {len(loader.dataset)} samples, '
            f'{get_world_size()} process(es), batch_size={loader.batch_size}, '
            f'drop_last={loader.drop_last}. Take a smaller '
            'train_dataloader.batch_size, or drop_last=False')


def main() -> None:
    args = parse_args()
    use_safe_loader(args.trust_checkpoint)
    cfg = build_config(args)
    if cfg.resume and (cfg.load_from is None or is_restart()):
        cfg.load_from = latest_checkpoint(cfg.work_dir) or cfg.load_from
    cfg.resume = cfg.resume and cfg.load_from is not None
    runner = (
        RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg))
    if cfg.load_from is not None and isinstance(runner, Runner):
        # mmengine itself would go on with what does not fit left at random.
        load_weights(runner.model, cfg.load_from, args.trust_checkpoint)
    with explain_data_errors(runner):
        check_data(runner)
        runner.train()


if __name__ == '__main__':
    main()
