# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What a check found, as text, JSON and a page with thumbnails."""
import json
import os
import os.path as osp
from collections import Counter, defaultdict

import numpy as np
from jinja2 import Environment, FileSystemLoader

from cris.datasets.headers import image_content
from cris.datasets.masks import decode_mask
from cris.datasets.records import Fault
from cris.visualization.draw import thumbnail

from .check import WARNINGS, Result

_LISTED = 5  # findings of a kind in the text
_SAMPLES = 8  # of the page


def summary(result: Result) -> str:
    """Counts, the first findings of each kind, and whether it is usable."""
    lines = [f'{"split":12}{"refs":>9}{"sentences":>11}{"images":>9}']
    lines += [f'{split:12}{n["refs"]:9}{n["sentences"]:11}{n["images"]:9}'
              for split, n in result.counts.items()]
    info, split_by = result.located.info, result.located.split_by
    if info.counts and not info.counts.get(split_by):
        lines.append(f'the published numbers of {result.located.name} '
                     f'({split_by}) are not known: none are compared')
    for kind, faults in _by_kind(result.findings).items():
        lines.append(f'{_level(kind)} {kind}: {len(faults)}')
        lines += [f'  {fault}' for fault in faults[:_LISTED]]
        if len(faults) > _LISTED:
            lines.append(f'  ... and {len(faults) - _LISTED} more')
    lines.append(f'{"usable" if result.usable else "NOT usable"}: '
                 f'{_verdict(result)}')
    return '\n'.join(lines)


def write_report(result: Result, folder: str) -> str:
    """Write ``report.json`` with all findings and ``report.html``.

    The folder is made if it is missing. Returns the path of the page.
    """
    os.makedirs(folder, exist_ok=True)
    located = result.located
    content = dict(
        dataset=located.name, split_by=located.split_by,
        usable=result.usable, counts=result.counts,
        findings=[dict(fault._asdict(), level=_level(fault.kind).lower())
                  for fault in result.findings],
        kinds=Counter(fault.kind for fault in result.findings))
    with open(osp.join(folder, 'report.json'), 'w', encoding='utf-8') as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
    refs = {f'ref {ref["ref_id"]}': (image, ref) for image in reversed(
        result.images) for ref in reversed(image['refs'])}
    evenly = np.linspace(0, len(refs) - 1, min(_SAMPLES, len(refs)))
    environment = Environment(
        loader=FileSystemLoader(osp.dirname(__file__)), autoescape=True)
    page = environment.get_template('page.html').render(
        result=result, verdict=_verdict(result), warnings=WARNINGS, refs=refs,
        kinds=_by_kind(result.findings),
        samples=[list(refs)[-1 - int(i)] for i in evenly],
        picture=lambda where: _picture(*refs[where], located.img_folder))
    path = osp.join(folder, 'report.html')
    with open(path, 'w', encoding='utf-8') as file:
        file.write(page)
    return path


def _level(kind: str) -> str:
    return 'warning' if kind in WARNINGS else 'ERROR'


def _verdict(result: Result) -> str:
    errors = len(result.errors)
    return f'{errors} errors, {len(result.findings) - errors} warnings'


def _by_kind(findings: list[Fault]) -> dict[str, list[Fault]]:
    """Findings by kind, errors first."""
    kinds = defaultdict(list)
    for fault in findings:
        kinds[fault.kind].append(fault)
    return dict(sorted(kinds.items(), key=lambda item: item[0] in WARNINGS))


def _picture(image: dict, ref: dict, folder: str) -> dict[str, str]:
    """The image with the mask of a ref as ``uri``, or an ``error``."""
    size, mask = (image['height'], image['width']), None
    try:
        if ref['segmentation'] is not None:
            mask = decode_mask(ref['segmentation'], *size)
        return dict(uri=thumbnail(image_content(image, folder),
                                  image['file_name'], size, mask))
    except (OSError, ValueError) as error:
        return dict(error=str(error)[:200])
