# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Time and memory of indexing a set of RefCOCO's true size.

The set is generated: RefCOCO's numbers of images, annotations, refs and
sentences in every split, polygons of 40 points, and one grey picture that all
images are links to. Every figure is measured in a process of its own.

Example:
    python tools/analysis_tools/benchmark_index.py work_dirs/true_size
"""
import argparse
import json
import os
import os.path as osp
import pickle
import subprocess
import sys
import time

import numpy as np

# refs, sentences, images of RefCOCO (unc)
SPLITS = {
    'train': (42404, 120624, 16994),
    'val': (3811, 10834, 1500),
    'testA': (1975, 5657, 750),
    'testB': (1810, 5095, 750)
}
ANNOTATIONS = 196_771
POINTS = 40
HEIGHT, WIDTH = 480, 640
WORDS = ('left right man woman red blue shirt standing behind the table with '
         'a hat second from top corner dog pizza').split()


def generate(root: str, share: float = 1, seed: int = 0) -> None:
    """Write the set.

    Args:
        root (str): Folder to write to.
        share (float): Of RefCOCO's numbers, for quick tests.
        seed (int): Of the random polygons and sentences.
    """
    rng = np.random.default_rng(seed)
    sizes = {
        split: [max(1, round(n * share)) for n in numbers]
        for split, numbers in SPLITS.items()
    }
    num_images = sum(n for _, _, n in sizes.values())
    num_refs = sum(n for n, _, _ in sizes.values())
    num_anns = max(num_refs, round(ANNOTATIONS * share))
    os.makedirs(osp.join(root, 'train2014'), exist_ok=True)
    images = [
        dict(
            id=i + 1,
            file_name=f'COCO_train2014_{i + 1:012d}.jpg',
            height=HEIGHT,
            width=WIDTH) for i in range(num_images)
    ]
    _write_pictures(osp.join(root, 'train2014'), images)
    angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    outline = np.stack([np.cos(angles), np.sin(angles)], -1)
    centres = rng.uniform([120, 120], [WIDTH - 120, HEIGHT - 120],
                          (num_anns, 1, 2))
    radii = rng.uniform(20, 110, (num_anns, 1, 1)) * rng.uniform(
        .6, 1, (num_anns, POINTS, 1))
    polygons = np.round(centres + radii * outline, 2).reshape(num_anns, -1)
    # The annotations of refs come first, by split; the others anywhere.
    owner, refs, sentence_id, first_image = [], [], 0, 0
    for split, (n_refs, n_sentences, n_images) in sizes.items():
        for i in range(n_refs):
            image = images[first_image + i % n_images]
            count = n_sentences // n_refs + (i < n_sentences % n_refs)
            sentences = [
                ' '.join(rng.choice(WORDS, 1 + j % 4)) for j in range(count)
            ]
            ids = list(range(sentence_id, sentence_id + count))
            sentence_id += count
            refs.append(
                dict(
                    ref_id=len(refs),
                    ann_id=len(owner) + 1,
                    image_id=image['id'],
                    category_id=1,
                    split=split,
                    file_name=image['file_name'],
                    sent_ids=ids,
                    sentences=[
                        dict(sent_id=k, sent=s, raw=s, tokens=s.split())
                        for k, s in zip(ids, sentences, strict=True)
                    ]))
            owner.append(image['id'])
        first_image += n_images
    owner += rng.integers(1, num_images + 1, num_anns - len(owner)).tolist()
    annotations = [
        dict(
            id=i + 1,
            image_id=image_id,
            category_id=1,
            iscrowd=0,
            area=1.0,
            bbox=[0, 0, 1, 1],
            segmentation=[polygon.tolist()])
        for i, (image_id, polygon) in enumerate(
            zip(owner, polygons, strict=True))
    ]
    with open(osp.join(root, 'instances.json'), 'w') as file:
        # Not json.dump, which is slow.
        file.write(
            json.dumps(
                dict(
                    images=images,
                    annotations=annotations,
                    categories=[dict(id=1, name='thing')])))
    with open(osp.join(root, 'refs(unc).p'), 'wb') as file:
        pickle.dump(refs, file, protocol=2)


def _write_pictures(folder: str, images: list) -> None:
    import cv2
    first = osp.join(folder, images[0]['file_name'])
    cv2.imwrite(first, np.full((HEIGHT, WIDTH, 3), 127, np.uint8))
    for image in images[1:]:
        path = osp.join(folder, image['file_name'])
        if not osp.exists(path):
            os.link(first, path)


def build(root: str, split: str = 'train'):
    """The data set as a config has it; returns it and the seconds."""
    import cris  # noqa: F401  what imports take is not counted
    from cris.datasets import RefCOCODataset
    start = time.perf_counter()
    dataset = RefCOCODataset(
        data_root=root, split=split, data_prefix=dict(img_path='train2014'))
    return dataset, time.perf_counter() - start


def measure_index(root: str) -> None:
    """Print seconds per split and the peak memory before and after."""
    from measuring import peak_bytes

    import cris  # noqa: F401
    figures = dict(imports_gib=round(peak_bytes('cpu') / 2**30, 3))
    for split in SPLITS:
        dataset, figures[f'{split}_s'] = build(root, split)
        figures[f'{split}_samples'] = len(dataset)
    figures['peak_gib'] = round(peak_bytes('cpu') / 2**30, 3)
    print(json.dumps(figures))


def measure_workers(root: str, workers: int = 4) -> None:
    """Print the memory that each worker of a loader adds, in MiB.

    That is its unique set size after it has read all its samples: what is
    shared with the main process costs nothing.
    """
    import torch
    from torch.utils.data import DataLoader
    dataset, _ = build(root)

    class Records(torch.utils.data.Dataset):
        """Records without decoding, so that all are read soon."""

        def __len__(self):
            return len(dataset)

        def __getitem__(self, idx):
            record = dataset.get_data_info(idx)
            # Of every 11th batch: the kernel takes milliseconds for it.
            size = _unique_mib() if idx % 704 == 0 else None
            return len(record['refs']), os.getpid(), size

    seen = {}
    for batch in DataLoader(
            Records(), 64, num_workers=workers, collate_fn=list):
        for _, pid, size in batch:
            if size is not None:
                seen.setdefault(pid, []).append(size)
    print(
        json.dumps(
            dict(
                workers=len(seen),
                data_mib=round(dataset.data_bytes.nbytes / 2**20, 1),
                first_mib=[round(sizes[0], 1) for sizes in seen.values()],
                last_mib=[round(sizes[-1], 1) for sizes in seen.values()])))


def _unique_mib() -> float:
    # Of Linux alone.
    with open('/proc/self/smaps_rollup') as file:
        fields = dict(
            line.split(':') for line in file if 'kB' in line)
    return sum(
        int(fields[key].split()[0])
        for key in ('Private_Clean', 'Private_Dirty')) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('root', help='where the set is, or is written')
    parser.add_argument(
        '--measure', choices=['index', 'workers'],
        help='only this, in this process (default: all)')
    args = parser.parse_args()
    if args.measure:
        dict(
            index=measure_index,
            workers=measure_workers)[args.measure](args.root)
        return
    if not osp.isfile(osp.join(args.root, 'refs(unc).p')):
        generate(args.root)
    cache = osp.join(args.root, '.cris_cache')
    if osp.isdir(cache):
        for name in os.listdir(cache):
            os.unlink(osp.join(cache, name))
    for title, what in (('cold', 'index'), ('from the cache', 'index'),
                        ('private memory of workers', 'workers')):
        out = subprocess.run(
            [sys.executable, __file__, args.root, '--measure', what],
            check=True,
            capture_output=True,
            text=True).stdout.strip().splitlines()[-1]
        print(f'{title}: {out}')


if __name__ == '__main__':
    main()
