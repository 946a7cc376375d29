# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Scores of one set of predictions under each convention of the field."""
from collections.abc import Sequence
from typing import NamedTuple


class Convention(NamedTuple):
    """How scores are computed.

    Args:
        name (str): Of the row in the table.
        description (str): One line.
        options (dict): Options of :class:`RefSegMetric` that differ from its
            defaults.
    """
    name: str
    description: str
    options: dict


CONVENTIONS = (
    Convention(
        'official-test',
        "the official code's test: every sentence, the head's threshold, "
        'IoU > X, original size, empty union 0', {}),
    Convention(
        'official-val', "the official code's validation during training: the "
        'first sentence of each ref', dict(sentences='first')),
    Convention('last-sentence', 'the last sentence of each ref',
               dict(sentences='last')),
    Convention('threshold-0.5', 'probability > 0.5; official: 0.35',
               dict(threshold=0.5)),
    Convention('inclusive', 'Pr@X counts IoU >= X; official: IoU > X',
               dict(inclusive=True)),
    Convention(
        '480x480', 'prediction and ground truth resized to 480 x 480; '
        'official: original size', dict(gt_size=(480, 480))),
    Convention('empty-union-1', 'an empty union scores 1; official: 0',
               dict(empty_union=1.0)),
    Convention('480x480-0.5-inclusive',
               '480x480, threshold-0.5 and inclusive together',
               dict(gt_size=(480, 480), threshold=0.5, inclusive=True)),
)


def find_metric(evaluator: dict | Sequence[dict]) -> dict:
    """The first RefSegMetric of a config's evaluator.

    Args:
        evaluator (dict | Sequence[dict]): ``val_evaluator`` or
            ``test_evaluator``.

    Returns:
        dict: The metric's config itself, not a copy.

    Raises:
        ValueError: If there is none.
    """
    for metric in _as_list(evaluator):
        if metric.get('type') == 'RefSegMetric':
            return metric
    raise ValueError(f'the evaluator has no RefSegMetric: {evaluator}. Add '
                     "dict(type='RefSegMetric') to it.")


def add_audit(evaluator: dict | Sequence[dict]) -> list[dict]:
    """Add one metric per convention, with the prefix ``audit/<name>``.

    The conventions start from RefSegMetric's defaults. Of the options of the
    config's metric only ``collect_device`` and ``generalized`` are kept.

    Args:
        evaluator (dict | Sequence[dict]): ``test_evaluator`` of a config.

    Returns:
        list[dict]: The metrics that were there, unchanged, and the added.

    Raises:
        ValueError: If the evaluator has no RefSegMetric.
    """
    metric = find_metric(evaluator)
    kept = {
        key: metric[key]
        for key in ('collect_device', 'generalized') if key in metric
    }
    return _as_list(evaluator) + [
        dict(
            type='RefSegMetric',
            prefix=f'audit/{convention.name}',
            **kept,
            **convention.options) for convention in CONVENTIONS
    ]


def audit_table(scores: dict[str, float]) -> str:
    """A table of conventions (rows) and scores (columns), with a legend.

    Args:
        scores (dict[str, float]): Scores of the evaluator of
            :func:`add_audit`; scores without its prefix are ignored.

    Returns:
        str: Aligned lines; scores in percent, and n, the number of
        expressions.
    """
    rows = {}
    for convention in CONVENTIONS:
        prefix = f'audit/{convention.name}/'
        rows[convention.name] = {
            key.removeprefix(prefix).replace('n_expressions', 'n'): value
            for key, value in scores.items() if key.startswith(prefix)
        }
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    width = max(map(len, rows))
    lines = [' ' * width + ''.join(f'{key:>8}' for key in columns)]
    for name, row in rows.items():
        cells = (_cell(row.get(key)) for key in columns)
        lines.append(f'{name:{width}}' + ''.join(f'{c:>8}' for c in cells))
    lines.append('')
    lines += [f'{c.name:{width}}  {c.description}' for c in CONVENTIONS]
    return '\n'.join(lines)


def _cell(value: int | float | None) -> str:
    if value is None:
        return '-'
    return str(value) if isinstance(value, int) else f'{value:.2f}'


def _as_list(evaluator: dict | Sequence[dict]) -> list[dict]:
    return [evaluator] if isinstance(evaluator, dict) else list(evaluator)
