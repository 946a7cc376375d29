# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Which expression of a data set an entry of another file means.

The ways to match are sent_id (and text, if there is one); ref_id and text;
ann_id and text; image, text and box.

* *text* (``caption``, ``sent``, ``sentence`` or ``text``) is compared by its
  letters and digits, in lower case: REFER has no punctuation.
* *image* is ``file_name`` or ``image_id``; of COCO's names the number.
* *box* (``bbox`` or ``box``) overlaps the box of the mask with an IoU of at
  least 0.5. The boxes of a file are all x, y, width, height, or all x1, y1,
  x2, y2: two ways.
"""
import os.path as osp
import re
from collections import defaultdict
from itertools import product
from typing import Any

from pycocotools import mask as coco_mask
from torch.utils.data import Dataset

from cris.datasets.base import refer_datasets
from cris.datasets.masks import bounding_box, encode_mask

_IDS = ('sent_id', 'ref_id', 'ann_id')
_TEXTS = ('caption', 'sent', 'sentence', 'text')
_IMAGES = ('file_name', 'image_id')
_BY_BOX = ('image', 'text', 'box')
_SAME_BOX = 0.5  # IoU; boxes of masks differ from annotated ones by a pixel


def expression_keys(sample: dict) -> list[tuple]:
    """What tells the K expressions of a sample from all others.

    Args:
        sample (dict): With img_path, and ref_ids, sent_ids and expressions,
            K of each.
    """
    return [(sample['img_path'], str(ref_id), str(sent_id), text)
            for ref_id, sent_id, text in zip(
                sample['ref_ids'], sample['sent_ids'], sample['expressions'],
                strict=True)]


def fields_of(entry: dict) -> dict[str, Any]:
    """What names an entry's expression: values by field, and its box."""
    fields: dict[str, Any] = {
        key: [str(entry[key])] for key in _IDS if entry.get(key) is not None}
    fields['text'] = [_letters(entry[key]) for key in _TEXTS
                      if isinstance(entry.get(key), str)][:1]
    fields['image'] = list(dict.fromkeys(
        _image_name(entry[key]) for key in _IMAGES
        if isinstance(entry.get(key), (int, str))))
    box = entry.get('bbox', entry.get('box'))
    if isinstance(box, list) and len(box) == 4 and all(
            isinstance(number, (int, float)) for number in box):
        fields['box'] = box
    return {key: value for key, value in fields.items() if value}


def expressions_of(dataset: Dataset, with_boxes: bool) -> list[dict]:
    """Fields of every expression, and its key.

    Args:
        dataset (Dataset): With ReferDatasets in it.
        with_boxes (bool): Whether to compute x, y, width and height of every
            mask, in pixels.
    """
    expressions = []
    for part in refer_datasets(dataset):
        for info in map(part.get_data_info, range(len(part))):
            images = list({_image_name(info[k])
                           for k in ('img_path', 'img_id')})
            for ref in info['refs']:
                box = [0, 0, 0, 0]
                if with_boxes and ref['segmentation'] is not None:
                    box = bounding_box(encode_mask(
                        ref['segmentation'], info['height'], info['width']))
                keys = expression_keys(dict(
                    img_path=info['img_path'], sent_ids=ref['sent_ids'],
                    ref_ids=[ref['ref_id']] * len(ref['sentences']),
                    expressions=ref['sentences']))
                expressions += [
                    dict(sent_id=[key[2]], ref_id=[key[1]],
                         ann_id=[str(ref['ann_id'])], image=images, box=box,
                         text=[_letters(key[3])], key=key) for key in keys]
    return expressions


def _letters(text: str) -> str:
    return ''.join(filter(str.isalnum, text.lower()))


def _image_name(value: int | str) -> str:
    """581857 of itself and of COCO_train2014_000000581857_16.jpg."""
    stem = osp.splitext(osp.basename(str(value)))[0]
    number = re.search(r'(\d{12})(_\d+)?$', stem)
    return str(int(number[1])) if number else stem


def ways_to_match(
        items: list[dict]) -> dict[str, tuple[list[str], str | None]]:
    """Fields to compare and form of the box, by the name of the way.

    Only ways for which every entry (see :func:`fields_of`) has the fields.
    """

    def in_all(*names: str) -> bool:
        return all(name in item for item in items for name in names)

    text = ['text'] if in_all('text') else []
    ways = {' and '.join(names): (names, None)
            for names in (['sent_id', *text], ['ref_id', 'text'],
                          ['ann_id', 'text']) if in_all(*names)}
    if in_all(*_BY_BOX):
        for form in ('x, y, width, height', 'x1, y1, x2, y2'):
            ways[f'image, text and box ({form})'] = ['image', 'text'], form
    return ways


def match(items: list[dict], expressions: list[dict], names: list[str],
          box_form: str | None) -> dict[int, int]:
    """Numbers of expressions by those of entries.

    An entry takes the first expression that is left. So a sentence that a
    ref has twice needs two entries; their order does not matter, as both are
    predicted alike.
    """
    known = defaultdict(list)
    for k, expression in enumerate(expressions):
        for key in product(*(expression[name] for name in names)):
            known[key].append(k)
    pairs, taken = {}, set()
    for i, item in enumerate(items):
        left = [k for key in product(*(item[name] for name in names))
                for k in known.get(key, ()) if k not in taken]
        if left and box_form:
            x, y, *size = item['box']
            if box_form.startswith('x1'):
                size = [size[0] - x, size[1] - y]
            ious = coco_mask.iou(
                [[x, y, *size]], [expressions[k]['box'] for k in left],
                [0] * len(left))[0]
            left = [left[ious.argmax()]] if ious.max() >= _SAME_BOX else []
        if left:
            pairs[i] = left[0]
            taken.add(left[0])
    return pairs
