# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Time and memory of indexing a dataset as large as RefCOCO.

It is generated: RefCOCO's numbers of images, annotations, refs and sentences
in every split, outlines of 40 points, and one picture, as large a JPEG as a
photograph, to which all image files are links.
"""
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from mmseg.registry import DATASETS
from pyarrow import parquet

import cris  # noqa: F401  registers the datasets

from .measuring import in_own_process, peak_bytes, report

# refs, sentences, images of RefCOCO (unc)
SPLITS = dict(
    train=(42404, 120624, 16994), val=(3811, 10834, 1500),
    testA=(1975, 5657, 750), testB=(1810, 5095, 750))
ANNOTATIONS = 196_771
HEIGHT, WIDTH = 480, 640
WORDS = 'left right man woman red blue shirt standing behind table hat'.split()


def generate(root: Path, share: float = 1) -> None:
    """Write the dataset, or only a share of RefCOCO's numbers of all."""
    rng = np.random.default_rng(0)
    refs, num_images, ids = [], 0, itertools.count()
    for split, numbers in SPLITS.items():
        num_refs, num_sentences, new_images = (
            max(1, round(n * share)) for n in numbers)
        for i in range(num_refs):
            count = num_sentences // num_refs + (i < num_sentences % num_refs)
            sentences = []
            for words in rng.choice(WORDS, (count, 3)).tolist():
                text = ' '.join(words)
                sentences.append(dict(
                    sent_id=next(ids), sent=text, raw=text, tokens=words))
            refs.append(dict(
                ref_id=len(refs), ann_id=len(refs) + 1, category_id=1,
                image_id=num_images + i % new_images + 1, split=split,
                sent_ids=[s['sent_id'] for s in sentences],
                sentences=sentences))
        num_images += new_images
    # After the annotations of refs, further ones in any image.
    owners = [ref['image_id'] for ref in refs]
    further = max(0, round(ANNOTATIONS * share) - len(refs))
    owners += rng.integers(1, num_images + 1, further).tolist()
    polygons = _outlines(rng, len(owners))
    annotations = [
        dict(id=i, image_id=owner, category_id=1, iscrowd=0, area=1.0,
             bbox=[0, 0, 1, 1], segmentation=[polygon.ravel().tolist()])
        for i, (owner, polygon) in enumerate(
            zip(owners, polygons, strict=True), start=1)]
    images = [dict(id=i, file_name=f'COCO_train2014_{i:012d}.jpg',
                   height=HEIGHT, width=WIDTH)
              for i in range(1, num_images + 1)]
    folder = root / 'train2014'
    folder.mkdir(parents=True, exist_ok=True)
    first, *others = (folder / image['file_name'] for image in images)
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    cv2.imwrite(str(first), cv2.GaussianBlur(noise, (0, 0), 1))
    for path in others:
        if not path.exists():
            os.link(first, path)
    (root / 'instances.json').write_text(json.dumps(dict(
        images=images, annotations=annotations,
        categories=[dict(id=1, name='thing')])))
    (root / 'refs(unc).p').write_bytes(pickle.dumps(refs, protocol=2))


def _outlines(rng: np.random.Generator, count: int) -> np.ndarray:
    """Polygons of 40 points around centres, as those of objects."""
    shape = (count, 40, 1)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)[None, :, None]
    radii = rng.uniform(15, 150, (count, 1, 1)) * rng.uniform(0.6, 1, shape)
    centres = rng.uniform(0, [WIDTH, HEIGHT], (count, 1, 2))
    around = np.concatenate([np.cos(angles), np.sin(angles)], axis=2)
    return (centres + radii * around).clip(0, [WIDTH, HEIGHT]).round(2)


def as_parquet(root: Path) -> None:
    """The same as parquet files: in our own form and as jxu124/refcoco."""
    subprocess.run([
        sys.executable, Path(__file__).parents[2] / 'dataset_converters' /
        'prepare.py', 'convert', root, '--dataset', 'refcoco', '--to',
        'parquet', '--no-images', '--out', root / 'own'], check=True)
    refer = json.loads((root / 'instances.json').read_text())
    images, anns = ({entry['id']: entry for entry in refer[key]}
                    for key in ('images', 'annotations'))
    rows = [dict(
        {key: ref[key] for key in ('ref_id', 'ann_id', 'image_id', 'split',
                                   'sentences', 'sent_ids')},
        image_path=f'coco/train2014/{image["file_name"]}',
        raw_anns=json.dumps(anns[ref['ann_id']]),
        raw_image_info=json.dumps(image))
        for ref in pickle.loads((root / 'refs(unc).p').read_bytes())
        for image in (images[ref['image_id']], )]
    (root / 'hub' / 'data').mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows),
                        root / 'hub' / 'data' / 'train.parquet')


def measure(root: Path, name: str, dataset: dict = {}) -> dict:
    """Seconds and samples of each split, peak memory before and after."""
    row = {'index': name, 'after the imports, GiB': peak_bytes() / 2**30}
    for split in SPLITS:
        config = dict(type='RefCOCODataset', data_root=str(root), split=split,
                      data_prefix=dict(img_path=str(root / 'train2014')))
        start = time.perf_counter()
        built = DATASETS.build(dict(config, **dataset))
        row[f'{split}, s'] = time.perf_counter() - start
        row[f'{split}, samples'] = len(built)
    return {**row, 'peak memory, GiB': peak_bytes() / 2**30}


def main(args: Namespace) -> None:
    root = Path(args.index)
    if not (root / 'refs(unc).p').is_file():
        in_own_process(generate, root)
    if not (root / 'hub').is_dir():
        in_own_process(as_parquet, root)
    for folder in (root, root / 'own' / 'data', root / 'hub' / 'data'):
        shutil.rmtree(folder / '.cris_cache', ignore_errors=True)
    forms: dict[str, dict] = {'REFER': {}}
    for name, folder in (('own parquet', 'own'), ('Hub parquet', 'hub')):
        forms[name] = dict(type='ReferParquetDataset',
                           data_root=str(root / folder))
    rows = [in_own_process(measure, root, f'{name}, {state}', config)
            for name, config in forms.items()
            for state in ('cold', 'cached')]
    rows.append(in_own_process(
        measure, root, 'own parquet, on demand',
        dict(forms['own parquet'], on_demand=True)))
    report(args, index=rows)
