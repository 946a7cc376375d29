# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What tools/analysis_tools/calibrate.py stores with a checkpoint.

It is JSON in the checkpoint's meta, and so in the metadata of a .safetensors
file: ``existence_threshold``, below which an expression gets an empty mask,
and the coefficients of
:func:`cris.evaluation.confidence.answer_confidence`.
"""
import json
import os
from typing import Any

#: In the meta.
KEY = 'calibration'


def add_calibration(checkpoint: dict, calibration: dict) -> dict:
    """A checkpoint, as read, with what :func:`read_calibration` returns."""
    if 'state_dict' not in checkpoint:
        checkpoint = dict(state_dict=checkpoint)
    return dict(checkpoint, meta=dict(
        _meta_of(checkpoint), **{KEY: json.dumps(calibration)}))


def read_calibration(checkpoint: dict,
                     path: str | os.PathLike) -> dict | None:
    """The calibration stored with a checkpoint, or None.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        return check_calibration(
            json.loads(_meta_of(checkpoint).get(KEY, 'null')))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f'the calibration stored in {path} is damaged ({error}): write '
            'it again with tools/analysis_tools/calibrate.py') from error


def check_calibration(found: Any) -> dict | None:
    """Check what was read.

    Args:
        found (Any): None, or a dict of ``existence_threshold``, in [0, 1],
            ``existence`` and ``mask``, 2 numbers each.

    Raises:
        ValueError: If it is anything else.
    """
    if found is None:
        return None
    try:
        threshold = float(found['existence_threshold'])
        existence, mask = (
            [float(x) for x in found[key]] for key in ('existence', 'mask'))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f'it is {found!r:.200}') from error
    if not (0 <= threshold <= 1 and len(existence) == len(mask) == 2
            and all(abs(x) <= 1e4 for x in existence + mask)):
        raise ValueError(f'it is {found!r:.200}')
    return dict(existence_threshold=threshold, existence=existence, mask=mask)


def _meta_of(checkpoint: dict) -> dict:
    meta = checkpoint.get('meta')
    return meta if isinstance(meta, dict) else {}
