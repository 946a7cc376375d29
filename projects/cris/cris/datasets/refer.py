# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Annotation files in the REFER layout -> images with their expressions.

The layout of RefCOCO, RefCOCO+, RefCOCOg and many sets made after them:
``instances.json`` (COCO) and ``refs(<split_by>).p``, a pickled list of
``dict(ref_id, ann_id, image_id, split, sentences=[dict(sent_id, sent)])``.
This file knows nothing of mmengine.
"""
import json
import os.path as osp
import pickle
from collections import Counter
from typing import Any, Dict, List, Union

import numpy as np
from pycocotools import mask as coco_mask

Segmentation = Union[List[List[float]], List[dict], dict]
_MAX_LISTED = 10


class _PlainUnpickler(pickle.Unpickler):
    """Admits plain containers, numbers and strings: nothing can run."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(
            f'it asks for {module}.{name}, but only lists, dicts, tuples, '
            'numbers and strings are read')


def load_plain_pickle(path: str) -> Any:
    """Read a pickle that holds plain data.

    Args:
        path (str): The file.

    Returns:
        The object.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no pickle or asks for anything but plain data;
            nothing in it is executed.
    """
    with open(path, 'rb') as file:
        try:
            # The files of RefCOCO were written by Python 2.
            return _PlainUnpickler(
                file, encoding='utf-8', errors='replace').load()
        except OSError:
            raise
        except Exception as error:  # any broken byte ends in some exception
            raise ValueError(f'{path} is not a pickle of plain data: {error}. '
                             'Get the file again from its source.') from error


def load_json(path: str) -> Any:
    """Read a JSON file; a broken one is a ValueError that names it."""
    with open(path, encoding='utf-8') as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f'{path} is not valid JSON: {error}. Get the '
                             'file again from its source.') from error


def encode_mask(segmentation: Segmentation, height: int, width: int) -> dict:
    """COCO's forms of a mask -> one compressed RLE, the union of its parts.

    Args:
        segmentation (list | dict): Polygons ``[[x, y, ...], ...]``, an RLE
            dict (``counts`` a list, or compressed), or a list of RLE dicts.
        height (int): Height of the image, in pixels.
        width (int): Width of the image, in pixels.

    Returns:
        dict: Compressed RLE.

    Raises:
        ValueError: If it is none of these, or of another size.
    """
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    if not parts:
        raise ValueError('the segmentation is empty')
    rles = [_encode_part(part, height, width) for part in parts]
    return coco_mask.merge(rles)


def _encode_part(part: Union[list, dict], height: int, width: int) -> dict:
    if isinstance(part, dict):
        size = list(part.get('size', ()))
        if size != [height, width]:
            raise ValueError(f'the RLE is of size {size}, the image of '
                             f'{[height, width]} (height, width)')
        if isinstance(part.get('counts'), list):
            if sum(part['counts']) != height * width:
                raise ValueError(
                    f'the RLE counts {sum(part["counts"])} pixels, the image '
                    f'has {height * width}')
            return coco_mask.frPyObjects(part, height, width)
        if isinstance(part.get('counts'), (str, bytes)):
            _check_compressed(part['counts'], height * width)
            return part
    elif isinstance(part, list):
        # Four numbers would be read as a box by pycocotools.
        if len(part) < 6 or len(part) % 2:
            raise ValueError(f'a polygon has {len(part)} numbers; it needs '
                             'three points or more, x and y of each')
        return coco_mask.frPyObjects([part], height, width)[0]
    raise ValueError(f'neither polygon nor RLE: {str(part)[:60]}')


def _check_compressed(counts: Union[str, bytes], pixels: int) -> None:
    """Refuse runs that do not fill the image; pycocotools would go on.

    COCO's compressed RLE: five bits a character from the lowest, the sixth
    says that more follow; from the third run on, differences to the run two
    before.
    """
    if isinstance(counts, str):
        counts = counts.encode('ascii', 'replace')
    runs, value, shift = [], 0, 0
    for character in counts:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError('the RLE has characters that do not belong there')
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift or min(runs, default=-1) < 0 or sum(runs) != pixels:
        raise ValueError(f'the RLE counts {sum(runs)} pixels, the image has '
                         f'{pixels}')


def decode_mask(segmentation: Segmentation, height: int,
                width: int) -> np.ndarray:
    """COCO's forms of a mask -> uint8 ``(height, width)`` of 0 and 1.

    Takes and raises what :func:`encode_mask` does.
    """
    return coco_mask.decode(encode_mask(segmentation, height, width))


