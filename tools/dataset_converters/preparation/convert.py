# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Writes a dataset in another form, or divided into train and val."""
import hashlib
import os
import os.path as osp
from functools import partial
from itertools import chain, count

import cv2

from cris.datasets.headers import check_headers, image_content
from cris.datasets.records import raise_faults
from cris.io.images import decode_image
from cris.io.parquet import require_pyarrow

from .check import Counts, count_splits
from .known_sets import FORMS
from .locate import Located
from .writers import WRITERS, Splits, check_new_folder


def convert(located: Located, dst: str, form: str,
            with_images: bool = True, shards: int = 1,
            shuffle: bool = False) -> Counts:
    """Write a dataset in a form of ``known_sets.FORMS``.

    These are kept: file names of images, sentences, ids of refs and
    sentences, ids of images and annotations where they are single, splits,
    categories, and masks pixel for pixel. Several objects of one ref become
    one mask.

    Returns:
        dict: Numbers of refs, sentences and images by split.

    Raises:
        FileExistsError: If the folder is neither new nor empty.
        FileNotFoundError: If files of the source are missing.
        ValueError: If an entry is faulty, or cannot be expressed.
        ImportError: If pyarrow is needed and missing.
    """
    check_new_folder(dst)
    if form == 'parquet':
        require_pyarrow()
    images = located.read_strictly(with_images)
    return _write(images, located, dst, form, with_images, shards, shuffle)


def split_dataset(located: Located, dst: str, val_fraction: float,
                  seed: int = 0, with_images: bool = False) -> Counts:
    """Write a dataset in the same form, divided into train and val by image.

    If there are several splits, train is divided and the others are kept.
    Whether an image is in val depends on its name and the seed: further images
    move few others. Returns and raises as :func:`convert`; ValueError also if
    the fraction or the splits do not allow it.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f'the fraction for val is {val_fraction}; it must be '
                         'between 0 and 1')
    check_new_folder(dst)
    images = located.read_strictly(with_images)
    # What is inside parquet files cannot be pointed to.
    with_images = with_images or any('picture' in image for image in images)
    known = list(count_splits(images))
    source = known[0] if len(known) == 1 else 'train'
    if source not in known or (len(known) > 1 and 'val' in known):
        raise ValueError(
            f'{located.source} has the splits {", ".join(known)}. Only a '
            'single split can be divided, or train if there is no val.')
    refs = [(image['file_name'], ref) for image in images
            for ref in image['refs'] if ref['split'] == source]
    names = sorted({name for name, _ in refs}, key=lambda name: hashlib.sha256(
        f'{seed} {name}'.encode()).digest())
    if len(names) < 2:
        raise ValueError(f'{names[0]} is the only image of {source}; there '
                         'must be two')
    number = min(max(1, round(val_fraction * len(names))), len(names) - 1)
    val = set(names[:number])
    for name, ref in refs:
        ref['split'] = 'val' if name in val else 'train'
    form = located.info.reader
    return _write(images, located, dst, form if form in FORMS else 'jsonl',
                  with_images)


def _write(images: list[dict], located: Located, dst: str, form: str,
           with_images: bool, shards: int = 1,
           shuffle: bool = False) -> Counts:
    counts = count_splits(images)
    splits: Splits = {split: [] for split in counts}
    for image in images:
        for ref in image['refs']:
            splits[ref['split']].append((image, ref))
    for split in splits:
        if form != 'refer' and (not split or split != osp.basename(split)
                                or split[0] == '.'):
            raise ValueError(
                f'the split {split!r} cannot be part of a file name')
    refs = [ref for _, ref in chain(*splits.values())]
    if form in ('coco', 'official-json'):
        raise_faults([
            f'ref {ref["ref_id"]}: it has no target, which the form {form} '
            'cannot express; choose refer or jsonl'
            for ref in refs if ref['segmentation'] is None], 'the conversion')
    ignored = sum('ignore' in ref for ref in refs)
    if ignored and form not in ('jsonl', 'parquet'):
        print(f'note: the regions to ignore of {ignored} refs are left out; '
              'only jsonl and parquet have them')
    _make_ids_unique(images, refs)
    os.makedirs(dst, exist_ok=True)
    read = partial(_picture, located, _of_another_size(images, located))
    if form == 'parquet':
        from .parquet import write_shards
        for split, rows in splits.items():
            write_shards(rows, dst, split, shards,
                         read if with_images else None, shuffle)
        return counts
    if with_images:
        for image in {i['file_name']: i for i in images}.values():
            to = osp.join(dst, 'images', image['file_name'])
            os.makedirs(osp.dirname(to), exist_ok=True)
            with open(to, 'wb') as file:
                file.write(read(image))
    WRITERS[form](splits, dst)
    return counts


def _of_another_size(images: list[dict], located: Located) -> set[str]:
    """Names of the pictures that are to be resized."""
    if located.size_mismatch == 'error':
        return set()
    return {fault.where for fault in check_headers(images, located.img_folder)
            if fault.kind == 'image-size'}


def _picture(located: Located, resized: set[str], image: dict) -> bytes:
    """The content of an image's file, of the annotated size."""
    name = image['file_name']
    content = image_content(image, located.img_folder)
    if name not in resized:
        return content
    picture = cv2.resize(
        decode_image(content, name), (image['width'], image['height']),
        interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(osp.splitext(name)[1], picture,
                        [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()


def _make_ids_unique(images: list[dict], refs: list[dict]) -> None:
    """Renumber ids that are only unique within a split."""
    names = {image['file_name'] for image in images}
    ids = {(image['img_id'], image['file_name']) for image in images}
    if not len({i for i, _ in ids}) == len(names) == len(ids) or not all(
            isinstance(i, int) for i, _ in ids):
        numbers = {name: i for i, name in enumerate(sorted(names))}
        for image in images:
            image['img_id'] = numbers[image['file_name']]
    if len({ref['ref_id'] for ref in refs}) < len(refs):
        for i, ref in enumerate(refs):
            ref['ref_id'] = i
    sentences = [i for ref in refs for i in ref['sent_ids']]
    if len(set(map(repr, sentences))) < len(sentences):
        numbers = count()
        for ref in refs:
            ref['sent_ids'] = [next(numbers) for _ in ref['sent_ids']]
