# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""A file with one record per expression, to sort and filter.

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


def check_results_file(path: str) -> None:
    """Refuse a file that could not be written in the end.

    Args:
        path (str): Where the records are to go.

    Raises:
        ValueError: If it is neither ``.json`` nor ``.parquet``.
        ImportError: If it is ``.parquet`` and a package for that is missing.
    """
    if not path.endswith(('.json', '.parquet')):
        raise ValueError(f'{path} is no name for a file of results: end it '
                         'in .json or .parquet')
    if path.endswith('.parquet'):
        try:
            import pandas  # noqa: F401
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f'{path} cannot be written ({error}): pip install pandas '
                'pyarrow, or end the name in .json') from error


def describe(sample: dict, chosen: Sequence[int], pred: np.ndarray,
             target: np.ndarray) -> list[dict]:
    """What a record says beside the counts.

    Args:
        sample (dict): A SegDataSample as a dict.
        chosen (Sequence[int]): Positions among the K expressions.
        pred (np.ndarray): Their predictions, bool ``(len(chosen), h, w)``.
        target (np.ndarray): Their ground truth, likewise.

    Returns:
        list[dict]: One for each position; see :class:`RefSegMetric`.
    """
    height, width = pred.shape[1:]
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
                height=height,
                width=width,
                score=score,
                pred_rle=_run_lengths(mask),
                gt_rle=_run_lengths(truth)))
    return described


def _run_lengths(mask: np.ndarray) -> str:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return rle['counts'].decode()


def write_results_file(described: Sequence[dict],
                       counts: dict[str, np.ndarray], iou: np.ndarray,
                       path: str) -> None:
    """Write a record per expression; missing folders are made.

    Args:
        described (Sequence[dict]): N of them, by :func:`describe`.
        counts (dict[str, np.ndarray]): Pixels by name, int64 ``(N, )`` each.
        iou (np.ndarray): float64 ``(N, )`` in [0, 1].
        path (str): See :func:`check_results_file`. ``.json`` is a list of
            flat dicts, ``.parquet`` a table.
    """
    records = []
    for i, known in enumerate(described):
        last = ('score', 'pred_rle', 'gt_rle')
        record = {k: v for k, v in known.items() if k not in last}
        record.update({name: int(count[i]) for name, count in counts.items()})
        record['iou'] = float(iou[i])
        records.append(dict(record, **{k: known[k] for k in last}))
    if path.endswith('.json'):
        dump(records, path, indent=2)
        return
    import pandas
    os.makedirs(osp.dirname(path) or '.', exist_ok=True)
    pandas.DataFrame(records).to_parquet(path, engine='pyarrow', index=False)


def read_results_file(path: str) -> list[dict]:
    """Read what :func:`write_results_file` wrote, checked.

    Args:
        path (str): ``.json`` or ``.parquet``.

    Returns:
        list[dict]: N records, N > 0; see :class:`RefSegMetric`. An expression
        that is not known is ''.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its name or content is not that of such a file.
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
        raise ValueError(f'{path} holds no records: tools/test.py --results '
                         'writes a list of them')
    for i, record in enumerate(records):
        fault = _fault(record)
        if fault:
            raise ValueError(f'{path}, record {i}: {fault}. Write the file '
                             'again with tools/test.py --results')
    return [dict(r, expression=r['expression'] or '') for r in records]


def _read_parquet(path: str) -> list[dict]:
    import pandas
    import pyarrow
    try:
        table = pandas.read_parquet(path, engine='pyarrow')
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise ValueError(f'{path} is not a Parquet file: {error}') from error
    table = table.astype(object)
    return table.where(table.notna(), None).to_dict('records')


def _fault(record: dict) -> str:
    """What is wrong with a record; '' if nothing is."""
    if not isinstance(record, dict):
        return f'it is a {type(record).__name__}, not a dict'
    for key in ('height', 'width', 'intersection', 'union', 'gt_area', 'iou'):
        value = record.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f'{key} is {value!r:.60}, not a number'
    if not 0 <= record['iou'] <= 1:  # so that NaN is refused, too
        return f'iou is {record["iou"]}, not in [0, 1]'
    sure = record.get('score')
    if sure is not None and (not isinstance(sure, (int, float))
                             or not 0 <= sure <= 1):
        return f'score is {sure!r:.60}, not in [0, 1]'
    if not 0 <= record['intersection'] <= record['union']:
        return (f'intersection is {record["intersection"]}, union '
                f'{record["union"]}')
    if record['height'] < 1 or record['width'] < 1:
        return f'the image has {record["height"]} x {record["width"]} pixels'
    for key in ('expression', 'img_path', 'pred_rle', 'gt_rle'):
        if not isinstance(record.get(key), (str, type(None))):
            return f'{key} is {record[key]!r:.60}, not a text'
    return ''
