# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Every reader survives any bytes and any damaged annotation.

For hours instead of seconds: HYPOTHESIS_PROFILE=nightly pytest tests/fuzz
"""
import io
import json
import pickle

import cv2
import numpy as np
import pytest
import torch
from damage import NASTY_MASKS, damaged, damaged_or_any, with_nasty_values
from hostile import large_png
from hypothesis import strategies as st
from report.breakdown import by_area, choose_samples, worst_words
from report.page import scores_of
from safetensors.torch import save
from sandbox import examine
from torch import nn

from cris.datasets.masks import decode_mask, encode_mask, read_mask
from cris.datasets.readers.coco import read_coco
from cris.datasets.readers.jsonl import read_jsonl
from cris.datasets.readers.official_json import read_official_json
from cris.datasets.readers.refer import load_refer, read_refer
from cris.evaluation.results import read_results_file
from cris.io.checkpoints import read_checkpoint
from cris.io.files import read_bytes
from cris.io.images import decode_image, image_size

POLYGON = [5, 5, 30, 5, 30, 40, 5, 40]
RLE = dict(size=[48, 64], counts=[100, 50, 48 * 64 - 150])
COMPRESSED = encode_mask([POLYGON], 48, 64)['counts'].decode()
MASKS = [[POLYGON], RLE, dict(size=[48, 64], counts=COMPRESSED)]
IMAGE = np.tile(np.arange(64, dtype=np.uint8), (3, 48, 1)).transpose(1, 2, 0)
INSTANCES = dict(
    images=[dict(id=1, file_name='1.jpg', height=48, width=64)],
    annotations=[
        dict(id=i, image_id=1, category_id=1, segmentation=s)
        for i, s in enumerate(MASKS)
    ],
    categories=[dict(id=1, name='thing')])
REFS = [
    dict(
        ref_id=i,
        ann_id=i,
        image_id=1,
        split='train',
        sentences=[dict(sent_id=i, sent='the thing')]) for i in (0, 1, 2)
]
LINES = [
    dict(image='1.jpg', mask=mask, expressions=['the thing'], ref_id=i)
    for i, mask in enumerate(['1.png', None, *MASKS])
]
ENTRIES = [
    dict(img_name='1.jpg', segment_id=1, cat='thing',
         sentences=[dict(sent_id=0, sent='the thing')]),
    dict(img_name='1.jpg', mask_name='1.png', prompts=dict(a=['a thing']))
]
RESULTS = [
    dict(img_path='1.jpg', expression='the thing', height=48, width=64,
         intersection=3, union=4, pred_area=4, gt_area=3, iou=0.75, score=0.5,
         pred_rle=COMPRESSED, gt_rle=COMPRESSED, inclusive=True,
         empty_union=0.5)
]


def encoded(suffix):
    return cv2.imencode(suffix, IMAGE)[1].tobytes()


def dumped(value):
    return json.dumps(value, default=str).encode()


def annotations(valid, dump=dumped):
    """A valid file, and strategies that damage its values or its bytes."""
    return dump(valid), with_nasty_values(valid).map(dump) | damaged_or_any(
        dump(valid))


def endless():
    """Pickles of a list that holds itself, or twice a list that ..."""
    loop, doubled = [], []
    loop.append(loop)
    for _ in range(60):
        doubled = [doubled, doubled]
    return [
        pickle.dumps([dict(REFS[0], sentences=value)], 2)
        for value in (loop, doubled)]


def binary(valid):
    return valid, damaged_or_any(valid) | st.just(large_png(40_000))


def as_lines(entries):
    if not isinstance(entries, list):
        return dumped(entries)
    return b'\n'.join(map(dumped, entries))


@pytest.fixture
def folder(tmp_path):
    """With an image, its mask, and whole annotations."""
    (tmp_path / '1.jpg').write_bytes(encoded('.jpg'))
    cv2.imwrite(str(tmp_path / '1.png'), IMAGE[..., 0] // 32 * 32)
    (tmp_path / 'instances.json').write_bytes(dumped(INSTANCES))
    (tmp_path / 'refs.p').write_bytes(pickle.dumps(REFS, 2))
    return tmp_path


@pytest.mark.parametrize('protocol', [0, 2, 5])
def test_refs_pickle(folder, protocol):
    valid, contents = annotations(
        REFS, lambda refs: pickle.dumps(refs, protocol))
    examine(
        folder / 'damaged.p', valid,
        contents | st.sampled_from(endless()),
        lambda path: load_refer(
            str(folder / 'instances.json'), path, 'train'))


def test_grefs_json(folder):
    refs = [dict(ref, ann_id=ids) for ref, ids in zip(
        REFS, ([0, 1], [-1], [2]), strict=True)]
    examine(
        folder / 'damaged.json', *annotations(refs),
        lambda path: read_refer(
            str(folder / 'instances.json'), path, 'train'))


def test_instances(folder):
    valid, contents = annotations(INSTANCES)
    ann = dict(id=0, image_id=1, category_id=1)
    masks = st.sampled_from(NASTY_MASKS).map(lambda mask: dumped(
        dict(INSTANCES, annotations=[dict(ann, segmentation=mask)])))
    examine(
        folder / 'damaged.json', valid, contents | masks,
        lambda path: load_refer(path, str(folder / 'refs.p'), 'train'))


@pytest.mark.parametrize('key', [{}, dict(expressions=['the thing'])])
def test_coco(folder, key):
    anns = [dict(ann, **key) for ann in INSTANCES['annotations']]
    examine(
        folder / 'damaged.json', *annotations(dict(
            INSTANCES, annotations=anns)),
        lambda path: read_coco(path, str(folder), 'train'))


def test_jsonl(folder):
    valid, contents = annotations(LINES, as_lines)
    masks = st.sampled_from(NASTY_MASKS).map(
        lambda mask: as_lines([dict(LINES[0], mask=mask)]))
    examine(
        folder / 'damaged.jsonl', valid, contents | masks,
        lambda path: read_jsonl(path, str(folder), str(folder), 'train'))


def test_official_json(folder):
    examine(
        folder / 'damaged.json', *annotations(ENTRIES),
        lambda path: read_official_json(
            path, str(folder), str(folder), 'train'))


def test_results(folder):
    def read(path):
        records, conventions = read_results_file(path)
        scores_of(records, conventions)
        by_area(records)
        choose_samples(records, 1)
        worst_words(records)

    examine(folder / 'damaged.json', *annotations(RESULTS), read)


def test_rle(tmp_path):
    def read(path):
        decode_mask(dict(size=[48, 64], counts=read_bytes(path)), 48, 64)

    examine(
        tmp_path / 'damaged.txt', COMPRESSED.encode(),
        damaged(COMPRESSED.encode()) | st.binary(max_size=99), read)


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.bmp', '.tiff', '.webp'])
def test_image(tmp_path, suffix):
    def read(path):
        image_size(path)
        decode_image(read_bytes(path), path)

    examine(
        tmp_path / f'damaged{suffix}', *binary(encoded(suffix)), read)


def test_mask(tmp_path):
    examine(
        tmp_path / 'damaged.png', *binary(encoded('.png')),
        lambda path: read_mask(path, 48, 64))


def checkpoint(kind):
    file = io.BytesIO()
    if kind == 'safetensors':
        return save(dict(a=torch.ones(3)))
    if kind == 'TorchScript':
        torch.jit.save(
            torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3)), file)
    else:
        torch.save(
            dict(state_dict=nn.Linear(3, 2).state_dict(), meta=dict(epoch=1)),
            file,
            _use_new_zipfile_serialization=kind == 'zip')
    return file.getvalue()


@pytest.mark.parametrize('kind, suffix', [
    ('zip', '.pth'), ('legacy', '.pth'), ('TorchScript', '.pt'),
    ('safetensors', '.safetensors')])
def test_checkpoint(tmp_path, kind, suffix):
    examine(
        tmp_path / f'damaged{suffix}', *binary(checkpoint(kind)),
        read_checkpoint)
