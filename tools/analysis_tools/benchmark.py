# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Measure speed and memory of models, of data loading and of tests.

    python tools/analysis_tools/benchmark.py model CONFIG --precision fp32 bf16
    python tools/analysis_tools/benchmark.py data CONFIG
    python tools/analysis_tools/benchmark.py test CONFIG
    python tools/analysis_tools/benchmark.py export CONFIG

Models have random weights. Every time is the median of several runs.
"""
import argparse
import importlib

PRECISIONS = ('fp32', 'bf16', 'fp16')
BACKENDS = ('onnxruntime', 'openvino')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    commands = parser.add_subparsers(dest='command', required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        '--threads', type=int, help="threads of a model (default: torch's)")
    shared.add_argument('--json', help='write all figures to this file')
    shared.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        help='override the config, key=value')
    runs = argparse.ArgumentParser(add_help=False)
    runs.add_argument(
        '--precision', nargs='+', choices=PRECISIONS, default=['fp32'])
    runs.add_argument(
        '--runs', type=int, default=5, help='of which the median is taken')
    runs.add_argument(
        '--expressions',
        type=int,
        nargs='+',
        help='expressions of one image')

    model = commands.add_parser(
        'model',
        parents=[shared, runs],
        help='time of each stage, training step, peak memory, and how far '
        'the model is from the rate of matrix products')
    model.add_argument('config', help='config file')
    model.add_argument(
        '--device', choices=['cpu', 'cuda'], help='default: a GPU if present')
    model.add_argument(
        '--train-batch',
        type=int,
        default=4,
        help='images of a training step; 0 skips training')
    model.add_argument(
        '--train-expressions',
        type=int,
        default=1,
        help='expressions of each image in training')
    model.add_argument(
        '--compile', action='store_true', help='use torch.compile')
    other = model.add_mutually_exclusive_group()
    other.add_argument(
        '--growth',
        metavar='FILE',
        help='instead, plot how time and memory grow with --expressions, '
        '--sizes and --batches')
    other.add_argument(
        '--api',
        type=int,
        metavar='N',
        help='instead, time CRISInferencer with N expressions of one picture '
        'against N calls with one')
    model.add_argument(
        '--sizes',
        type=int,
        nargs='+',
        default=[320, 416, 512, 576, 640],
        help='sides of the image for --growth, pixels')
    model.add_argument(
        '--batches',
        type=int,
        nargs='+',
        default=[1, 4, 8, 16],
        help='images at once for --growth')
    model.add_argument(
        '--picture',
        nargs=2,
        type=int,
        default=[480, 640],
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the picture for --api')

    data = commands.add_parser(
        'data',
        parents=[shared],
        help='samples per second of one core and where the time goes, or '
        'time and memory of indexing a dataset as large as RefCOCO')
    data.add_argument('config', nargs='?', help='config file')
    data.add_argument(
        '--loader', choices=['train', 'val', 'test'], default='train')
    data.add_argument('--num', type=int, default=500, help='samples')
    data.add_argument(
        '--index',
        metavar='DIR',
        help='instead of a config: index the generated dataset in DIR, which '
        'is written first if need be')

    test = commands.add_parser(
        'test',
        parents=[shared],
        help='expressions per second of tools/test.py, with and without what '
        'makes it fast')
    test.add_argument('config', help='config file')
    test.add_argument(
        '--images', type=int, default=12, help='images of the fast test')
    test.add_argument(
        '--expressions',
        type=int,
        default=40,
        help='expressions of the slow test')
    test.add_argument(
        '--per-image',
        type=int,
        default=7,
        help='use only the first expressions of each image')
    test.add_argument('--precision', choices=PRECISIONS, default='fp32')

    export = commands.add_parser(
        'export',
        parents=[shared, runs],
        help='time of an exported model')
    export.add_argument('config', help='config file')
    export.add_argument(
        '--folder',
        help='written by tools/deployment/export_onnx.py (default: export '
        "the config's model with random weights)")
    export.add_argument(
        '--backend', nargs='+', choices=BACKENDS, default=list(BACKENDS))

    args = parser.parse_args()
    if args.command == 'data' and (args.config is None) == (
            args.index is None):
        parser.error('data needs either a config or --index DIR')
    return args


def main() -> None:
    args = parse_args()
    # After parsing: importing torch takes seconds.
    importlib.import_module(f'benchmarking.{args.command}').main(args)


if __name__ == '__main__':
    main()
