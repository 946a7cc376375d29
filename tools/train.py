# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Train a model: python tools/train.py CONFIG."""
import argparse
import os


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
        'in the work dir that is not damaged, or from the start if there is '
        'none')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='run any code in the checkpoint; only for files whose origin is '
        'known')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision; bfloat16 where there is no GPU')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='multiply the learning rate by the expressions per step (images '
        "x expressions per image x processes) / the config's "
        'auto_scale_lr.base_batch_size')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY=VALUE',
        help='override the config; nested keys with dots, lists as '
        'key="[a,b]"')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def main() -> None:
    args = parse_args()
    # PyTorch takes seconds to import: --help does not wait for it.
    from cris.engine.training import train
    train(args)


if __name__ == '__main__':
    main()
