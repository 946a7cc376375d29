# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What people look at first in a data set."""
import json
import os
import os.path as osp
from collections import Counter

import numpy as np

from cris.datasets.tokenizer import count_tokens

from .check import count_splits

_TOP = 20


def collect_stats(images: list[dict]) -> dict:
    """Figures of records.

    Args:
        images (list[dict]): Records.

    Returns:
        dict: ``splits`` (counts), ``sentence_tokens`` (with start and end),
        ``mask_share`` (of the image, in percent), ``referents_per_image``
        (each a list of numbers) and ``categories`` (refs by name).
    """
    refs = [(image, ref) for image in images for ref in image['refs']]
    return dict(
        splits=count_splits(images),
        sentence_tokens=[
            count_tokens(sentence) for _, ref in refs
            for sentence in ref['sentences']
        ],
        mask_share=[
            100 * ref['area'] / (image['height'] * image['width'])
            for image, ref in refs if ref['segmentation'] is not None
        ],
        referents_per_image=[len(image['refs']) for image in images],
        no_target=sum(ref['segmentation'] is None for _, ref in refs),
        categories=dict(
            Counter(str(ref['category']) for _, ref in refs).most_common()))


def print_stats(stats: dict) -> str:
    """The figures as text."""
    lines = [
        f'{split}: {n["images"]} images, {n["refs"]} refs, '
        f'{n["sentences"]} sentences'
        for split, n in stats['splits'].items()
    ]
    for key, name in (('sentence_tokens', 'tokens of a sentence'),
                      ('mask_share', 'mask, % of the image'),
                      ('referents_per_image', 'refs of an image')):
        q = _quantiles(stats[key])
        lines.append(f'{name}: ' +
                     ', '.join(f'{k} {v:.4g}' for k, v in q.items()))
    lines.append(f'refs without a target: {stats["no_target"]}')
    top = list(stats['categories'].items())[:_TOP]
    lines.append(f'{len(stats["categories"])} categories: ' +
                 ', '.join(f'{name} {n}' for name, n in top))
    return '\n'.join(lines)


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    names = ('min', '5%', 'median', '95%', 'max')
    return dict(
        zip(names, np.quantile(values, (0, .05, .5, .95, 1)).tolist(),
            strict=True),
        mean=float(np.mean(values)))


def write_stats(stats: dict, folder: str) -> str:
    """Write ``stats.json`` and ``stats.png``.

    Args:
        stats (dict): Of :func:`collect_stats`.
        folder (str): Where to; made if missing.

    Returns:
        str: Path of the picture.
    """
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    os.makedirs(folder, exist_ok=True)
    lists = ('sentence_tokens', 'mask_share', 'referents_per_image')
    with open(osp.join(folder, 'stats.json'), 'w', encoding='utf-8') as file:
        json.dump(
            dict(stats, **{k: _quantiles(stats[k]) for k in lists}),
            file,
            indent=1,
            ensure_ascii=False)
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout='constrained')
    tokens, referents = stats['sentence_tokens'], stats['referents_per_image']
    axes[0, 0].hist(tokens, np.arange(1, max(tokens, default=2) + 2) - .5)
    axes[0, 0].set(xlabel='tokens of a sentence, with start and end',
                   ylabel='sentences')
    axes[0, 1].hist(stats['mask_share'], 50)
    axes[0, 1].set(xlabel='mask, % of the image', ylabel='refs')
    axes[1, 0].hist(referents,
                    np.arange(0, max(referents, default=1) + 2) - .5)
    axes[1, 0].set(xlabel='refs of an image', ylabel='images')
    top = list(stats['categories'].items())[:_TOP][::-1]
    axes[1, 1].barh([name for name, _ in top], [n for _, n in top])
    axes[1, 1].set(xlabel='refs', title=f'the first {_TOP} of '
                   f'{len(stats["categories"])} categories')
    path = osp.join(folder, 'stats.png')
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
