# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""From one form of annotation files to another."""
import os
import os.path as osp
import shutil
from collections import defaultdict
from collections.abc import Sequence
from itertools import count

from cris.datasets.records import raise_faults
from cris.io.files import read_bytes

from .layouts import Located
from .writers import WRITERS


def convert(located: Located,
            dst: str,
            form: str,
            with_images: bool = True) -> dict[str, int]:
    """Write a data set in another form, images included.

    What is kept: file names of images, sentences, ids of refs and sentences,
    ids of images and annotations where they are single, splits, categories,
    and masks pixel for pixel. Several objects of one ref become one mask.

    Args:
        located (Located): Files of the data set.
        dst (str): Folder to write to; new or empty.
        form (str): 'refer', 'jsonl', 'coco' or 'official-json'.
        with_images (bool): Whether images are copied, too.

    Returns:
        dict[str, int]: Refs by split.

    Raises:
        FileExistsError: If the folder is not empty.
        FileNotFoundError: If files of the source are missing.
        ValueError: If an entry of the source is at fault, or the form cannot
            express one (refs without a target).
    """
    if osp.isdir(dst) and os.listdir(dst):
        raise FileExistsError(f'{dst} is not empty; choose a new folder')
    missing = [
        f for f in located.missing
        if with_images or located.args.get('img_folder') != f.where
    ]
    if missing:
        raise FileNotFoundError('\n'.join(map(str, missing)))
    images, faults = located.read()[:2]
    raise_faults(faults, located.args['ann_file'])
    if not images:
        raise ValueError(f'{located.args["ann_file"]} holds no refs')
    splits = _by_split(images)
    _make_ids_unique(splits)
    if form in ('coco', 'official-json'):
        _refuse_no_target(splits, form)
    os.makedirs(dst, exist_ok=True)
    if with_images:
        _copy_images(images, located.img_folder or '', osp.join(dst, 'images'))
    WRITERS[form](splits, dst)
    return {
        split: sum(len(image['refs']) for image in of_split)
        for split, of_split in splits.items()
    }


def _by_split(images: Sequence[dict]) -> dict[str, list[dict]]:
    splits: dict = defaultdict(list)
    for image in images:
        refs = defaultdict(list)
        for ref in image['refs']:
            refs[ref['split']].append(ref)
        for split, of_split in refs.items():
            splits[split].append(dict(image, refs=of_split))
    return dict(splits)


def _make_ids_unique(splits: dict[str, list[dict]]) -> None:
    """Number anew what is numbered by split in the source."""
    images = [image for of_split in splits.values() for image in of_split]
    refs = [ref for image in images for ref in image['refs']]
    files = {image['file_name'] for image in images}
    ids = {(image['img_id'], image['file_name']) for image in images}
    if len({i for i, _ in ids}) < len(files) or len(ids) > len(files) or (
            not all(isinstance(i, int) for i, _ in ids)):
        numbers = {name: i for i, name in enumerate(sorted(files))}
        for image in images:
            image['img_id'] = numbers[image['file_name']]
    if len({ref['ref_id'] for ref in refs}) < len(refs):
        for i, ref in enumerate(refs):
            ref['ref_id'] = i
    sentences = [i for ref in refs for i in ref['sent_ids']]
    if len(set(sentences)) < len(sentences):
        number = count()
        for ref in refs:
            ref['sent_ids'] = [next(number) for _ in ref['sent_ids']]


def _refuse_no_target(splits: dict[str, list[dict]], form: str) -> None:
    without = [
        f'ref {ref["ref_id"]}: it has no target, which the form {form} cannot '
        'express; choose refer or jsonl' for images in splits.values()
        for image in images for ref in image['refs']
        if ref['segmentation'] is None
    ]
    raise_faults(without, 'the conversion')


def _copy_images(images: Sequence[dict], src: str, dst: str) -> None:
    for image in images:
        to = osp.join(dst, image['file_name'])
        if osp.exists(to):
            continue
        os.makedirs(osp.dirname(to), exist_ok=True)
        if 'img_path' in image:
            with open(to, 'wb') as file:
                file.write(read_bytes(image['img_path']))
            continue
        # No links: what is done to the copy must not reach the original.
        shutil.copyfile(osp.join(src, image['file_name']), to)
