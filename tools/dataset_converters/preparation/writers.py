# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Records -> annotation files, one function per form.

Every writer takes the records by split and the folder to write to. Masks stay
the same pixel for pixel.
"""
import json
import os
import os.path as osp
import pickle
from collections.abc import Iterator
from itertools import count
from typing import Any

from PIL import Image

from cris.datasets.masks import bounding_box, decode_mask, encode_mask
from cris.datasets.readers.shared import mask_files
from cris.datasets.records import plain_rle

Splits = dict[str, list[dict]]


def write_refer(splits: Splits, dst: str) -> None:
    """``instances.json`` and ``refs(unc).p``; with refs without a target
    ``grefs(unc).json``, since only gRefCOCO's form can express them."""
    categories = _category_ids(splits)
    images: dict = {}
    annotations: dict = {}
    refs = []
    free = count(1 + max(
        [0] + [r['ann_id'] for _, _, r in _refs(splits)
               if isinstance(r['ann_id'], int)]))
    for split, image, ref in _refs(splits):
        images[image['img_id']] = _image(image)
        ann_id: Any = -1
        if ref['segmentation'] is not None:
            ann = _annotation(image, ref, categories)
            ann_id = ref['ann_id']
            if not isinstance(ann_id, (int, str)) or (
                    annotations.get(ann_id, ann) != ann):
                ann_id = next(free)
            annotations[ann_id] = ann
        refs.append(
            dict(
                ref_id=ref['ref_id'],
                ann_id=ann_id,
                image_id=image['img_id'],
                category_id=categories.get(ref['category'], 0),
                split=split,
                file_name=image['file_name'],
                sent_ids=ref['sent_ids'],
                sentences=[
                    dict(sent_id=i, sent=s, raw=s, tokens=s.split())
                    for i, s in zip(ref['sent_ids'], ref['sentences'],
                                    strict=True)
                ]))
    _write_json(
        osp.join(dst, 'instances.json'),
        dict(
            images=list(images.values()),
            annotations=[dict(ann, id=i) for i, ann in annotations.items()],
            categories=_categories(categories)))
    if all(ref['ann_id'] != -1 for ref in refs):
        with open(osp.join(dst, 'refs(unc).p'), 'wb') as file:
            pickle.dump(refs, file, protocol=2)
        return
    for ref in refs:
        ref['no_target'] = ref['ann_id'] == -1
        ref['ann_id'] = [ref['ann_id']]
    _write_json(osp.join(dst, 'grefs(unc).json'), refs)


def write_jsonl(splits: Splits, dst: str) -> None:
    """``<split>.jsonl`` and ``masks/*.png``."""
    numbers = count()
    for split, images in splits.items():
        path = osp.join(dst, f'{_stem(split)}.jsonl')
        with open(path, 'w', encoding='utf-8') as file:
            for _, image, ref in _refs({split: images}):
                mask = None
                if ref['segmentation'] is not None:
                    mask = f'{next(numbers):06d}.png'
                    _write_mask(image, ref, osp.join(dst, 'masks', mask))
                file.write(
                    json.dumps(
                        dict(
                            image=image['file_name'],
                            mask=mask,
                            expressions=ref['sentences'],
                            sent_ids=ref['sent_ids'],
                            ref_id=ref['ref_id'],
                            image_id=image['img_id'],
                            ann_id=ref['ann_id'],
                            category=ref['category'],
                            split=split),
                        ensure_ascii=False) + '\n')
    os.makedirs(osp.join(dst, 'masks'), exist_ok=True)


def write_coco(splits: Splits, dst: str) -> None:
    """``<split>.json``: COCO instances with ``expressions``."""
    categories = _category_ids(splits)
    for split, images in splits.items():
        annotations = [
            dict(
                _annotation(image, ref, categories),
                id=number,
                ref_id=ref['ref_id'],
                ann_id=ref['ann_id'],
                sent_ids=ref['sent_ids'],
                expressions=ref['sentences'])
            for number, (_, image, ref) in enumerate(_refs({split: images}), 1)
        ]
        _write_json(
            osp.join(dst, f'{_stem(split)}.json'),
            dict(
                images=[_image(image) for image in images],
                annotations=annotations,
                categories=_categories(categories)))


def write_official_json(splits: Splits, dst: str) -> None:
    """``anns/<split>.json`` and ``masks/<segment_id>.png``."""
    refs = [ref for _, _, ref in _refs(splits)]
    ids = {ref['ann_id'] for ref in refs if isinstance(ref['ann_id'], int)}
    numbers = count()
    os.makedirs(osp.join(dst, 'anns'), exist_ok=True)
    for split, images in splits.items():
        entries = []
        for _, image, ref in _refs({split: images}):
            # The official segment_id is the id of the annotation.
            segment_id = (
                ref['ann_id'] if len(ids) == len(refs) else next(numbers))
            _write_mask(image, ref,
                        osp.join(dst, 'masks', f'{segment_id}.png'))
            rle = encode_mask(ref['segmentation'], image['height'],
                              image['width'])
            entries.append(
                dict(
                    bbox=bounding_box(rle),
                    cat=ref['category'],
                    segment_id=segment_id,
                    img_name=image['file_name'],
                    sentences=[
                        dict(idx=idx, sent_id=i, sent=s)
                        for idx, (i, s) in enumerate(
                            zip(ref['sent_ids'], ref['sentences'],
                                strict=True))
                    ],
                    sentences_num=len(ref['sentences']),
                    ref_id=ref['ref_id'],
                    ann_id=ref['ann_id'],
                    image_id=image['img_id']))
        _write_json(osp.join(dst, 'anns', f'{_stem(split)}.json'), entries)


WRITERS = {
    'refer': write_refer,
    'jsonl': write_jsonl,
    'coco': write_coco,
    'official-json': write_official_json,
}


def _refs(splits: Splits) -> Iterator[tuple[str, dict, dict]]:
    for split, images in splits.items():
        for image in images:
            for ref in image['refs']:
                yield split, image, ref


def _stem(split: str) -> str:
    if not split or split != osp.basename(split) or split.startswith('.'):
        raise ValueError(f'the split {split!r} cannot be part of a file name')
    return split


def _image(image: dict) -> dict:
    return dict(
        id=image['img_id'],
        file_name=image['file_name'],
        height=image['height'],
        width=image['width'])


def _annotation(image: dict, ref: dict, categories: dict) -> dict:
    size = image['height'], image['width']
    segmentation = ref['segmentation']
    if mask_files(segmentation):
        segmentation = plain_rle(segmentation, *size)
    return dict(
        image_id=image['img_id'],
        category_id=categories.get(ref['category'], 0),
        iscrowd=0,
        area=ref['area'],
        bbox=bounding_box(encode_mask(segmentation, *size)),
        segmentation=segmentation)


def _category_ids(splits: Splits) -> dict[str, int]:
    names = {ref['category'] for _, _, ref in _refs(splits)} - {None}
    return {name: i for i, name in enumerate(sorted(names), 1)}


def _categories(ids: dict[str, int]) -> list[dict]:
    return [dict(id=i, name=name) for name, i in ids.items()]


def _write_mask(image: dict, ref: dict, path: str) -> None:
    os.makedirs(osp.dirname(path), exist_ok=True)
    mask = decode_mask(ref['segmentation'], image['height'], image['width'])
    Image.fromarray(mask * 255).save(path)


def _write_json(path: str, content: Any) -> None:
    with open(path, 'w', encoding='utf-8') as file:
        json.dump(content, file, separators=(',', ':'))