def load_refer(ann_file: str, split_file: str, split: str) -> List[dict]:
    """Read and verify one split of a set in the REFER layout.

    Args:
        ann_file (str): Path of ``instances.json``.
        split_file (str): Path of ``refs(<split_by>).p``.
        split (str): E.g. ``'train'``, ``'val'``, ``'testA'``.

    Returns:
        list[dict]: One per image that has a ref in the split:
        ``file_name, img_id, height, width`` and ``refs``, a list of
        ``dict(ref_id, ann_id, segmentation, sent_ids, sentences)``. Images
        and refs are in the order in which the split file names them.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is broken, the split does not exist (the message
            lists those that do), or refs are at fault (the message lists
            them): no annotation, no image, no sentence, an empty mask.
    """
    for path, what in ((ann_file, 'instances (COCO annotations)'),
                       (split_file, 'refs (expressions and splits)')):
        if not osp.isfile(path):
            raise FileNotFoundError(
                f'{what} file {path} does not exist: check data_root, '
                'ann_file and split_file')
    instances = load_json(ann_file)
    if not isinstance(instances, dict) or not all(
            isinstance(instances.get(key), list)
            for key in ('images', 'annotations')):
        raise ValueError(f'{ann_file} is not in COCO format: it needs a dict '
                         'with the lists "images" and "annotations"')
    refs = load_plain_pickle(split_file)
    if not isinstance(refs, list) or not all(
            isinstance(ref, dict) for ref in refs):
        raise ValueError(f'{split_file} does not hold a list of refs (dicts)')

    splits = Counter(ref.get('split') for ref in refs)
    if split not in splits:
        known = ', '.join(f'{k} ({n} refs)' for k, n in splits.items())
        raise ValueError(f'{split_file} has no split {split!r}; it has '
                         f'{known or "no refs at all"}')

    images_by_id = _by_id(instances['images'], f'images of {ann_file}')
    anns_by_id = _by_id(instances['annotations'], f'annotations of {ann_file}')
    images: Dict[Any, dict] = {}
    faults = []
    for ref in refs:
        if ref.get('split') != split:
            continue
        try:
            record = _ref_record(ref, anns_by_id, images_by_id)
        except (TypeError, ValueError) as error:
            faults.append(f'ref {ref.get("ref_id")}: {error}')
            continue
        image = images_by_id[ref['image_id']]
        images.setdefault(
            ref['image_id'],
            dict(
                file_name=image['file_name'],
                img_id=image['id'],
                height=image['height'],
                width=image['width'],
                refs=[]))['refs'].append(record)
    raise_faults(faults, f'{split_file}, split {split!r}, with {ann_file}')
    return list(images.values())


def raise_faults(faults: List[str], where: str) -> None:
    """Raise one ValueError that lists what is wrong, if anything is."""
    if not faults:
        return
    listed = '\n  '.join(faults[:_MAX_LISTED])
    more = len(faults) - _MAX_LISTED
    raise ValueError(
        f'{len(faults)} fault(s) in {where}:\n  {listed}' +
        (f'\n  ... and {more} more' if more > 0 else '') +
        '\nCorrect these entries, or remove them from the annotation files.')


def _by_id(entries: List[dict], where: str) -> Dict[Any, dict]:
    by_id = {}
    for entry in entries:
        number = entry.get('id') if isinstance(entry, dict) else None
        if not isinstance(number, (int, str)):
            raise ValueError(f'{where}: {str(entry)[:60]} is no dict with an '
                             'id')
        if number in by_id:
            raise ValueError(f'{where}: two have the id {number!r}; give each '
                             'its own')
        by_id[number] = entry
    return by_id


def _ref_record(ref: dict, anns_by_id: dict, images_by_id: dict) -> dict:
    """The part of a ref that is needed later, verified."""
    missing = {'ref_id', 'ann_id', 'image_id', 'sentences'} - ref.keys()
    if missing:
        raise ValueError(f'it has no {", ".join(sorted(missing))}')
    image = images_by_id.get(ref['image_id'])
    if image is None:
        raise ValueError(f'its image_id {ref["image_id"]!r} does not exist')
    ann = anns_by_id.get(ref['ann_id'])
    if ann is None:
        raise ValueError(f'its ann_id {ref["ann_id"]!r} does not exist')
    if ann.get('image_id') != ref['image_id']:
        raise ValueError(
            f'its ann_id {ref["ann_id"]} lies in image '
            f'{ann.get("image_id")}, not in {ref["image_id"]}')
    for key in ('height', 'width'):
        if not isinstance(image.get(key), int) or image[key] < 1:
            raise ValueError(f'its image {ref["image_id"]!r} has {key} '
                             f'{image.get(key)!r}, not a positive integer')
    _check_file_name(image.get('file_name'))
    if not ref['sentences']:
        raise ValueError('it has no sentence')
    for sentence in ref['sentences']:
        if not isinstance(sentence, dict) or 'sent_id' not in sentence or (
                not isinstance(sentence.get('sent'), str)):
            raise ValueError(f'its sentence {str(sentence)[:60]} is no dict '
                             'with sent_id and the string sent')
    try:
        rle = encode_mask(
            ann.get('segmentation', []), image['height'], image['width'])
    except Exception as error:  # pycocotools raises whatever comes
        raise ValueError(
            f'the mask of its ann_id {ref["ann_id"]} cannot be read: '
            f'{error}') from error
    if coco_mask.area(rle) == 0:
        raise ValueError(f'the mask of its ann_id {ref["ann_id"]} is empty')
    return dict(
        ref_id=ref['ref_id'],
        ann_id=ref['ann_id'],
        segmentation=ann['segmentation'],
        sent_ids=[s['sent_id'] for s in ref['sentences']],
        sentences=[s['sent'] for s in ref['sentences']])


def _check_file_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f'its image has file_name {name!r}')
    if osp.isabs(name) or '..' in name.replace('\\', '/').split('/'):
        raise ValueError(
            f'the file_name {name!r} of its image leaves the image folder')
