# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
r"""Make a model's confidence mean something, and choose when it abstains.

For a model with decode_head.existence, from its results on val, in which it
must not abstain:

    python tools/test.py CONFIG CHECKPOINT --results val.json --cfg-options \
        test_dataloader.dataset.split=val \
        model.decode_head.existence_threshold=0
    python tools/analysis_tools/calibrate.py val.json CHECKPOINT --out NEW

NEW is the checkpoint with a threshold of existence and the calibration, which
are used wherever it is loaded. The threshold is that with the highest gIoU of
those with a T-acc of 95 or more. The calibration is two logistic regressions,
see cris.evaluation.confidence.answer_confidence.
"""
import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('results', help='.json or .parquet of tools/test.py --results')
    add('checkpoint', help='the checkpoint that gave the results')
    add('--out', required=True, help='checkpoint to write, .pth')
    add('--min-t-acc', type=float, default=95.0, metavar='PERCENT',
        help='share of the expressions with a target that must get an answer '
        '(default: 95)')
    args = parser.parse_args()
    if not args.out.endswith('.pth'):
        parser.error(f'--out writes .pth, got {args.out}')
    return args


def main() -> None:
    args = parse_args()
    import os
    import os.path as osp

    import numpy as np
    import torch

    from cris.evaluation.calibration import (
        abstain,
        counts_of,
        fit_calibration,
        is_right,
        reliability,
    )
    from cris.evaluation.confidence import answer_confidence
    from cris.evaluation.refseg_metric import compute_scores
    from cris.evaluation.results import read_results_file
    from cris.io.atomic import atomic_write
    from cris.io.calibration import add_calibration
    from cris.io.checkpoints import (
        holds_existence,
        read_checkpoint,
        state_dict_of,
    )
    try:
        records, _ = read_results_file(args.results)
        checkpoint = read_checkpoint(args.checkpoint)
        if not holds_existence(state_dict_of(checkpoint)):
            raise ValueError(f'{args.checkpoint} has no classifier of '
                             'existence: train it with '
                             'model.decode_head.existence=True')
        found = fit_calibration(records, args.min_t_acc)
        os.makedirs(osp.dirname(args.out) or '.', exist_ok=True)
        with atomic_write(args.out) as partial:
            torch.save(add_calibration(checkpoint, found), partial)
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f'error: {error}') from error
    chosen = found['existence_threshold']
    print(f'{len(records)} expressions. The threshold of existence is '
          f'{chosen:.4g}: the highest gIoU with T-acc >= {args.min_t_acc:g}.')
    print('threshold calibrated    gIoU   N-acc   T-acc     ECE')
    existence, score = (
        np.array([r[key] for r in records]) for key in ('existence', 'score'))
    for threshold, calibration in (
            (0.0, None), (0.5, None), (chosen, None), (chosen, found)):
        counts = abstain(counts_of(records), existence < threshold)
        confidence = answer_confidence(
            existence, score, counts['pred_area'] > 0, calibration)
        scores = compute_scores(counts, generalized=True)
        scores['ECE'] = 100 * reliability(confidence, is_right(counts)).ece
        print(f'{threshold:9.4g} {"yes" if calibration else "no":>10}',
              *(f'{scores[name]:7.2f}'
                for name in ('gIoU', 'N-acc', 'T-acc', 'ECE')))
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
