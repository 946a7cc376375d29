# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The results file: one record per expression, to sort and filter."""
import os
import os.path as osp
from collections.abc import Sequence

import numpy as np
from mmengine.fileio import dump
from pycocotools import mask as coco_mask

from cris.io.atomic import disk_space
from cris.io.files import load_json

from .confidence import answer_confidence, confidence

#: Options of RefSegMetric that change the scores, with their defaults. A test
#: compares them with its signature.
DEFAULTS = dict(threshold=None, inclusive=False, sentences='all',
                gt_size=None, empty_union=0.0, generalized=False)
_PIXELS = ('height', 'width', 'intersection', 'union', 'pred_area', 'gt_area')
_FRACTIONS = ('iou', 'score', 'empty_union')
# Of a model that says whether there is a referent.
_OF_EXISTENCE = ('existence', 'existence_threshold', 'confidence')
_MAX_PIXELS = 2**53  # exact in float64
_REWRITE = 'Write the file again with tools/test.py --results'


def check_results_file(path: str) -> None:
    """Check that a results file of this name can be written.

    Raises:
        ValueError: If it is neither ``.json`` nor ``.parquet``.
        ImportError: If it is ``.parquet`` and pyarrow is missing.
    """
    if not path.endswith(('.json', '.parquet')):
        raise ValueError(f'{path} is not a name for a results file: end it '
                         'in .json or .parquet')
    if path.endswith('.parquet'):
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ImportError(f'{path} needs pyarrow ({error}): pip install '
                              'pyarrow, or end the name in .json') from error


def make_records(sample: dict, chosen: Sequence[int], pred: np.ndarray,
                 target: np.ndarray, counts: dict[str, np.ndarray],
                 iou: np.ndarray) -> list[dict]:
    """Records of n expressions of an image of h x w pixels.

    Args:
        sample (dict): A SegDataSample as a dict.
        chosen (Sequence[int]): n positions among its expressions.
        pred (np.ndarray): Their predictions, bool ``(n, h, w)``.
        target (np.ndarray): Their ground truth, of the same shape.
        counts (dict[str, np.ndarray]): Pixels by name, int64 ``(n, )`` each.
        iou (np.ndarray): float64 ``(n, )`` in [0, 1].

    Returns:
        list[dict]: See :class:`RefSegMetric`.
    """
    records = []
    for i, k in enumerate(chosen):
        ref_id, sent_id, expression = (
            sample[key][k] if key in sample else None
            for key in ('ref_ids', 'sent_ids', 'expressions'))
        score = None
        if 'seg_logits' in sample:
            prob = sample['seg_logits']['data'][k].cpu().numpy()
            score = confidence(prob, pred[i])
        more = {}
        if 'kinds' in sample:
            more['kind'] = sample['kinds'][k]
        if 'existence' in sample:
            more['existence'] = float(sample['existence'][k])
            more['existence_threshold'] = sample['existence_threshold']
            more['confidence'] = None if score is None else float(
                answer_confidence(more['existence'], score, pred[i].any(),
                                  sample.get('calibration')))
        records.append(dict(
            img_path=sample.get('img_path'), img_id=sample.get('img_id'),
            ref_id=ref_id, sent_id=sent_id, expression=expression,
            height=pred.shape[1], width=pred.shape[2],
            **{name: int(count[i]) for name, count in counts.items()},
            iou=float(iou[i]), score=score, pred_rle=_run_lengths(pred[i]),
            gt_rle=_run_lengths(target[i]), **more))
    return records


def _run_lengths(mask: np.ndarray) -> str:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return rle['counts'].decode()


def write_results_file(records: list[dict], path: str) -> None:
    """Write a list of records or, as ``.parquet``, a table of them.

    In a table, a record is None where it lacks a key of another. Missing
    folders are made.

    Raises:
        DiskFullError: If the disk is full.
    """
    folder = osp.dirname(path) or '.'
    os.makedirs(folder, exist_ok=True)
    with disk_space(folder):
        if path.endswith('.json'):
            dump(records, path, indent=2)
            return
        from pyarrow import Table, parquet
        keys = dict.fromkeys(key for record in records for key in record)
        parquet.write_table(Table.from_pylist(
            [{key: record.get(key) for key in keys} for record in records]),
            path)


def read_results_file(path: str) -> tuple[list[dict], dict]:
    """Read and check what :func:`write_results_file` wrote.

    Returns:
        tuple: The records, at least one, with '' for a missing expression;
        and the conventions they were scored under.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If its name or content is not that of a results file, or
            its records were scored under different conventions.
        ImportError: As of :func:`check_results_file`.
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
    records = [dict(record, expression=record.get('expression') or '',
                    img_path=record.get('img_path')) for record in records]
    return records, _conventions(records[0])


def _read_parquet(path: str) -> list[dict]:
    from pyarrow import ArrowException, parquet
    try:
        return parquet.ParquetFile(path).read().to_pylist()
    except (ArrowException, ValueError, OSError) as error:
        raise ValueError(f'{path} is not a Parquet file: {error}') from error


def _conventions(record: dict) -> dict:
    return {k: record.get(k, default) for k, default in DEFAULTS.items()}


def _fault(record: dict, first: dict) -> str:
    """What is wrong with a record, or ''."""
    if not isinstance(record, dict):
        return f'it is a {type(record).__name__}, not a dict'
    conventions = _conventions(record)
    if conventions != _conventions(first):
        return 'it was scored under other conventions than the first record'
    record = {**record, **conventions}
    for key in ('inclusive', 'generalized'):
        if not isinstance(record[key], bool):
            return f'{key} is {record[key]!r:.60}, not true or false'
    for key in _PIXELS + _FRACTIONS + _OF_EXISTENCE:
        value = record.get(key)
        if value is None and key in ('score', *_OF_EXISTENCE):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f'{key} is {value!r:.60}, not a number'
        most = _MAX_PIXELS if key in _PIXELS else 1
        if not 0 <= value <= most:  # refuses NaN, too
            return f'{key} is {value!s:.60}, not in [0, {most}]'
    if record['intersection'] > record['union']:
        return (f'intersection is {record["intersection"]}, union '
                f'{record["union"]}')
    if record['height'] < 1 or record['width'] < 1:
        return f'the image has {record["height"]} x {record["width"]} pixels'
    for key in ('expression', 'img_path', 'pred_rle', 'gt_rle', 'kind'):
        if not isinstance(record.get(key), (str, type(None))):
            return f'{key} is {record[key]!r:.60}, not a string'
    return ''
