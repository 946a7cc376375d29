# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Train a model: python tools/train.py CONFIG."""
import argparse
import os
import signal


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a model')
    add = parser.add_argument
    add('config', help='config file')
    add('--work-dir', help='folder of logs and checkpoints')
    add('--resume', nargs='?', const='auto', metavar='CKPT',
        help='resume from a checkpoint; without a name, from the latest one '
        'in the work dir that is not damaged, or from the start if there is '
        'none')
    add('--trust-checkpoint', action='store_true',
        help='run any code in the checkpoint; only for files whose origin is '
        'known')
    add('--amp', action='store_true',
        help='mixed precision; bfloat16 where there is no GPU')
    add('--auto-scale-lr', action='store_true',
        help='multiply the learning rate by the expressions per step (images '
        "x expressions per image x processes) / the config's "
        'auto_scale_lr.base_batch_size')
    add('--max-minutes', type=float, metavar='M',
        help='train for M minutes at most; the schedule of the learning rate '
        'passes as much faster')
    add('--cfg-options', nargs='+', action='extend', default=[],
        metavar='KEY=VALUE', help='override the config; nested keys with '
        'dots, lists as key="[a,b]"')
    add('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none')
    add('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


if __name__ == '__main__':
    arguments = parse_args()
    # Only a training that can be resumed ends with 143. After a fault of one
    # process, launchers send SIGTERM to the others, and srun reports the
    # highest status.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
    # PyTorch takes seconds to import: --help does not wait for it.
    from cris.engine.training import train
    train(arguments)
