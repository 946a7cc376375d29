# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT."""
import argparse
import os
import os.path as osp

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import is_main_process
from mmengine.fileio import dump
from mmengine.runner import Runner

from cris.deploy import BACKENDS
from cris.engine import (
    PRECISIONS,
    explain_data_errors,
    init_cpu_process_group,
    load_config,
    optimize_for_inference,
)
from cris.evaluation import add_audit, audit_table, check_results_file
from cris.evaluation.conventions import find_metric
from cris.io.checkpoints import load_weights, use_safe_loader
from cris.models.fast_cpu import reuse_memory


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Evaluate a checkpoint')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'checkpoint', help='checkpoint file, or folder of export_onnx.py')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='run whatever code the checkpoint brings; only for files whose '
        'origin is known')
    parser.add_argument(
        '--precision',
        choices=PRECISIONS,
        default='fp32',
        help='of the matrix products; bf16 is several times as fast where '
        'the processor has it, fp16 needs a GPU')
    parser.add_argument(
        '--backend',
        choices=BACKENDS,
        default='onnxruntime',
        help='what runs the graphs of a folder')
    parser.add_argument(
        '--no-optimize',
        action='store_true',
        help='run the model as training leaves it, in fp32: no folding of '
        'batch normalisation')
    parser.add_argument(
        '--compile',
        action='store_true',
        help='use torch.compile, which takes minutes before the first batch')
    parser.add_argument('--work-dir', help='folder of the log')
    parser.add_argument('--out', help='write the scores to this JSON file')
    parser.add_argument(
        '--audit',
        action='store_true',
        help="also score under the field's other conventions and print a "
        'table of them')
    parser.add_argument(
        '--results',
        help='write a record per expression to this .json or .parquet file')
    parser.add_argument(
        '--show-dir',
        help='write a picture of every sample: expressions, ground truth, '
        'prediction, IoU')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override the config, key=value; for example '
        'test_dataloader.dataset.split=testA')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    if args.no_optimize and (args.compile or args.precision != 'fp32'):
        parser.error('--no-optimize goes with neither --compile nor another '
                     '--precision than fp32')
    if osp.isdir(args.checkpoint) and (
            args.no_optimize or args.compile or args.trust_checkpoint):
        parser.error('--no-optimize, --compile and --trust-checkpoint are for '
                     f'a checkpoint; {args.checkpoint} is a folder')
    if args.out is not None and not args.out.endswith('.json'):
        parser.error(f'--out writes JSON, got {args.out}')
    if args.results is not None:
        try:
            check_results_file(args.results)
        except (ImportError, ValueError) as error:
            parser.error(f'--results: {error}')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def build_config(args: argparse.Namespace) -> Config:
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    cfg.launcher = args.launcher
    cfg.load_from = None
    cfg.resume = False
    if args.results is not None:
        find_metric(cfg.test_evaluator).out_file = args.results
    if osp.isdir(args.checkpoint):
        cfg.model = dict(
            type='ExportedCRIS',
            folder=args.checkpoint,
            backend=args.backend,
            precision=args.precision)
    if args.audit:
        cfg.test_evaluator = add_audit(cfg.test_evaluator)
    if args.show_dir is not None:
        cfg.setdefault('default_hooks', {})['visualization'] = dict(
            type='SegVisualizationHook', draw=True, interval=1)
        cfg.visualizer = dict(
            type='ReferLocalVisualizer', show_dir=args.show_dir)
    if not torch.cuda.is_available():
        reuse_memory()
        if args.launcher != 'none':
            init_cpu_process_group(cfg)
    return cfg


def main() -> None:
    args = parse_args()
    use_safe_loader(args.trust_checkpoint)
    runner = Runner.from_cfg(build_config(args))
    try:
        if not osp.isdir(args.checkpoint):
            load_weights(runner.model, args.checkpoint, args.trust_checkpoint)
            if not args.no_optimize:
                optimize_for_inference(runner.model, args.precision,
                                       args.compile)
        runner.test_dataloader  # noqa: B018  it is built now
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    with explain_data_errors(runner):
        scores = runner.test()
    if not is_main_process():
        return
    if args.audit:
        print(audit_table(scores))
    if args.out is not None:
        dump(scores, args.out, indent=2)


if __name__ == '__main__':
    main()
