# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Speed of tools/test.py with and without what makes it fast.

Without: one expression of an image at a time, the model as training leaves
it, fp32.
"""
import logging
import tempfile
from argparse import Namespace

from mmengine.runner import Runner

from cris.engine import load_config, optimize_for_inference

from . import measuring


def measure(args: Namespace, fast: bool) -> dict:
    """Expressions and seconds of a test, with loading and scoring."""
    with tempfile.TemporaryDirectory() as work_dir:
        cfg = load_config(args.config, args.cfg_options, work_dir)
        cfg.log_level = logging.WARNING
        cfg.model.backbone.init_cfg = None
        cfg.test_dataloader.dataset.update(
            indices=args.images if fast else args.expressions,
            group_by_image=fast, serialize_data=False)
        runner = Runner.from_cfg(cfg)
        expressions = 0
        for sample in runner.test_dataloader.dataset.data_list:
            sample['refs'] = first_expressions(sample['refs'], args.per_image)
            expressions += sum(len(r['sentences']) for r in sample['refs'])
        name = 'one by one, fp32, as trained'
        if fast:
            name = f'grouped, folded, {args.precision}'
            optimize_for_inference(runner.model, args.precision)
        runner.test()  # starts the workers and fills the caches
        seconds = measuring.Clock(1).time(runner.test)
    return {'test': name, 'expressions': expressions, 's': seconds,
            'expressions/s': expressions / seconds}


def first_expressions(refs: list[dict], count: int) -> list[dict]:
    kept = []
    for ref in refs:
        ref = dict(ref, sentences=ref['sentences'][:count],
                   sent_ids=ref['sent_ids'][:count])
        count -= len(ref['sentences'])
        if ref['sentences']:
            kept.append(ref)
    return kept


def main(args: Namespace) -> None:
    slow, fast = (measuring.in_own_process(measure, args, how)
                  for how in (False, True))
    measuring.report(args, tests=[slow, fast])
    ratio = fast['expressions/s'] / slow['expressions/s']
    print(f'\n{ratio:.2f} times as many')
