# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Speed of tools/test.py with and without what makes it fast.

Without: one expression of an image at a time, the model as training leaves
it, fp32.
"""
import argparse
import logging
import tempfile

import torch
from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import TRANSFORMS

from cris.engine import load_config, optimize_for_inference
from cris.models.fast_cpu import reuse_memory

from . import measuring


@TRANSFORMS.register_module()
class FirstExpressions(BaseTransform):
    """Keeps the first ``count`` expressions of a sample."""

    def __init__(self, count: int):
        self.count = count

    def transform(self, sample: dict) -> dict:
        refs, left = [], self.count
        for ref in sample['refs']:
            sentences = ref['sentences'][:left]
            left -= len(sentences)
            if sentences:
                sent_ids = ref['sent_ids'][:len(sentences)]
                refs.append(dict(ref, sentences=sentences, sent_ids=sent_ids))
        return dict(sample, refs=refs)


class CountExpressions(Hook):
    """Counts the expressions of all batches."""
    count = 0

    def after_test_iter(self, runner, batch_idx, data_batch=None,
                        outputs=None) -> None:
        self.count += sum(
            len(sample.pred_sem_seg.data) for sample in outputs)


def measure(args: argparse.Namespace, fast: bool) -> dict[str, float]:
    """Expressions and seconds of a test, with loading and scoring."""
    torch.set_num_threads(measuring.threads_of(args))
    with tempfile.TemporaryDirectory() as work_dir:
        cfg = load_config(args.config, args.cfg_options, work_dir)
        cfg.log_level = logging.WARNING
        cfg.model.backbone.init_cfg = None
        dataset = cfg.test_dataloader.dataset
        dataset.indices = args.images if fast else args.expressions
        dataset.group_by_image = fast
        first = dict(type='FirstExpressions', count=args.per_image)
        dataset.pipeline = [first, *dataset.pipeline]
        device = measuring.device_of(args)
        if device == 'cpu':
            reuse_memory()  # as tools/test.py does
        runner = Runner.from_cfg(cfg)
        if fast:
            optimize_for_inference(runner.model, args.precision)
        counter = CountExpressions()
        runner.register_hook(counter)
        runner.test()  # starts the workers and fills the caches
        counter.count = 0
        seconds = measuring.Clock(device, 1).time(runner.test)
    return dict(
        expressions=counter.count,
        seconds=seconds,
        expressions_per_second=counter.count / seconds)


def main(args: argparse.Namespace) -> None:
    slow = measuring.in_own_process(measure, args, False)
    fast = measuring.in_own_process(measure, args, True)
    rows = {'one by one, fp32, as trained': slow,
            f'grouped, folded, {args.precision}': fast}
    machine = measuring.describe_machine(
        measuring.device_of(args), measuring.threads_of(args))
    print(f'{machine}\n')
    measuring.print_table(
        ['test', 'expressions', 's', 'expressions/s'],
        [[name, r['expressions'], f'{r["seconds"]:.1f}',
          f'{r["expressions_per_second"]:.2f}'] for name, r in rows.items()])
    ratio = fast['expressions_per_second'] / slow['expressions_per_second']
    print(f'\n{ratio:.2f} times as many')
    measuring.write_json(args.json, machine=machine, rows=rows, ratio=ratio)
