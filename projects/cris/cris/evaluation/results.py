# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The results file: one record per expression, to sort and filter.

Shapes: a sample of h x w pixels with K expressions; N expressions in all.
"""
import os
import os.path as osp
from collections.abc import Sequence

import numpy as np
from mmengine.fileio import dump
from pycocotools import mask as coco_mask

from cris.io.files import load_json

from .confidence import confidence

#: Options of RefSegMetric that change the scores, with their defaults. A test
#: compares them with its signature.
DEFAULTS = dict(
    threshold=None,
    inclusive=False,
    sentences='all',
    gt_size=None,
    empty_union=0.0,
    generalized=False)
_NUMBERS = ('height', 'width', 'intersection', 'union', 'pred_area',
            'gt_area', 'iou')
_MAX_NUMBER = 2**53  # of pixels, exact in float64
_REWRITE = 'Write the file again with tools/test.py --results'


def check_results_file(path: str) -> None:
    """Check that a results file of this name can be written.

    Args:
        path (str): File to write.

    Raises:
        ValueError: If it is neither ``.json`` nor ``.parquet``.
        ImportError: If it is ``.parquet`` and a package for that is missing.
    """
    if not path.endswith(('.json', '.parquet')):
        raise ValueError(f'{path} is not a name for a results file: end it '
                         'in .json or .parquet')
    if path.endswith('.parquet'):
        try:
            import pandas  # noqa: F401
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f'{path} needs pandas and pyarrow ({error}): pip install '
                'pandas pyarrow, or end the name in .json') from error


def describe(sample: dict, chosen: Sequence[int], pred: np.ndarray,
             target: np.ndarray) -> list[dict]:
    """The part of the records that does not depend on conventions.

    Args:
        sample (dict): A SegDataSample as a dict.
        chosen (Sequence[int]): Positions among the K expressions.
        pred (np.ndarray): Their predictions, bool ``(len(chosen), h, w)``.
        target (np.ndarray): Their ground truth, of the same shape.

    Returns:
        list[dict]: One for each position; see :class:`RefSegMetric`.
    """
    described = []
    for k, mask, truth in zip(chosen, pred, target, strict=True):
        score = None
        if 'seg_logits' in sample:
            prob = sample['seg_logits']['data'][k].cpu().numpy()
            score = confidence(prob, mask)
        ref_id, sent_id, expression = (
            sample[key][k] if key in sample else None
            for key in ('ref_ids', 'sent_ids', 'expressions'))
        described.append(
            dict(
                img_path=sample.get('img_path'),
                img_id=sample.get('img_id'),
                ref_id=ref_id,
                sent_id=sent_id,
                expression=expression,
                height=mask.shape[0],
                width=mask.shape[1],
                score=score,
                pred_rle=_run_lengths(mask),
                gt_rle=_run_lengths(truth)))
    return described


def _run_lengths(mask: np.ndarray) -> str:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return rle['counts'].decode()


def write_results_file(described: Sequence[dict],
                       counts: dict[str, np.ndarray], iou: np.ndarray,
                       conventions: dict, path: str) -> None:
    """Write one record per expression; missing folders are made.

    Args:
        described (Sequence[dict]): N of them, from :func:`describe`.
        counts (dict[str, np.ndarray]): Pixels by name, int64 ``(N, )`` each.
        iou (np.ndarray): float64 ``(N, )`` in [0, 1].
        conventions (dict): Options of :class:`RefSegMetric`.
        path (str): ``.json`` is a list of flat dicts, ``.parquet`` a table.
    """
    unusual = {
        key: value for key, value in conventions.items()
        if key not in DEFAULTS or value != DEFAULTS[key]
    }
    last = ('score', 'pred_rle', 'gt_rle')
    records = []
    for i, known in enumerate(described):
        record = {k: v for k, v in known.items() if k not in last}
        record.update({name: int(count[i]) for name, count in counts.items()})
        record['iou'] = float(iou[i])
        records.append(
            dict(record, **{k: known[k] for k in last}, **unusual))
    if path.endswith('.json'):
        dump(records, path, indent=2)
        return
    import pandas
    os.makedirs(osp.dirname(path) or '.', exist_ok=True)
    pandas.DataFrame(records).to_parquet(path, engine='pyarrow', index=False)


def read_results_file(path: str) -> tuple[list[dict], dict]:
    """Read and check what :func:`write_results_file` wrote.

    Args:
        path (str): ``.json`` or ``.parquet``.

    Returns:
        tuple: The records, at least one, with '' for a missing expression;
        and the conventions they were scored under.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If its name or content is not that of a results file, or
            its records were scored under different conventions.
        ImportError: If it is ``.parquet`` and a package for that is missing.
    """
    check_results_file(path)
    if not osp.isfile(path):
        raise FileNotFoundError(f'{path} does not exist: tools/test.py '
                                '--results writes it')
    if path.endswith('.json'):
        records = load_json(path)
    else:
        records = _read_parquet(path)
    if not isinstance(records, list) or not records:
        raise ValueError(f'{path} holds no records. {_REWRITE}')
    for i, record in enumerate(records):
        fault = _fault(record, records[0])
        if fault:
            raise ValueError(f'{path}, record {i}: {fault}. {_REWRITE}')
    return [
        dict(
            record,
            expression=record.get('expression') or '',
            img_path=record.get('img_path')) for record in records
    ], _conventions(records[0])


def _read_parquet(path: str) -> list[dict]:
    import pandas
    import pyarrow
    try:
        table = pandas.read_parquet(path, engine='pyarrow')
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise ValueError(f'{path} is not a Parquet file: {error}') from error
    if 'gt_size' in table:
        table['gt_size'] = table['gt_size'].map(list)
    table = table.astype(object)
    return table.where(table.notna(), None).to_dict('records')


def _conventions(record: dict) -> dict:
    return {k: record.get(k, default) for k, default in DEFAULTS.items()}


def _fault(record: dict, first: dict) -> str:
    """What is wrong with a record, or ''."""
    if not isinstance(record, dict):
        return f'it is a {type(record).__name__}, not a dict'
    conventions = _conventions(record)
    if conventions != _conventions(first):
        return 'it was scored under other conventions than the first record'
    for key in ('inclusive', 'generalized'):
        if not isinstance(conventions[key], bool):
            return f'{key} is {conventions[key]!r:.60}, not true or false'
    fractions = dict(empty_union=conventions['empty_union'])
    if record.get('score') is not None:
        fractions['score'] = record['score']
    for key, value in {**{k: record.get(k) for k in _NUMBERS},
                       **fractions}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f'{key} is {value!r:.60}, not a number'
        most = 1 if key in ('iou', *fractions) else _MAX_NUMBER
        if not 0 <= value <= most:  # refuses NaN, too
            return f'{key} is {value!s:.60}, not in [0, {most}]'
    if record['intersection'] > record['union']:
        return (f'intersection is {record["intersection"]}, union '
                f'{record["union"]}')
    if record['height'] < 1 or record['width'] < 1:
        return f'the image has {record["height"]} x {record["width"]} pixels'
    for key in ('expression', 'img_path', 'pred_rle', 'gt_rle'):
        if not isinstance(record.get(key), (str, type(None))):
            return f'{key} is {record[key]!r:.60}, not a string'
    return ''
