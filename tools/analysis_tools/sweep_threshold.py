# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Scores at every threshold, from one pass of the model over the val set.

The dataset is val_dataloader's; for another split:
--cfg-options val_dataloader.dataset.split=testA
"""
import argparse
import json
import os
import os.path as osp

SCORES = ('mIoU', 'oIoU', 'Pr@50')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('config', help='config file')
    add('checkpoint', help='checkpoint file')
    add('--thresholds', nargs=3, type=float, default=[0.05, 0.95, 0.05],
        metavar=('START', 'STOP', 'STEP'),
        help='STOP is included (default: 0.05 0.95 0.05)')
    add('--out', help='draw a plot: .png, .pdf or .svg')
    add('--json', help='write the scores to this JSON file')
    add('--cfg-options', nargs='+', default=[],
        help='override the config, key=value')
    args = parser.parse_args()
    start, stop, step = args.thresholds
    if not (0 <= start <= stop <= 1 and step > 0):
        parser.error('--thresholds needs 0 <= START <= STOP <= 1 and STEP > '
                     f'0, got {start} {stop} {step}')
    if args.out and not args.out.endswith(('.png', '.pdf', '.svg')):
        parser.error(f'--out draws .png, .pdf or .svg, got {args.out}')
    if args.json and not args.json.endswith('.json'):
        parser.error(f'--json writes JSON, got {args.json}')
    return args


def score(args: argparse.Namespace) -> tuple[list[dict], float]:
    """A row of scores per threshold, and the config's own threshold."""
    import torch
    from mmengine.evaluator import Evaluator
    from mmengine.runner import Runner
    from tqdm import tqdm

    import cris
    from cris.engine import load_config, optimize_for_inference
    from cris.evaluation.conventions import find_metric
    cfg = load_config(args.config, args.cfg_options)
    metric = find_metric(cfg.val_evaluator)
    model = optimize_for_inference(cris.init_model(cfg, args.checkpoint))
    dataloader = Runner.build_dataloader(cfg.val_dataloader)
    own = model.decode_head.threshold
    start, stop, step = args.thresholds
    count = int((stop - start) / step + 1e-6) + 1
    # Rounded, so that 0.05 + 6 * 0.05 is the config's 0.35.
    thresholds = sorted(
        {round(start + i * step, 6) for i in range(count)} | {own})
    evaluator = Evaluator([
        dict(metric, threshold=t, prefix=str(t), out_file=None)
        for t in thresholds])
    with torch.no_grad():
        for batch in tqdm(dataloader):
            evaluator.process(model.val_step(batch), batch)
    scores = evaluator.evaluate(len(dataloader.dataset))
    return [
        dict(threshold=t, **{name: scores[f'{t}/{name}'] for name in SCORES})
        for t in thresholds], own


def draw_rows(rows: list[dict], own: float, best: dict, path: str) -> None:
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6, 4), layout='constrained')
    axes = figure.subplots()
    for name in SCORES:
        axes.plot([row['threshold'] for row in rows],
                  [row[name] for row in rows],
                  marker='o', markersize=3, label=name)
    axes.plot(best['threshold'], best['mIoU'], 'C0*', markersize=13,
              label=f'best mIoU, at {best["threshold"]:g}')
    axes.axvline(own, color='gray', linestyle='--', label=f'config, {own:g}')
    axes.set(xlabel='threshold (probability, 0 to 1)', ylabel='score (%)')
    axes.grid(alpha=0.3)
    axes.legend()
    os.makedirs(osp.dirname(path) or '.', exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    args = parse_args()
    try:
        rows, own = score(args)
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    best = max(rows, key=lambda row: row['mIoU'])
    print('threshold' + ''.join(f'{name:>8}' for name in SCORES))
    for row in rows:
        marks = ['config'] * (row['threshold'] == own)
        marks += ['best mIoU'] * (row is best)
        scores = ''.join(f'{row[name]:8.2f}' for name in SCORES)
        print(f'{row["threshold"]:9.6g}{scores}  {", ".join(marks)}'.rstrip())
    if args.out:
        draw_rows(rows, own, best, args.out)
    if args.json:
        os.makedirs(osp.dirname(args.json) or '.', exist_ok=True)
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(dict(config_threshold=own,
                           best_threshold=best['threshold'],
                           thresholds=rows), file, indent=2)


if __name__ == '__main__':
    main()
