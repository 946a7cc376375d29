# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Records -> annotation files, one function per form.

Every writer takes the refs by split, each with its image, and the folder to
write to. Masks stay the same pixel for pixel.
"""
import json
import os
import os.path as osp
import pickle
from collections.abc import Iterable
from itertools import chain, count
from typing import Any

from PIL import Image

from cris.datasets.masks import (
    bounding_box,
    decode_mask,
    encode_mask,
    mask_files,
)
from cris.datasets.records import plain_rle

Splits = dict[str, list[tuple[dict, dict]]]


def write_refer(splits: Splits, dst: str) -> None:
    """``instances.json`` and ``refs(unc).p``; if there are refs without a
    target, or of a kind, ``grefs(unc).json``, since only gRefCOCO's form has
    them.
    """
    rows = list(chain(*splits.values()))
    categories = _category_ids(splits)
    annotations, refs = {}, []
    ids = [ref['ann_id'] for _, ref in rows]
    free = count(1 + max([0, *(i for i in ids if isinstance(i, int))]))
    for image, ref in rows:
        ann_id: Any = -1
        if ref['segmentation'] is not None:
            ann = _coco_annotation(image, ref, categories)
            ann_id = ref['ann_id']
            if not isinstance(ann_id, (int, str)) or (
                    annotations.get(ann_id, ann) != ann):
                ann_id = next(free)
            annotations[ann_id] = ann
        refs.append(dict(
            _pick(ref, 'ref_id', 'sent_ids'), ann_id=ann_id,
            split=ref['split'], image_id=image['img_id'],
            file_name=image['file_name'],
            category_id=categories.get(ref['category'], 0),
            sentences=[dict(sent, raw=sent['sent'],
                            tokens=sent['sent'].split())
                       for sent in _sentences(ref)], **_kind(ref)))
    _write_coco(
        osp.join(dst, 'instances.json'), rows,
        [dict(ann, id=i) for i, ann in annotations.items()], categories)
    if all(ref['ann_id'] != -1 and 'kind' not in ref for ref in refs):
        with open(osp.join(dst, 'refs(unc).p'), 'wb') as file:
            pickle.dump(refs, file, protocol=2)
        return
    for ref in refs:
        ref['no_target'] = ref['ann_id'] == -1
        ref['ann_id'] = [ref['ann_id']]
    write_json(osp.join(dst, 'grefs(unc).json'), refs)


def write_jsonl(splits: Splits, dst: str) -> None:
    """``<split>.jsonl`` and ``masks/*.png``."""
    numbers = count()
    os.makedirs(osp.join(dst, 'masks'), exist_ok=True)
    for split, rows in splits.items():
        path = osp.join(dst, f'{split}.jsonl')
        with open(path, 'w', encoding='utf-8') as file:
            for image, ref in rows:
                mask = None
                if ref['segmentation'] is not None:
                    mask = f'{next(numbers):06d}.png'
                    _write_mask(image, ref, osp.join(dst, 'masks', mask))
                line = dict(
                    image=image['file_name'], mask=mask,
                    expressions=ref['sentences'], image_id=image['img_id'],
                    **_pick(ref, 'split', 'ref_id', 'ann_id', 'sent_ids',
                            'category'), **_kind(ref))
                if 'ignore' in ref:
                    line['ignore'] = plain_rle(
                        ref['ignore'], image['height'], image['width'])
                file.write(json.dumps(line, ensure_ascii=False) + '\n')


def write_coco(splits: Splits, dst: str) -> None:
    """``<split>.json``: COCO instances with ``expressions``."""
    categories = _category_ids(splits)
    for split, rows in splits.items():
        annotations = [
            dict(_coco_annotation(image, ref, categories), id=number,
                 expressions=ref['sentences'],
                 **_pick(ref, 'ref_id', 'ann_id', 'sent_ids'))
            for number, (image, ref) in enumerate(rows, 1)]
        _write_coco(
            osp.join(dst, f'{split}.json'), rows, annotations, categories)


def write_official_json(splits: Splits, dst: str) -> None:
    """``anns/<split>.json`` and ``masks/<segment_id>.png``."""
    ids = [ref['ann_id'] for _, ref in chain(*splits.values())]
    # In the official files the mask has the id of the annotation.
    are_unique = len({i for i in ids if isinstance(i, int)}) == len(ids)
    numbers = count()
    for folder in ('anns', 'masks'):
        os.makedirs(osp.join(dst, folder), exist_ok=True)
    for split, rows in splits.items():
        entries = []
        for image, ref in rows:
            segment_id = ref['ann_id'] if are_unique else next(numbers)
            _write_mask(image, ref,
                        osp.join(dst, 'masks', f'{segment_id}.png'))
            entries.append(official_entry(image, ref, segment_id))
        write_json(osp.join(dst, 'anns', f'{split}.json'), entries)


def official_entry(image: dict, ref: dict, segment_id: int | str) -> dict:
    """A ref in the official JSON form, with our ids as further keys."""
    rle = encode_mask(ref['segmentation'], image['height'], image['width'])
    sentences = [dict(idx=idx, **sent)
                 for idx, sent in enumerate(_sentences(ref))]
    return dict(
        bbox=bounding_box(rle), cat=ref['category'], segment_id=segment_id,
        img_name=image['file_name'], sentences=sentences,
        sentences_num=len(sentences), image_id=image['img_id'],
        **_pick(ref, 'ref_id', 'ann_id'))


#: The keys are those of ``known_sets.FORMS``.
WRITERS = {
    'refer': write_refer,
    'jsonl': write_jsonl,
    'coco': write_coco,
    'official-json': write_official_json,
}


def check_new_folder(path: str) -> None:
    """Raise a FileExistsError unless a folder is new or empty."""
    if osp.isdir(path) and os.listdir(path):
        raise FileExistsError(f'{path} is not empty; choose a new folder')


def write_json(path: str, content: Any) -> None:
    with open(path, 'w', encoding='utf-8') as file:
        json.dump(content, file, separators=(',', ':'))


def _pick(source: dict, *keys: str) -> dict:
    return {key: source[key] for key in keys}


def _kind(ref: dict) -> dict:
    return _pick(ref, 'kind') if 'kind' in ref else {}


def _sentences(ref: dict) -> list[dict]:
    return [dict(sent_id=i, sent=sentence) for i, sentence in zip(
        ref['sent_ids'], ref['sentences'], strict=True)]


def _write_coco(path: str, rows: Iterable[tuple[dict, dict]],
                annotations: list[dict], categories: dict[str, int]) -> None:
    images = {
        image['img_id']: dict(_pick(image, 'file_name', 'height', 'width'),
                              id=image['img_id']) for image, _ in rows}
    named = [dict(id=i, name=name) for name, i in categories.items()]
    write_json(path, dict(images=list(images.values()),
                          annotations=annotations, categories=named))


def _coco_annotation(image: dict, ref: dict, categories: dict) -> dict:
    size = image['height'], image['width']
    segmentation = ref['segmentation']
    if mask_files(segmentation):
        segmentation = plain_rle(segmentation, *size)
    return dict(
        image_id=image['img_id'], iscrowd=0, area=ref['area'],
        category_id=categories.get(ref['category'], 0),
        bbox=bounding_box(encode_mask(segmentation, *size)),
        segmentation=segmentation)


def _category_ids(splits: Splits) -> dict[str, int]:
    names = {ref['category'] for _, ref in chain(*splits.values())} - {None}
    return {name: i for i, name in enumerate(sorted(names), 1)}


def _write_mask(image: dict, ref: dict, path: str) -> None:
    mask = decode_mask(ref['segmentation'], image['height'], image['width'])
    Image.fromarray(mask * 255).save(path)
