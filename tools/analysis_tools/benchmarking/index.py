# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Time and memory of indexing a dataset as large as RefCOCO.

It is generated: RefCOCO's numbers of images, annotations, refs and sentences
in every split, polygons of 40 points, and one grey picture to which all image
files are links.
"""
import argparse
import json
import os
import os.path as osp
import pickle
import shutil
import time

import cv2
import numpy as np
import torch

from cris.datasets import RefCOCODataset

from .measuring import in_own_process, peak_bytes, print_table, write_json

# refs, sentences, images of RefCOCO (unc)
SPLITS = dict(
    train=(42404, 120624, 16994), val=(3811, 10834, 1500),
    testA=(1975, 5657, 750), testB=(1810, 5095, 750))
ANNOTATIONS = 196_771
POINTS = 40
HEIGHT, WIDTH = 480, 640
WORDS = ('left right man woman red blue shirt standing behind the table with '
         'a hat second from top corner dog pizza').split()


def generate(root: str, share: float = 1) -> None:
    """Write the dataset, or a smaller one for a quick test.

    Args:
        root (str): Folder to write to.
        share (float): Fraction of RefCOCO's numbers. Defaults to 1.
    """
    rng = np.random.default_rng(0)
    images, refs, sentence_id = [], [], 0
    for split, numbers in SPLITS.items():
        num_refs, num_sentences, num_images = (
            max(1, round(n * share)) for n in numbers)
        image_ids = [len(images) + i + 1 for i in range(num_images)]
        images += [dict(id=i, file_name=f'COCO_train2014_{i:012d}.jpg',
                        height=HEIGHT, width=WIDTH) for i in image_ids]
        for i in range(num_refs):
            count = num_sentences // num_refs + (i < num_sentences % num_refs)
            ids = list(range(sentence_id, sentence_id + count))
            sentence_id += count
            words = [rng.choice(WORDS, 1 + j % 4).tolist()
                     for j in range(count)]
            refs.append(dict(
                ref_id=len(refs), ann_id=len(refs) + 1,
                image_id=image_ids[i % num_images], category_id=1, split=split,
                sent_ids=ids,
                sentences=[
                    dict(sent_id=k, sent=' '.join(w), raw=' '.join(w),
                         tokens=w) for k, w in zip(ids, words, strict=True)]))
    # After the annotations of refs, further ones in any image.
    owners = [ref['image_id'] for ref in refs]
    further = max(0, round(ANNOTATIONS * share) - len(refs))
    owners += rng.integers(1, len(images) + 1, further).tolist()
    polygons = _polygons(rng, len(owners))
    annotations = [
        dict(id=i + 1, image_id=owner, category_id=1, iscrowd=0, area=1.0,
             bbox=[0, 0, 1, 1], segmentation=[polygons[i]])
        for i, owner in enumerate(owners)]
    _write_images(osp.join(root, 'train2014'), images)
    with open(osp.join(root, 'instances.json'), 'w') as file:
        file.write(json.dumps(dict(  # faster than json.dump
            images=images, annotations=annotations,
            categories=[dict(id=1, name='thing')])))
    with open(osp.join(root, 'refs(unc).p'), 'wb') as file:
        pickle.dump(refs, file, protocol=2)


def _write_images(folder: str, images: list[dict]) -> None:
    os.makedirs(folder, exist_ok=True)
    first, *others = (osp.join(folder, i['file_name']) for i in images)
    cv2.imwrite(first, np.full((HEIGHT, WIDTH, 3), 127, np.uint8))
    for path in others:
        if not osp.exists(path):
            os.link(first, path)


def _polygons(rng: np.random.Generator, count: int) -> list[list[float]]:
    angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    outline = np.stack([np.cos(angles), np.sin(angles)], -1)
    centres = rng.uniform([120, 120], [WIDTH - 120, HEIGHT - 120],
                          (count, 1, 2))
    radii = rng.uniform(20, 110, (count, 1, 1)) * rng.uniform(
        .6, 1, (count, POINTS, 1))
    return np.round(centres + radii * outline, 2).reshape(count, -1).tolist()


def _build(root: str, split: str) -> RefCOCODataset:
    return RefCOCODataset(
        data_root=root, split=split, data_prefix=dict(img_path='train2014'))


def measure_index(root: str) -> dict:
    """Seconds and samples of each split, peak memory before and after."""
    figures = dict(imports_gib=peak_bytes('cpu') / 2**30)
    for split in SPLITS:
        start = time.perf_counter()
        dataset = _build(root, split)
        figures[f'{split}_s'] = time.perf_counter() - start
        figures[f'{split}_samples'] = len(dataset)
    return dict(figures, peak_gib=peak_bytes('cpu') / 2**30)


class _Records(torch.utils.data.Dataset):
    """Records without images, and now and then the memory of the worker."""

    def __init__(self, dataset: RefCOCODataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, idx):
        record = self.dataset.get_data_info(idx)
        # Every 11th batch: the kernel takes milliseconds for it.
        size = _unique_mib() if idx % 704 == 0 else None
        return len(record['refs']), os.getpid(), size


def measure_workers(root: str, workers: int = 4) -> dict:
    """Memory that each worker of a loader adds, in MiB.

    That is its unique set size, first and after all its samples: what it
    shares with the main process costs nothing.
    """
    dataset = _build(root, 'train')
    seen: dict[int, list[float]] = {}
    for batch in torch.utils.data.DataLoader(
            _Records(dataset), 64, num_workers=workers, collate_fn=list):
        for _, pid, size in batch:
            if size is not None:
                seen.setdefault(pid, []).append(size)
    return dict(
        workers=len(seen),
        data_mib=dataset.data_bytes.nbytes / 2**20,
        first_mib=[sizes[0] for sizes in seen.values()],
        last_mib=[sizes[-1] for sizes in seen.values()])


def _unique_mib() -> float:
    with open('/proc/self/smaps_rollup') as file:  # Linux only
        fields = dict(line.split(':') for line in file if 'kB' in line)
    return sum(
        int(fields[key].split()[0])
        for key in ('Private_Clean', 'Private_Dirty')) / 1024


def main(args: argparse.Namespace) -> None:
    root = args.index
    if not osp.isfile(osp.join(root, 'refs(unc).p')):
        generate(root)
    shutil.rmtree(osp.join(root, '.cris_cache'), ignore_errors=True)
    figures = {name: in_own_process(measure_index, root)
               for name in ('cold', 'cached')}
    workers = in_own_process(measure_workers, root)
    print_table(
        ['index', *(f'{split}, s' for split in SPLITS), 'peak memory, GiB',
         'after the imports, GiB'],
        [[name, *(f'{f[f"{split}_s"]:.1f}' for split in SPLITS),
          f'{f["peak_gib"]:.2f}', f'{f["imports_gib"]:.2f}']
         for name, f in figures.items()])
    first, last = (', '.join(f'{size:.0f}' for size in workers[key])
                   for key in ('first_mib', 'last_mib'))
    print(f'\n{workers["workers"]} workers share {workers["data_mib"]:.1f} '
          f'MiB of records; own memory of each, MiB: {last} (at first '
          f'{first})')
    write_json(args.json, **figures, workers=workers)
