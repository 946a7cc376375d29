# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT."""
import argparse
import os
import os.path as osp

PRECISIONS = ('fp32', 'bf16', 'fp16')
BACKENDS = ('onnxruntime', 'openvino')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Evaluate a checkpoint')
    add = parser.add_argument
    add('config', help='config file')
    add('checkpoint', help='checkpoint file, or folder of export_onnx.py')
    add('--trust-checkpoint', action='store_true',
        help='run any code in the checkpoint; only for files whose origin is '
        'known')
    add('--precision', choices=PRECISIONS, default='fp32',
        help='of the matrix products; bf16 is several times as fast where '
        'the processor has it, fp16 needs a GPU')
    add('--backend', choices=BACKENDS, default='onnxruntime',
        help='runtime for an exported folder')
    add('--no-optimize', action='store_true',
        help='run the model as in training, in fp32: batch normalisation is '
        'not folded')
    add('--compile', action='store_true',
        help='use torch.compile, which takes minutes before the first batch')
    add('--work-dir', help='folder of the log')
    add('--out', help='write the scores to this JSON file')
    add('--audit', action='store_true',
        help="also score under the field's other conventions and print a "
        'table of them')
    add('--reviewed', metavar='FILE',
        help='also score without the expressions that a reviewed annotation '
        'file of Ref-L4 marks as wrong')
    add('--allow-unmatched', action='store_true',
        help='with --reviewed, go on if entries of the file or expressions of '
        'the test set do not match')
    add('--results',
        help='write a record per expression to this .json or .parquet file')
    add('--show-dir',
        help='write a picture of every sample: expressions, ground truth, '
        'prediction, IoU')
    add('--cfg-options', nargs='+', action='extend', default=[],
        metavar='KEY=VALUE', help='override the config; for example '
        'test_dataloader.dataset.split=testA')
    add('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none')
    add('--local_rank', '--local-rank', type=int, default=0)
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
    if args.allow_unmatched and args.reviewed is None:
        parser.error('--allow-unmatched goes with --reviewed')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def run(args: argparse.Namespace) -> None:
    # PyTorch takes seconds to import: --help does not wait for it.
    import torch
    from mmengine.dist import is_main_process
    from mmengine.fileio import dump
    from mmengine.runner import Runner

    from cris.engine.config import load_config
    from cris.engine.hooks.data_timeout_hook import data_workers
    from cris.engine.inference import optimize_for_inference
    from cris.engine.logs import log_run, quiet_logs, short_errors
    from cris.engine.ranks import init_ranks
    from cris.evaluation.conventions import add_audit, audit_table, find_metric
    from cris.evaluation.refseg_metric import RefSegMetric
    from cris.evaluation.results import check_results_file
    from cris.evaluation.reviewed import (
        match_reviewed,
        read_reviewed,
        reviewed_table,
    )
    from cris.io.checkpoints import load_weights, use_safe_loader
    from cris.models.fast_cpu import reuse_memory

    quiet_logs()
    use_safe_loader(args.trust_checkpoint)
    exported = osp.isdir(args.checkpoint)
    with short_errors() as phase:
        cfg = load_config(args.config, args.cfg_options, args.work_dir)
        cfg.merge_from_dict(
            dict(launcher=args.launcher, load_from=None, resume=False))
        if args.results is not None:
            check_results_file(args.results)
            find_metric(cfg.test_evaluator).out_file = args.results
        if args.reviewed is not None:
            find_metric(cfg.test_evaluator)
            entries = read_reviewed(args.reviewed)
        if args.audit:
            cfg.test_evaluator = add_audit(cfg.test_evaluator)
        if exported:
            cfg.model = dict(
                type='ExportedCRIS', folder=args.checkpoint,
                backend=args.backend, precision=args.precision)
        if args.show_dir is not None:
            cfg.default_hooks = dict(
                cfg.get('default_hooks', {}),
                visualization=dict(
                    type='SegVisualizationHook', draw=True, interval=1))
            cfg.visualizer = dict(
                type='ReferLocalVisualizer', show_dir=args.show_dir)
        if not torch.cuda.is_available():
            reuse_memory()
        init_ranks(cfg)
        runner = Runner.from_cfg(cfg)
        log_run(runner)
        if not exported:
            load_weights(runner.model, args.checkpoint, args.trust_checkpoint)
            if not args.no_optimize:
                optimize_for_inference(runner.model, args.precision,
                                       args.compile)
        data = runner.test_dataloader.dataset  # it is built now
        if args.reviewed is not None:
            review = match_reviewed(args.reviewed, entries, data,
                                    args.allow_unmatched)
            runner.logger.info(review.summary)
            metric = next(m for m in runner.test_loop.evaluator.metrics
                          if isinstance(m, RefSegMetric))
            metric.leave_out(review.wrong)
        phase.running = True
        with data_workers(runner):
            scores = runner.test()
    if is_main_process():
        if args.audit:
            print(audit_table(scores))
        if args.reviewed is not None:
            print(reviewed_table(scores))
        if args.out is not None:
            dump(scores, args.out, indent=2)


if __name__ == '__main__':
    run(parse_args())
