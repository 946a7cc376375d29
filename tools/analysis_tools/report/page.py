# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""One page that shows where a model is right and where it is wrong.

Shapes: N expressions, in the order of the results file.
"""
import base64
import hashlib
import os
import os.path as osp
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from jinja2 import Template
from matplotlib.figure import Figure

from cris.datasets.masks import decode_mask
from cris.evaluation.calibration import (
    NUM_BINS,
    Reliability,
    counts_of,
    is_right,
    reliability,
    risk_coverage,
)
from cris.evaluation.refseg_metric import compute_scores
from cris.evaluation.results import read_results_file
from cris.io.files import read_bytes, safe_join
from cris.io.images import check_pixels
from cris.version import __version__
from cris.visualization.draw import cut, thumbnail

from .breakdown import (
    Bin,
    by_area,
    by_kind,
    by_length,
    choose_samples,
    target_share,
    worst_words,
)

#: Expressions that the filter by word searches, evenly chosen.
MAX_FILTERED = 50_000
_LONGEST = 200  # characters of a sentence on the page
_FILTER_PICTURES = 120
_STYLE = {
    'svg.fonttype': 'none',  # use the browser's fonts
    'svg.hashsalt': 'cris',  # reproducible
    'font.family': 'sans-serif',
    'axes.spines.top': False, 'axes.spines.right': False,
    'text.color': '#1f2933', 'axes.labelcolor': '#1f2933',
    'axes.edgecolor': '#9aa5b1',
    'xtick.color': '#52606d', 'ytick.color': '#52606d'}


def write_report(results: str, out: str, img_root: str | None = None,
                 num_samples: int = 8, title: str | None = None) -> list[str]:
    """Write a self-contained HTML page about a results file.

    Args:
        results (str): Written by ``tools/test.py --results``.
        out (str): Page to write; missing folders are made.
        img_root (str, optional): Folder of the images, by file name. None
            uses the paths in the results. Defaults to None.
        num_samples (int): Number of best, median and worst samples, each.
            Defaults to 8.
        title (str, optional): Defaults to the name of the results file.

    Returns:
        list[str]: Why pictures are missing.

    Raises:
        FileNotFoundError: If the results do not exist.
        ValueError: If it is not a results file.
    """
    records, conventions = read_results_file(results)
    iou = np.array([record['iou'] for record in records])
    faults = {}
    groups = {
        kind: [dict(records[i], picture=_picture(records[i], img_root, faults),
                    sentence=cut(records[i]['expression'], _LONGEST),
                    file=osp.basename(records[i]['img_path'] or ''),
                    share=target_share(records[i])) for i in indices]
        for kind, indices in choose_samples(records, num_samples).items()}
    filtered = _evenly(len(records), MAX_FILTERED)
    ranked = np.argsort(iou[filtered], kind='stable')
    pictures = {
        int(k): _picture(records[filtered[k]], img_root, faults)
        for k in ranked[_evenly(len(ranked), _FILTER_PICTURES)]}
    template = Template(
        Path(__file__).with_name('page.html').read_text(encoding='utf-8'),
        autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = template.render(
        title=title or osp.basename(results), version=__version__,
        total=len(records), sha256=_sha256,
        num_images=len({record['img_path'] for record in records}),
        scores=scores_of(records, conventions), conventions=conventions,
        charts=_charts(records, iou), kinds=by_kind(records),
        calibration=_calibration(records),
        num_bins=NUM_BINS, groups=groups, faults=list(faults),
        words=worst_words(records),
        data=dict(
            sentences=[cut(records[i]['expression'], _LONGEST)
                       for i in filtered],
            iou=np.round(100 * iou[filtered], 1).tolist(),
            pictures={k: uri for k, uri in pictures.items() if uri},
            mean=100 * iou.mean()))
    os.makedirs(osp.dirname(out) or '.', exist_ok=True)
    with open(out, 'w', encoding='utf-8', errors='replace') as file:
        file.write(page)
    return list(faults)


def scores_of(records: Sequence[dict], conventions: dict) -> dict[str, float]:
    """Scores in percent, as :class:`RefSegMetric` computed them."""
    options = ('inclusive', 'empty_union', 'generalized')
    return compute_scores(
        counts_of(records), **{k: conventions[k] for k in options})


def _evenly(length: int, count: int) -> np.ndarray:
    """At most count positions in 0 ... length - 1, with both ends."""
    return np.unique(
        np.linspace(0, length - 1, min(length, count)).round().astype(int))


def _picture(record: dict, img_root: str | None,
             faults: dict[str, None]) -> str | None:
    """URI of the image with both masks, or None and why in faults."""
    path, size = record['img_path'], (record['height'], record['width'])
    try:
        if not path:
            raise ValueError('the results hold no image paths')
        if not record.get('gt_rle') or not record.get('pred_rle'):
            raise ValueError('the results hold no masks: write them again '
                             'with tools/test.py --results')
        check_pixels(*size, path)
        gt, pred = (
            decode_mask(dict(size=list(size), counts=record[key]), *size)
            for key in ('gt_rle', 'pred_rle'))
        if img_root is not None:
            path = safe_join(img_root, osp.basename(path))
        if not osp.isfile(path):
            raise FileNotFoundError(f'the image {path} does not exist: give '
                                    'its folder with --img-root')
        return thumbnail(read_bytes(path), path, size, gt, pred)
    except (OSError, ValueError) as error:
        faults[str(error)] = None
        return None


def _calibration(records: Sequence[dict]) -> dict | None:
    """Charts of a model that says whether there is a referent."""
    if any(record.get('confidence') is None for record in records):
        return None
    confidence = np.array([record['confidence'] for record in records])
    counts = counts_of(records)
    right, target = is_right(counts), counts['gt_area'] > 0
    found = reliability(confidence, right)
    with matplotlib.rc_context(_STYLE):
        return dict(
            ece=100 * found.ece, right=100 * right.mean(),
            targets='some' if not target.all() and target.any() else
            'all' if target.all() else 'none',
            reliability=_svg(draw_reliability(found)),
            risk=_svg(draw_risk(*risk_coverage(confidence, right))))


def draw_reliability(found: Reliability) -> Figure:
    """Accuracy by confidence, above the number of expressions."""
    figure = Figure((8, 4.4), layout='constrained')
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 100], [0, 100], color='#9aa5b1', linewidth=1)
    upper.plot(100 * found.confidence, 100 * found.accuracy,
               color='#2f6fab', marker='o')
    upper.set(ylabel='right answers in percent', ylim=(0, 102))
    upper.grid(axis='y', color='#e4e7eb')
    lower.bar(100 * found.confidence, found.count, 100 / NUM_BINS - 1,
              color='#9aa5b1')
    lower.set(xlabel='confidence in percent', ylabel='count', xlim=(0, 102))
    return figure


def draw_risk(coverage: np.ndarray, risk: np.ndarray) -> Figure:
    figure = Figure((8, 2.8), layout='constrained')
    axes = figure.subplots()
    axes.step(100 * coverage, 100 * risk, where='post', color='#2f6fab')
    axes.set(xlabel='coverage: expressions answered, in percent, the most '
             'confident first', ylabel='risk: wrong, in percent',
             xlim=(0, 100), ylim=(0, None))
    axes.grid(color='#e4e7eb')
    return figure


def _charts(records: Sequence[dict], iou: np.ndarray) -> dict[str, str]:
    with matplotlib.rc_context(_STYLE):
        return dict(
            histogram=_histogram(100 * iou),
            length=_curve(by_length(records), 'words in the expression'),
            area=_curve(
                by_area(records),
                'ground truth in percent of the image (logarithmic steps)'))


def _histogram(iou: np.ndarray) -> str:
    figure = Figure((8, 2.8), layout='constrained')
    axes, mean = figure.subplots(), iou.mean()
    axes.hist(iou, np.arange(0, 101, 5), color='#2f6fab', edgecolor='white')
    axes.set(xlabel='IoU in percent (bars of 5)', ylabel='expressions',
             xlim=(0, 100), xticks=range(0, 101, 10))
    axes.axvline(mean, color='#c4501b', linewidth=1.5)
    axes.annotate(
        f'mean {mean:.1f}', (mean, 1), (4, -4),
        xycoords=('data', 'axes fraction'), textcoords='offset points',
        va='top', color='#c4501b')
    return _svg(figure)


def _curve(bins: Sequence[Bin], label: str) -> str:
    figure = Figure((8, 3.6), layout='constrained')
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    positions = np.arange(len(bins))
    upper.errorbar(
        positions, [b.mean for b in bins], [b.margin for b in bins],
        color='#2f6fab', marker='o', capsize=3, elinewidth=1)
    upper.set(ylabel='mean IoU in percent', ylim=(0, 100))
    upper.grid(axis='y', color='#e4e7eb')
    bars = lower.bar(positions, [b.count for b in bins], color='#9aa5b1')
    lower.bar_label(bars, [f'{b.count:,}' for b in bins], padding=1)
    lower.set(xlabel=label, ylabel='count', yticks=[], xticks=positions,
              xticklabels=[b.label for b in bins])
    lower.margins(y=.35)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    file = BytesIO()
    figure.savefig(file, format='svg', metadata=dict(Date=None))
    content = base64.b64encode(file.getvalue()).decode()
    return f'data:image/svg+xml;base64,{content}'


def _sha256(text: str) -> str:
    """Hash of a script for the content security policy."""
    digest = hashlib.sha256(str(text).encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
