# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""LabelMe folders, as ReasonSeg has them: a JSON file beside each picture.

``{"text": "the dog" or several, "shapes": [{"label": "target", "points":
[[x, y], ...]}]}``. The shapes labelled "target" are the mask, those labelled
"ignore" count neither way. Without ``text`` each other label is an
expression of all its shapes, as people use LabelMe.
"""
import glob
import math
import os.path as osp
import reprlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count

from cris.io.files import load_json

from ..records import EntryError, RecordBuilder, Records, as_splits
from .shared import ImageFolder, flatten, inline_segmentation

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
_CORNERS = 64  # of the polygon of a circle


def read_labelme(ann_file: str, img_folder: str,
                 split: str | Sequence[str] | None = None) -> Records:
    """Read LabelMe folders; see the top of readers/__init__.py.

    Args:
        ann_file (str): A folder per split, with ``{split}`` in its name, or
            the one folder of all.
        img_folder (str): The folder that contains them.
    """
    builder, images = RecordBuilder(), ImageFolder(img_folder)
    ref_ids = count()
    for name in as_splits(split) or ['']:
        folder = ann_file.replace('{split}', name)
        if not osp.isdir(folder):
            raise FileNotFoundError(f'the folder {folder} does not exist: '
                                    'check data_root, ann_file and split')
        paths = sorted(glob.glob(osp.join(glob.escape(folder), '*.json')))
        if not paths:
            raise FileNotFoundError(f'{folder} holds no *.json of LabelMe')
        for path in paths:
            with builder.entry(path):
                entry = load_json(path)
                if not isinstance(entry, dict) or not isinstance(
                        entry.get('shapes'), list):
                    raise EntryError('it is not a LabelMe file: it has no '
                                     'list "shapes"')
                image = images.image(osp.relpath(_picture(path), img_folder))
                for sentences, target, ignore in _refs(entry, builder):
                    ref_id = next(ref_ids)
                    builder.add(
                        image, ref_id=ref_id, ann_id=ref_id,
                        split=name or 'all', sentences=sentences,
                        segmentation=inline_segmentation(target, builder),
                        ignore=inline_segmentation(ignore, builder))
    return builder.records()


def _picture(path: str) -> str:
    stem = osp.splitext(path)[0]
    for suffix in _SUFFIXES:
        for name in (stem + suffix, stem + suffix.upper()):
            if osp.isfile(name):
                return name
    raise EntryError(f'there is no picture {stem}.jpg, .png, ... beside it',
                     'missing-image')


def _refs(entry: dict, builder: RecordBuilder) -> Iterator[tuple]:
    """Sentences, polygons of the target (None: no target) and to ignore."""
    regions = defaultdict(list)
    for shape in entry['shapes']:
        if not isinstance(shape, dict) or not isinstance(
                shape.get('label'), str):
            raise EntryError(f'{reprlib.repr(shape)} is not a shape with a '
                             'label')
        polygon = _polygon(shape)
        if polygon is None:
            builder.dropped['points and lines of LabelMe are left out'] += 1
        else:
            regions[shape['label']].append(polygon)
    ignore = regions.pop('ignore', None)
    if 'text' in entry:
        yield flatten(entry['text']), regions.get('target'), ignore
    else:
        for label, polygons in regions.items():
            yield [label], polygons, ignore


def _polygon(shape: dict) -> list | None:
    """A region as a polygon of [x, y] pairs; None for points and lines."""
    points, kind = shape.get('points'), shape.get('shape_type', 'polygon')
    if kind not in ('rectangle', 'circle'):
        return points if kind == 'polygon' else None
    try:
        (x1, y1), (x2, y2) = points
        if kind == 'rectangle':
            return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
        radius = math.hypot(x2 - x1, y2 - y1)
    except (TypeError, ValueError) as error:
        raise EntryError(f'its {kind} {reprlib.repr(points)} has not two '
                         'points', 'bad-mask') from error
    angles = [2 * math.pi * i / _CORNERS for i in range(_CORNERS)]
    return [[x1 + radius * math.cos(a), y1 + radius * math.sin(a)]
            for a in angles]
