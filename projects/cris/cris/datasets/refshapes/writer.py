# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""RefShapes: a synthetic dataset for referring image segmentation.

Pictures of coloured shapes on muted textures, written in the REFER layout
(``instances.json`` in COCO format and ``refs(unc).p``) and read like RefCOCO.
On request ``grefs(unc).json``, which is read like gRefCOCO, is written, too.
See scenes.py for the pictures, expressions.py and generalized.py for the
sentences.
"""
import json
import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .expressions import make_refs
from .generalized import make_generalized_refs
from .scenes import SHAPES, Scene, annotate, paint_scene, sample_scene

SPLITS = ('train', 'val', 'testA', 'testB')
MAX_IMAGES = 1_000_000
ANNOTATION_FILES = ('instances.json', 'refs(unc).p')
GENERALIZED_FILE = 'grefs(unc).json'


def sample_picture(seed: int, split: str, number: int) -> tuple[
        Scene, np.ndarray, np.random.Generator]:
    """Make picture ``number`` (from 0) of a split, whatever the others are.

    Returns:
        The scene, its picture (H, W, 3) in BGR, and the random generator to
        go on with for the sentences.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    scene = sample_scene(rng)
    return scene, paint_scene(scene, rng), rng


def write_refshapes(
        out_dir: str | os.PathLike[str], num_train: int, num_eval: int = 200,
        seed: int = 0,
        progress: Callable[[list[Any]], Iterable[Any]] = iter,
        generalized: bool = False,
) -> dict[str, dict[str, int]]:
    """Write a RefShapes dataset in the REFER layout.

    The annotations are written last: a folder without them is incomplete and
    may be written again.

    Args:
        out_dir: Directory to write to; made if missing.
        num_train: Number of pictures in train.
        num_eval: Number of pictures in each of val, testA and testB.
        seed: At least 0. The same seed gives the same bytes, and a picture
            does not depend on the numbers of pictures.
        progress: Wraps the list of pictures to do, e.g. ``tqdm.tqdm``.
        generalized: Also write expressions for no, one or several objects.
            The other files do not change.

    Returns:
        For each split the numbers of 'images', 'refs' and 'sentences'; if
        generalized, those of ``grefs(unc).json``.

    Raises:
        ValueError: If a number is out of range.
        FileExistsError: If the directory has annotations already.
    """
    out_dir = Path(out_dir)
    if not all(1 <= count <= MAX_IMAGES for count in (num_train, num_eval)):
        raise ValueError(
            f'num_train ({num_train}) and num_eval ({num_eval}) must be '
            f'from 1 to {MAX_IMAGES}')
    if seed < 0:
        raise ValueError(f'seed must be at least 0, but is {seed}')
    for name in (*ANNOTATION_FILES, GENERALIZED_FILE):
        if (out_dir / name).exists():
            raise FileExistsError(f'{out_dir / name} exists already: remove '
                                  f'it or choose another directory')
    (out_dir / 'images').mkdir(parents=True, exist_ok=True)
    jobs = [(split, i) for split in SPLITS
            for i in range(num_train if split == 'train' else num_eval)]
    images, annotations, refs, generalized_refs = [], [], [], []
    summary = {split: dict.fromkeys(('images', 'refs', 'sentences'), 0)
               for split in SPLITS}
    for split, number in progress(jobs):
        scene, picture, rng = sample_picture(seed, split, number)
        height, width = scene.labels.shape
        # Ids by split, so that they do not depend on the other sizes.
        image = {'id': (SPLITS.index(split) + 1) * MAX_IMAGES + number,
                 'file_name': f'{split}_{number:06d}.jpg',
                 'height': height, 'width': width}
        # Not cv2.imwrite, which fails silently.
        (out_dir / 'images' / image['file_name']).write_bytes(cv2.imencode(
            '.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
        images.append(image)
        annotations += (found := annotate(scene, image['id']))
        refs += (of_image := make_refs(found, image, split, rng))
        if generalized:
            # A generator of its own: the other files stay as they are.
            rng = np.random.default_rng(
                [seed, SPLITS.index(split), number, 1])
            of_image = make_generalized_refs(
                found, image, of_image, split, rng)
            generalized_refs += of_image
        summary[split]['images'] += 1
        summary[split]['refs'] += len(of_image)
        summary[split]['sentences'] += sum(
            len(ref['sentences']) for ref in of_image)
    instances = {
        'info': {'description': 'RefShapes', 'seed': seed},
        'images': images, 'annotations': annotations,
        'categories': [{'id': i + 1, 'name': shape, 'supercategory': 'shape'}
                       for i, shape in enumerate(SHAPES)]}
    contents = dict(zip(ANNOTATION_FILES, (
        json.dumps(instances, separators=(',', ':')).encode(),
        pickle.dumps(refs, protocol=2)), strict=True))
    if generalized:
        contents[GENERALIZED_FILE] = json.dumps(
            generalized_refs, separators=(',', ':')).encode()
    # Each file appears only when it is complete.
    for name, content in contents.items():
        part = out_dir / f'{name}.part'
        part.write_bytes(content)
        part.replace(out_dir / name)
    return summary
