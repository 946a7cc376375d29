# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What a check found, as text, JSON and a page with thumbnails."""
import json
import os
import os.path as osp
from collections import Counter, defaultdict
from collections.abc import Iterator
from html import escape

import numpy as np

from cris.datasets.masks import decode_mask
from cris.datasets.records import Fault
from cris.visualization.draw import thumbnail

from .check import WARNINGS, Result

_LISTED = 5  # findings of a kind in the text
_LISTED_ON_PAGE = 200
_SAMPLES = 8
_STYLE = '''body{font:15px/1.5 sans-serif;max-width:75em;margin:2em auto;
padding:0 1em;color:#222}table{border-collapse:collapse}td,th{padding:.2em 1em
.2em 0;text-align:right}td:first-child,th:first-child{text-align:left}
.error h3{color:#b00}.warning h3{color:#a60}figure{display:inline-block;
width:260px;margin:0 12px 12px 0;vertical-align:top;font-size:13px}
img{max-width:100%}li{overflow-wrap:anywhere}'''


def summary(result: Result) -> str:
    """The text that is printed: counts, the first of each kind, verdict."""
    lines = [f'{"split":12}{"refs":>9}{"sentences":>11}{"images":>9}']
    lines += [
        f'{split:12}{n["refs"]:9}{n["sentences"]:11}{n["images"]:9}'
        for split, n in result.counts.items()
    ]
    for kind, faults in _by_kind(result.findings).items():
        level = 'warning' if kind in WARNINGS else 'ERROR'
        lines.append(f'{level} {kind}: {len(faults)}')
        lines += [f'  {fault}' for fault in faults[:_LISTED]]
        if len(faults) > _LISTED:
            lines.append(f'  ... and {len(faults) - _LISTED} more')
    errors = len(result.errors)
    warnings = len(result.findings) - errors
    lines.append(f'{"usable" if result.usable else "NOT usable"}: '
                 f'{errors} errors, {warnings} warnings')
    return '\n'.join(lines)


def write_report(result: Result, folder: str) -> str:
    """Write ``report.json`` with all findings and ``report.html``.

    Args:
        result (Result): What the check found.
        folder (str): Where to; made if missing.

    Returns:
        str: Path of the page.
    """
    os.makedirs(folder, exist_ok=True)
    with open(osp.join(folder, 'report.json'), 'w', encoding='utf-8') as file:
        json.dump(
            dict(
                dataset=result.name,
                split_by=result.split_by,
                usable=result.usable,
                counts=result.counts,
                kinds=Counter(f.kind for f in result.findings),
                findings=[
                    dict(
                        fault._asdict(),
                        level='warning' if fault.kind in WARNINGS else 'error')
                    for fault in result.findings
                ]),
            file,
            indent=1,
            ensure_ascii=False)
    path = osp.join(folder, 'report.html')
    with open(path, 'w', encoding='utf-8') as file:
        file.write('\n'.join(_page(result)))
    return path


def _by_kind(findings: list[Fault]) -> dict:
    kinds = defaultdict(list)
    for fault in findings:
        kinds[fault.kind].append(fault)
    # Errors first.
    return dict(sorted(kinds.items(), key=lambda item: item[0] in WARNINGS))


def _page(result: Result) -> Iterator[str]:
    title = escape(f'{result.name} {result.split_by or ""}'.strip())
    yield (f'<!DOCTYPE html><html lang="en"><meta charset="utf-8">'
           f'<title>{title}</title><style>{_STYLE}</style>')
    errors = len(result.errors)
    yield f'<h1>{title}: {"usable" if result.usable else "not usable"}</h1>'
    yield (f'<p>{errors} errors, {len(result.findings) - errors} warnings. '
           'All of them are in report.json.</p>')
    yield ('<table><tr><th>split</th><th>refs</th><th>sentences</th>'
           '<th>images</th></tr>')
    for split, n in result.counts.items():
        yield (f'<tr><td>{escape(str(split))}</td><td>{n["refs"]}</td>'
               f'<td>{n["sentences"]}</td><td>{n["images"]}</td></tr>')
    yield '</table>'
    refs = {
        f'ref {ref["ref_id"]}': (image, ref)
        for image in reversed(result.images) for ref in reversed(image['refs'])
    }
    for kind, faults in _by_kind(result.findings).items():
        level = 'warning' if kind in WARNINGS else 'error'
        about = WARNINGS.get(kind, '')
        yield (f'<section class="{level}"><h3>{kind}: {len(faults)}</h3>'
               f'<p>{escape(about)}</p>')
        shown = [refs[f.where] for f in faults if f.where in refs][:3]
        yield from (_figure(*pair, result.img_folder) for pair in shown)
        yield '<ul>'
        yield from (f'<li>{escape(str(f))}</li>'
                    for f in faults[:_LISTED_ON_PAGE])
        if len(faults) > _LISTED_ON_PAGE:
            yield f'<li>and {len(faults) - _LISTED_ON_PAGE} more</li>'
        yield '</ul></section>'
    yield '<h2>Samples</h2>'
    pairs = list(refs.values())
    for i in sorted({
            int(i) for i in np.linspace(0, len(pairs) - 1,
                                        min(_SAMPLES, len(pairs)))
    }):
        yield _figure(*pairs[i], result.img_folder)
    yield '</html>'


def _figure(image: dict, ref: dict, folder: str | None) -> str:
    text = escape(' | '.join(ref['sentences']))
    if ref['segmentation'] is None:
        text += ' (no target)'
    caption = (f'<figcaption><b>{escape(str(ref["split"]))}, ref '
               f'{escape(str(ref["ref_id"]))}</b>: {text}</figcaption>')
    try:
        picture = _thumbnail(image, ref, folder)
    except (OSError, ValueError) as error:
        return (f'<figure><p>{escape(str(error)[:200])}</p>{caption}'
                '</figure>')
    return f'<figure><img src="{picture}" alt="">{caption}</figure>'


def _thumbnail(image: dict, ref: dict, folder: str | None) -> str:
    """URI of an image with the mask of a ref."""
    path = image.get('img_path') or osp.join(folder or '', image['file_name'])
    size = (image['height'], image['width'])
    mask = None
    if ref['segmentation'] is not None:
        mask = decode_mask(ref['segmentation'], *size)
    return thumbnail(path, size, mask, mask)
