# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Statistics of a dataset, as text, JSON and plots."""
import json
import os
import os.path as osp
from collections import Counter

import numpy as np
from matplotlib.figure import Figure

from cris.datasets.records import Records
from cris.datasets.tokenizer import count_tokens

from .check import count_splits

_TOP = 20  # categories that are listed


def write_stats(records: Records, folder: str) -> str:
    """Write ``stats.json`` and ``stats.png``; return the text for the user.

    The folder is made if it is missing. The lengths of sentences count the
    tokens of start and end.
    """
    images = records.images
    refs = [(image, ref) for image in images for ref in image['refs']]
    splits = count_splits(images)
    tokens = [count_tokens(sentence) for _, ref in refs
              for sentence in ref['sentences']]
    shares = [100 * ref['area'] / (image['height'] * image['width'])
              for image, ref in refs if ref['segmentation'] is not None]
    referents = [len(image['refs']) for image in images]
    figures = (
        ('sentence_tokens', tokens, 'tokens of a sentence', 'sentences',
         np.arange(1, max(tokens, default=2) + 2) - .5),
        ('mask_share', shares, 'mask, % of the image', 'refs', 50),
        ('referents_per_image', referents, 'refs of an image', 'images',
         np.arange(max(referents, default=1) + 2) - .5))
    no_target = len(refs) - len(shares)
    categories = Counter(
        str(ref['category']) for _, ref in refs).most_common()
    lines = [f'{split}: {n["images"]} images, {n["refs"]} refs, '
             f'{n["sentences"]} sentences' for split, n in splits.items()]
    if records.faults:
        lines.insert(0, f'{len(records.faults)} faulty entries are left out; '
                     'see check')
    content: dict = dict(splits=splits)
    canvas = Figure(figsize=(11, 8), layout='constrained')
    *axes, last = canvas.subplots(2, 2).flat
    for axis, (key, values, label, unit, bins) in zip(
            axes, figures, strict=True):
        content[key] = _quantiles(values)
        lines.append(f'{label}: ' + ', '.join(
            f'{name} {value:.4g}' for name, value in content[key].items()))
        axis.hist(values, bins)
        axis.set(xlabel=label, ylabel=unit)
    top = categories[:_TOP]
    lines += [f'refs without a target: {no_target}',
              f'{len(categories)} categories: ' +
              ', '.join(f'{name} {n}' for name, n in top)]
    last.barh([name for name, _ in top[::-1]], [n for _, n in top[::-1]])
    last.set(xlabel='refs', title=f'{len(top)} of {len(categories)} '
             'categories')
    os.makedirs(folder, exist_ok=True)
    content.update(no_target=no_target, categories=dict(categories))
    with open(osp.join(folder, 'stats.json'), 'w', encoding='utf-8') as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
    path = osp.join(folder, 'stats.png')
    canvas.savefig(path, dpi=100)
    return '\n'.join([*lines, f'plots: {path}'])


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    quantiles = zip(('min', '5%', 'median', '95%', 'max'),
                    np.quantile(values, (0, .05, .5, .95, 1)).tolist(),
                    strict=True)
    return dict(quantiles, mean=float(np.mean(values)))
