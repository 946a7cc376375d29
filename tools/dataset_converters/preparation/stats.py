# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Statistics of a dataset, as text, JSON and plots."""
import json
import os
import os.path as osp
from collections import Counter

import numpy as np
from matplotlib.figure import Figure

from cris.datasets.tokenizer import count_tokens

from .check import count_splits

_TOP = 20  # categories that are listed
_LABELS = dict(
    sentence_tokens='tokens of a sentence',
    mask_share='mask, % of the image',
    referents_per_image='refs of an image')


def collect_stats(images: list[dict]) -> dict:
    """Statistics of records.

    Args:
        images (list[dict]): Records.

    Returns:
        dict: ``splits`` (counts), ``sentence_tokens`` (with start and end),
        ``mask_share`` (of the image, in percent), ``referents_per_image``
        (each a list of numbers), ``no_target`` (number of refs) and
        ``categories`` (number of refs by name).
    """
    refs = [(image, ref) for image in images for ref in image['refs']]
    return dict(
        splits=count_splits(images),
        sentence_tokens=[count_tokens(sentence) for _, ref in refs
                         for sentence in ref['sentences']],
        mask_share=[100 * ref['area'] / (image['height'] * image['width'])
                    for image, ref in refs if ref['segmentation'] is not None],
        referents_per_image=[len(image['refs']) for image in images],
        no_target=sum(ref['segmentation'] is None for _, ref in refs),
        categories=dict(
            Counter(str(ref['category']) for _, ref in refs).most_common()))


def print_stats(stats: dict) -> str:
    """The statistics as text."""
    lines = [
        f'{split}: {n["images"]} images, {n["refs"]} refs, '
        f'{n["sentences"]} sentences' for split, n in stats['splits'].items()
    ]
    for key, label in _LABELS.items():
        quantiles = _quantiles(stats[key]).items()
        lines.append(f'{label}: ' +
                     ', '.join(f'{k} {v:.4g}' for k, v in quantiles))
    lines.append(f'refs without a target: {stats["no_target"]}')
    top = list(stats['categories'].items())[:_TOP]
    lines.append(f'{len(stats["categories"])} categories: ' +
                 ', '.join(f'{name} {n}' for name, n in top))
    return '\n'.join(lines)


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    quantiles = np.quantile(values, (0, .05, .5, .95, 1)).tolist()
    names = ('min', '5%', 'median', '95%', 'max')
    return dict(
        zip(names, quantiles, strict=True), mean=float(np.mean(values)))


def write_stats(stats: dict, folder: str) -> str:
    """Write ``stats.json`` and ``stats.png``; return the path of the latter.

    The folder is made if it is missing.
    """
    os.makedirs(folder, exist_ok=True)
    short = dict(stats, **{key: _quantiles(stats[key]) for key in _LABELS})
    with open(osp.join(folder, 'stats.json'), 'w', encoding='utf-8') as file:
        json.dump(short, file, indent=1, ensure_ascii=False)
    figure = Figure(figsize=(11, 8), layout='constrained')
    axes = figure.subplots(2, 2).flat
    tokens, referents = stats['sentence_tokens'], stats['referents_per_image']
    bins = (np.arange(1, max(tokens, default=2) + 2) - .5, 50,
            np.arange(max(referents, default=1) + 2) - .5)
    for i, (key, unit) in enumerate(
            zip(_LABELS, ('sentences', 'refs', 'images'), strict=True)):
        axes[i].hist(stats[key], bins[i])
        axes[i].set(xlabel=_LABELS[key], ylabel=unit)
    top = list(stats['categories'].items())[:_TOP][::-1]
    axes[3].barh([name for name, _ in top], [n for _, n in top])
    axes[3].set(xlabel='refs', title=f'{len(top)} of '
                f'{len(stats["categories"])} categories')
    path = osp.join(folder, 'stats.png')
    figure.savefig(path, dpi=100)
    return path
