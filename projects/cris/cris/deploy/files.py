# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The folder of an exported model."""
import json
import os.path as osp
from typing import Any

from cris.io.calibration import check_calibration

#: Graph -> names of its inputs and outputs. ``cris`` combines the others.
GRAPHS = {
    'image_encoder': (['images'], ['p3', 'p4', 'p5']),
    'text_encoder': (['tokens'], ['words', 'sentence']),
    'decoder': (['p3', 'p4', 'p5', 'words', 'sentence', 'tokens',
                 'image_index'], ['logits']),
    'cris': (['images', 'tokens', 'image_index'], ['logits']),
}
PARTS = ('image_encoder', 'text_encoder', 'decoder')

_REQUIRED = dict(
    image_size=list, context_length=int, border_value=list, mean=list,
    std=list, threshold=float, align_corners=bool, logit_stride=int)


def graph_file(folder: str, graph: str) -> str:
    """Path of one of :data:`GRAPHS`."""
    return osp.join(folder, f'{graph}.onnx')


def read_description(folder: str) -> dict[str, Any]:
    """Read ``cris.json``.

    Raises:
        FileNotFoundError: If the folder or one of its files is missing.
        ValueError: If the file is damaged or incomplete.
    """
    path = osp.join(folder, 'cris.json')
    files = [path, *(graph_file(folder, part) for part in PARTS)]
    missing = [osp.basename(file) for file in files if not osp.isfile(file)]
    if missing:
        raise FileNotFoundError(
            f'{folder} is not an exported model: it has no '
            f'{", ".join(missing)}; tools/deployment/export_onnx.py writes '
            'them')
    try:
        with open(path, encoding='utf-8') as file:
            description = json.load(file)
        description.setdefault('logit_stride', 4)  # of older ones
        faults = [name for name, kind in _REQUIRED.items()
                  if not isinstance(description.get(name), kind)]
        check_calibration(description.get('calibration'))
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f'{path} is damaged ({error}): export again') from error
    if faults:
        raise ValueError(f'{path} has no valid {", ".join(faults)}: '
                         'export again')
    return description
