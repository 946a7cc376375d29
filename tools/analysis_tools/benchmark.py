# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Measure speed and memory of models, of data loading and of tests.

    python tools/analysis_tools/benchmark.py model CONFIG --precision fp32 bf16
    python tools/analysis_tools/benchmark.py train CONFIG --precision bf16
    python tools/analysis_tools/benchmark.py data CONFIG
    python tools/analysis_tools/benchmark.py test CONFIG
    python tools/analysis_tools/benchmark.py export CONFIG

Models have random weights. Every time is the median of several runs. A GPU is
used if torch finds one; CUDA_VISIBLE_DEVICES= hides it.
"""
import argparse
import importlib
import os

PRECISIONS = ('fp32', 'bf16', 'fp16')
BACKENDS = ('onnxruntime', 'openvino')
MODES = ('default', 'channels-first', 'recompute', 'compile')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    commands = parser.add_subparsers(dest='command', required=True)

    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add('--threads', type=int, help="threads of a model (default: torch's)")
    add('--json', help='write all figures to this file')
    add('--cfg-options', nargs='+', default=[],
        help='override the config, key=value')

    runs = argparse.ArgumentParser(add_help=False, parents=[shared])
    add = runs.add_argument
    add('config', help='config file')
    add('--precision', nargs='+', choices=PRECISIONS, default=['fp32'])
    add('--runs', type=int, default=5, help='the median is reported')
    add('--expressions', type=int, nargs='+', help='expressions of one image')

    add = commands.add_parser(
        'model', parents=[runs], help='time of each stage and of a training '
        'step, peak memory, distance from the rate of matrix products'
    ).add_argument
    add('--train-batch', type=int, default=4,
        help='images of a training step; 0 skips training')
    add('--train-expressions', type=int, default=1,
        help='expressions of each image in training')
    add('--compile', action='store_true', help='use torch.compile')
    add('--api', type=int, metavar='N', help='instead, time CRISInferencer '
        'with N expressions of one picture against N calls with one')

    add = commands.add_parser(
        'train', parents=[shared], help='images per second and memory of '
        'training, for several batches and ways').add_argument
    add('config', help='config file')
    add('--precision', choices=PRECISIONS, default='fp32')
    add('--batch', type=int, nargs='+', default=[8, 16, 32, 64],
        help='images of a step, up to the first that does not fit')
    add('--mode', nargs='+', choices=MODES, default=['default'],
        help='default: as tools/train.py; channels-first: without the '
        'memory format channels last, which mixed precision uses; recompute: '
        'less memory; compile: torch.compile, takes minutes for each batch')
    add('--train-expressions', type=int, default=1,
        help='expressions of each image')
    add('--runs', type=int, default=5, help='the median is reported')

    add = commands.add_parser(
        'data', parents=[shared], help='samples per second of one core and '
        'where the time goes; or cost of large datasets').add_argument
    add('config', nargs='?', help='config file')
    add('--loader', choices=['train', 'val', 'test'], default='train')
    add('--num', type=int, default=500, help='samples')
    add('--index', metavar='DIR', help='instead of a config: time and memory '
        'of indexing a dataset as large as RefCOCO, generated in DIR')
    add('--scale', metavar='DIR', help='instead of a config: a million refs '
        'in parquet files, generated in DIR')

    add = commands.add_parser(
        'test', parents=[shared], help='expressions per second of '
        'tools/test.py, with and without what makes it fast').add_argument
    add('config', help='config file')
    add('--images', type=int, default=12, help='images of the fast test')
    add('--expressions', type=int, default=40,
        help='expressions of the slow test')
    add('--per-image', type=int, default=7,
        help='use only the first expressions of each image')
    add('--precision', choices=PRECISIONS, default='fp32')

    add = commands.add_parser(
        'allreduce', parents=[shared], help='sums over the processes that '
        'torchrun starts').add_argument
    add('--megabytes', type=float, default=256, help='fp32 numbers')
    add('--runs', type=int, default=5, help='the median is reported')

    add = commands.add_parser(
        'export', parents=[runs], help='time of an exported model, on a CPU'
    ).add_argument
    add('--folder', help='written by tools/deployment/export_onnx.py '
        "(default: export the config's model with random weights)")
    add('--backend', nargs='+', choices=BACKENDS, default=list(BACKENDS))

    parser.set_defaults(compile=False)
    args = parser.parse_args()
    if args.command == 'data' and [
            args.config, args.index, args.scale].count(None) != 2:
        parser.error('data needs either a config, --index DIR or --scale DIR')
    return args


def main() -> None:
    args = parse_args()
    if args.command == 'export':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''  # torch finds no GPU
    import torch  # after parsing: importing it takes seconds
    if args.threads:
        torch.set_num_threads(args.threads)
    importlib.import_module(f'benchmarking.{args.command}').main(args)


if __name__ == '__main__':
    main()
