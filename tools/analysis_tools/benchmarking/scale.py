# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""A million refs in parquet files: opening, workers, order and speed.

The set is generated: 250,000 images of 64 x 64 pixels with four refs each, in
64 files. The speed is that of 2,000 further images of 480 x 640 pixels and of
as many of 64 x 64, once in parquet files and once in a folder.
"""
import itertools
import multiprocessing
import re
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from cris.datasets import ReferParquetDataset, ShardBatchSampler
from cris.engine import load_config

from .measuring import in_own_process, report, time_parts

_TOOLS = Path(__file__).parents[2]
_CONFIG = str(_TOOLS.parent / 'configs' / '_base_' / 'datasets' /
              '{}.py')
_REFS = 4  # of an image
_BATCH = 8


def _rows(images: int, height: int, width: int) -> Iterator[tuple[dict, dict]]:
    sent_ids = itertools.count()
    for i, k in itertools.product(range(images), range(_REFS)):
        x, y = (i + 7 * k) % (width - 20), (i // 7) % (height - 20)
        image = dict(file_name=f'{i:08d}.jpg', img_id=i, height=height,
                     width=width)
        yield image, dict(
            ref_id=i * _REFS + k, ann_id=i * _REFS + k, category='thing',
            segmentation=[[x, y, x + 15, y, x + 15, y + 15, x, y + 15]],
            sent_ids=[next(sent_ids), next(sent_ids)],
            sentences=[f'thing {k} on the left', f'the number {i}'])


def generate(root: Path, images: int, size: tuple[int, int],
             shards: int) -> None:
    """Write the set as parquet, with a hundred different pictures."""
    sys.path.insert(0, str(_TOOLS / 'dataset_converters'))
    from preparation.parquet import write_shards
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (100, *size, 3)).astype(np.uint8)
    pictures = [cv2.imencode('.jpg', cv2.GaussianBlur(p, (7, 7), 3))[1]
                for p in noise]
    write_shards(_rows(images, *size), str(root), 'train', shards,
                 lambda image: pictures[image['img_id'] % 100].tobytes())


def loader(root: Path, form: str, workers: int, side: int = 416,
           **dataset: Any) -> dict:
    """Config of a training loader for a folder in a form."""
    cfg = load_config(_CONFIG.format(form), [f'image_size={side}'])
    init_default_scope('mmseg')
    cfg.train_dataloader.update(
        batch_size=_BATCH, num_workers=workers, persistent_workers=False)
    cfg.train_dataloader.dataset.update(data_root=str(root), **dataset)
    if 'batch_sampler' in cfg.train_dataloader:
        cfg.train_dataloader.batch_sampler.streams = workers or 1
    return cfg.train_dataloader


def measure_opening(root: Path) -> dict:
    before = _own_bytes()
    start = time.perf_counter()
    dataset = ReferParquetDataset(data_root=str(root), on_demand=True)
    seconds = time.perf_counter() - start
    return {'refs': len(dataset), 'seconds': seconds,
            'memory, MB': (_own_bytes() - before) / 1e6}


def _own_bytes(process: int | str = 'self') -> int:
    """Memory of a process that no other one shares (Linux)."""
    text = Path(f'/proc/{process}/smaps_rollup').read_text()
    return 1024 * sum(map(int, re.findall(r'Private_\w+: +(\d+)', text)))


def measure_workers(root: Path, workers: int, batches: int,
                    side: int) -> dict:
    """Memory of the workers' own while they load batches.

    It includes the batches that they make: 1.2 MB a sample at 416 pixels.
    """
    torch.set_num_threads(1)
    # A spawned process would spawn; mmengine's runner forks.
    multiprocessing.set_start_method('fork', force=True)
    loaded = Runner.build_dataloader(
        loader(root, 'parquet', workers, side), seed=0)
    iterator, peaks = iter(loaded), []
    for i in range(batches):
        next(iterator)
        if i % (batches // 10) == 0:
            peaks.append(max(_own_bytes(w.pid) for w in iterator._workers))
    return {'workers': workers, 'samples': batches * _BATCH,
            'pixels': side,
            'own memory of the largest, MB': max(peaks) / 1e6,
            'after a tenth of them, MB': peaks[1] / 1e6}


def measure_order(root: Path) -> list[dict]:
    """How far the order is from that of a complete shuffle.

    *Repeats*: samples whose image is in the batch already. *Correlation*: of
    the place in the files and the place in the epoch. *Row groups*: of a
    batch. *Reads*: of row groups by 8 workers in an epoch, per row group.
    """
    dataset = ReferParquetDataset(data_root=str(root), on_demand=True)
    sampler = DefaultSampler(dataset, seed=0)
    shards = ShardBatchSampler(sampler, _BATCH, drop_last=True, streams=8)
    shuffled = np.array(list(sampler))
    shuffled = shuffled[:len(shards) * _BATCH].reshape(-1, _BATCH)
    sizes = dataset.data_list.group_sizes()
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    rows = []
    for name, batches in (('ShardBatchSampler', np.array(list(shards))),
                          ('complete shuffle', shuffled)):
        images = np.sort(batches // _REFS)
        groups = group_of[batches]
        rows.append({
            'order': name,
            'repeats in a batch': float(np.mean(np.sum(
                np.diff(images) == 0, axis=1))),
            'correlation': float(np.corrcoef(
                batches.ravel(), np.arange(batches.size))[0, 1]),
            'row groups of a batch': float(np.mean([
                len(set(batch)) for batch in groups.tolist()])),
            'reads': sum(_reads(groups[i::8].ravel(), shards.window + 2)
                         for i in range(8)) / len(sizes)})
    return rows


def _reads(groups: np.ndarray, kept: int) -> int:
    """Row groups that a process reads which keeps the last few."""
    memory: dict[int, None] = {}
    reads = 0
    for group in groups.tolist():
        reads += group not in memory
        memory.pop(group, None)
        memory[group] = None
        if len(memory) > kept:
            del memory[next(iter(memory))]
    return reads


def measure_speed(parquet: Path, folder: Path, size: str) -> list[dict]:
    """CPU time of a sample, files in turn with the folder."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    sources = {
        'parquet': Runner.build_dataloader(
            loader(parquet, 'parquet', 0, on_demand=True), seed=0),
        'folder': Runner.build_dataloader(
            loader(folder, 'own_jsonl', 0), seed=0)}
    times: dict[str, list[float]] = {name: [] for name in sources}
    orders = {name: iter(source.batch_sampler)
              for name, source in sources.items()}
    for _ in range(12):
        for name, source in sources.items():
            times[name].append(sum(time_parts(
                source.dataset, np.array(next(orders[name]))).values()))
    medians = {name: float(np.median(t[2:])) for name, t in times.items()}
    return [{'pictures': size, 'from': name, 'ms of a sample': ms,
             'samples/s of a core': 1000 / ms,
             'to the folder': medians['folder'] / ms}
            for name, ms in medians.items()]


def main(args: Namespace) -> None:
    root = Path(args.scale)
    speed = []
    sets = [('million', 250_000, (64, 64), 64), ('64x64', 2000, (64, 64), 1),
            ('480x640', 2000, (480, 640), 1)]
    for name, images, size, shards in sets:
        if not (root / name).is_dir():
            in_own_process(generate, root / name, images, size, shards)
    for name in ('64x64', '480x640'):
        folder = root / f'{name}_folder'
        if not folder.is_dir():
            subprocess.run([
                sys.executable, _TOOLS / 'dataset_converters' / 'prepare.py',
                'convert', root / name, '--dataset', 'hub', '--to', 'jsonl',
                '--out', folder], check=True)
        speed += in_own_process(measure_speed, root / name, folder, name)
    million = root / 'million'
    report(args, opening=[in_own_process(measure_opening, million)],
           workers=[in_own_process(measure_workers, million, 8, 8000, side)
                    for side in (64, 416)],
           order=in_own_process(measure_order, million), speed=speed)
