# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Measure tools/test.py with and without what makes it fast.

    python tools/analysis_tools/benchmark_evaluation.py CONFIG \
        --precision bf16 --cfg-options \
        test_dataloader.dataset.data_root=data/refshapes

Without: one expression of an image at a time, the model as training leaves
it, fp32. Of an image the first 7 expressions count. The weights are random.
"""
import argparse
import json
import logging
import tempfile
import time

import torch
from measuring import describe_machine, in_own_process, markdown_table
from mmcv.transforms import BaseTransform
from mmengine.config import DictAction
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import TRANSFORMS

from cris.engine import PRECISIONS, load_config, optimize_for_inference
from cris.models.fast_cpu import reuse_memory


@TRANSFORMS.register_module()
class FirstExpressions(BaseTransform):
    """Leaves out all but the first ``count`` expressions of a sample."""

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
    """Of all batches."""
    count = 0

    def after_test_iter(self, runner, batch_idx, data_batch=None,
                        outputs=None) -> None:
        self.count += sum(
            len(sample.pred_sem_seg.data) for sample in outputs)


def measure(args: argparse.Namespace, fast: bool) -> dict[str, float]:
    """Expressions and seconds of a test, loading and scoring included."""
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as work_dir:
        cfg = load_config(args.config, args.cfg_options, work_dir)
        cfg.log_level = logging.WARNING
        cfg.model.backbone.init_cfg = None
        dataset = cfg.test_dataloader.dataset
        dataset.indices = args.images if fast else args.expressions
        dataset.group_by_image = fast
        dataset.pipeline.insert(
            0, dict(type='FirstExpressions', count=args.per_image))
        if not torch.cuda.is_available():
            reuse_memory()  # as in tools/test.py
        runner = Runner.from_cfg(cfg)
        if fast:
            optimize_for_inference(runner.model, args.precision)
        counter = CountExpressions()
        runner.register_hook(counter)
        runner.test()  # the workers start, the caches fill
        counter.count = 0
        begin = time.perf_counter()
        runner.test()
        seconds = time.perf_counter() - begin
    return dict(
        expressions=counter.count,
        seconds=seconds,
        expressions_per_second=counter.count / seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--images', type=int, default=12, help='of the fast test')
    parser.add_argument(
        '--expressions', type=int, default=40, help='of the slow test')
    parser.add_argument(
        '--per-image',
        type=int,
        default=7,
        help='expressions of an image at most: the first of them')
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32')
    parser.add_argument(
        '--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--json', help='write all figures to this file')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, default={})
    args = parser.parse_args()
    rows = {
        'one by one, fp32, as trained': in_own_process(measure, args, False),
        f'grouped, folded, {args.precision}': in_own_process(
            measure, args, True)
    }
    slow, fast = (row['expressions_per_second'] for row in rows.values())
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    machine = describe_machine(device, args.threads)
    print(f'{machine}\n')
    print(
        markdown_table(['test', 'expressions', 's', 'expressions/s'], [[
            name,
            str(row['expressions']), f'{row["seconds"]:.1f}',
            f'{row["expressions_per_second"]:.2f}'
        ] for name, row in rows.items()]))
    print(f'\n{fast / slow:.2f} times as many')
    if args.json:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(
                dict(machine=machine, rows=rows, ratio=fast / slow),
                file,
                indent=2)


if __name__ == '__main__':
    main()
