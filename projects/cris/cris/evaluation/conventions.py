# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Scores of one set of predictions under each convention of the field."""
from collections.abc import Sequence

#: By name: the options of RefSegMetric that differ from its defaults, and
#: what they mean.
CONVENTIONS = {
    'official-test': (
        {}, "the official code's test: every sentence, the head's threshold, "
        'IoU > X, original size, empty union 0'),
    'official-val': (
        dict(sentences='first'), "the official code's validation during "
        'training: the first sentence of each ref'),
    'last-sentence': (
        dict(sentences='last'), 'the last sentence of each ref'),
    'threshold-0.5': (
        dict(threshold=0.5), 'probability > 0.5; official: 0.35'),
    'inclusive': (
        dict(inclusive=True), 'Pr@X counts IoU >= X; official: IoU > X'),
    '480x480': (
        dict(gt_size=(480, 480)), 'prediction and ground truth resized to '
        '480 x 480; official: original size'),
    'empty-union-1': (
        dict(empty_union=1.0), 'an empty union scores 1; official: 0'),
    '480x480-0.5-inclusive': (
        dict(gt_size=(480, 480), threshold=0.5, inclusive=True),
        '480x480, threshold-0.5 and inclusive together'),
}


def find_metric(evaluator: dict | Sequence[dict]) -> dict:
    """The first RefSegMetric of a config's evaluator, not a copy.

    Raises:
        ValueError: If there is none.
    """
    for metric in _as_list(evaluator):
        if metric.get('type') == 'RefSegMetric':
            return metric
    raise ValueError(f'the evaluator has no RefSegMetric: {evaluator}. Add '
                     "dict(type='RefSegMetric') to it.")


def add_audit(evaluator: dict | Sequence[dict]) -> list[dict]:
    """A config's evaluator with one metric more per convention.

    Their prefix is ``audit/<name>``. The conventions start from RefSegMetric's
    defaults. Of the options of the config's metric only ``collect_device``
    and ``generalized`` are kept.

    Raises:
        ValueError: If the evaluator has no RefSegMetric.
    """
    metric = find_metric(evaluator)
    kept = {key: metric[key] for key in ('collect_device', 'generalized')
            if key in metric}
    return _as_list(evaluator) + [
        dict(type='RefSegMetric', prefix=f'audit/{name}', **kept, **options)
        for name, (options, _) in CONVENTIONS.items()]


def audit_table(scores: dict[str, float]) -> str:
    """A table of conventions (rows) and scores (columns), with a legend.

    Args:
        scores (dict[str, float]): Of the evaluator of :func:`add_audit`, in
            percent; scores without its prefix are ignored.

    Returns:
        str: Aligned lines. The column n is the number of expressions.
    """
    rows = {}
    for name in CONVENTIONS:
        prefix = f'audit/{name}/'
        rows[name] = {
            key.removeprefix(prefix).replace('n_expressions', 'n'):
            str(value) if isinstance(value, int) else f'{value:.2f}'
            for key, value in scores.items() if key.startswith(prefix)}
    columns = dict.fromkeys(key for row in rows.values() for key in row)
    width = max(map(len, rows))
    lines = [' ' * width + ''.join(f'{key:>8}' for key in columns)]
    for name, row in rows.items():
        cells = ''.join(f'{row.get(key, "-"):>8}' for key in columns)
        lines.append(f'{name:{width}}{cells}')
    return '\n'.join(lines + [''] + [
        f'{name:{width}}  {meaning}'
        for name, (_, meaning) in CONVENTIONS.items()])


def _as_list(evaluator: dict | Sequence[dict]) -> list[dict]:
    return [evaluator] if isinstance(evaluator, dict) else list(evaluator)
