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
from damage import damaged, damaged_or_any, with_nasty_values
from hostile import MASKS, large_png
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
# The sizes agree with hostile.MASKS.
RLE = dict(size=[40, 60], counts=[100, 50, 40 * 60 - 150])
COMPRESSED = encode_mask([POLYGON], 40, 60)['counts'].decode()
GOOD_MASKS = [[POLYGON], RLE, dict(size=[40, 60], counts=COMPRESSED)]
IMAGE = np.tile(np.arange(60, dtype=np.uint8), (3, 40, 1)).transpose(1, 2, 0)
INSTANCES = dict(
    images=[dict(id=1, file_name='1.jpg', height=40, width=60)],
    annotations=[dict(id=i, image_id=1, category_id=1, segmentation=mask)
                 for i, mask in enumerate(GOOD_MASKS)],
    categories=[dict(id=1, name='thing')])
REFS = [
    dict(ref_id=i, ann_id=i, image_id=1, split='train',
         sentences=[dict(sent_id=i, sent='the thing')]) for i in range(3)]
LINES = [dict(image='1.jpg', mask=mask, expressions=['the thing'], ref_id=i)
         for i, mask in enumerate(['1.png', None, *GOOD_MASKS])]
ENTRIES = [
    dict(img_name='1.jpg', segment_id=1, cat='thing',
         sentences=[dict(sent_id=0, sent='the thing')]),
    dict(img_name='1.jpg', mask_name='1.png', prompts=dict(a=['a thing']))]
RESULTS = [
    dict(img_path='1.jpg', expression='the thing', height=40, width=60,
         intersection=3, union=4, pred_area=4, gt_area=3, iou=0.75, score=0.5,
         pred_rle=COMPRESSED, gt_rle=COMPRESSED, inclusive=True,
         empty_union=0.5)]


def encoded(suffix):
    return cv2.imencode(suffix, IMAGE)[1].tobytes()


def dumped(value):
    return json.dumps(value, default=str).encode()


def annotations(valid, dump=dumped):
    """A valid file, and strategies that damage its values or its bytes."""
    return dump(valid), with_nasty_values(valid).map(dump) | damaged_or_any(
        dump(valid))


def binary(valid):
    return valid, damaged_or_any(valid) | st.just(large_png(40_000))


def as_lines(entries):
    if not isinstance(entries, list):
        return dumped(entries)
    return b'\n'.join(map(dumped, entries))


def with_masks(valid, dump, place):
    """Annotations, with every nasty mask at one place, too."""
    content, damages = annotations(valid, dump)
    masks = st.sampled_from(MASKS).map(lambda mask: dump(place(mask)))
    return content, damages | masks


def refs(protocol):
    """A pickle; also of a list that holds itself, or twice a list that ..."""
    loop, doubled = [], []
    loop.append(loop)
    for _ in range(60):
        doubled = [doubled, doubled]
    endless = [pickle.dumps([dict(REFS[0], sentences=value)], 2)
               for value in (loop, doubled)]
    valid, contents = annotations(
        REFS, lambda value: pickle.dumps(value, protocol))
    return valid, contents | st.sampled_from(endless)


def checkpoint(kind):
    file, module = io.BytesIO(), nn.Linear(3, 2)
    if kind == 'safetensors':
        return save(module.state_dict())
    if kind == 'pt':
        torch.jit.save(torch.jit.trace(module, torch.ones(1, 3)), file)
    else:
        torch.save(
            dict(state_dict=module.state_dict(), meta=dict(epoch=1)), file,
            _use_new_zipfile_serialization=kind == 'pth')
    return file.getvalue()


def read_results(path, _):
    records, conventions = read_results_file(path)
    scores_of(records, conventions)
    by_area(records)
    choose_samples(records, 1)
    worst_words(records)


def read_rle(path, _):
    decode_mask(dict(size=[40, 60], counts=read_bytes(path)), 40, 60)


def read_image(path, _):
    image_size(path)
    decode_image(read_bytes(path), path)


GREFS = [dict(ref, ann_id=ids)
         for ref, ids in zip(REFS, ([0, 1], [-1], [2]), strict=True)]
EXPRESSED = dict(INSTANCES, annotations=[
    dict(ann, expressions=['the thing']) for ann in INSTANCES['annotations']])
# Name of a file, its valid and its damaged contents, and its reader.
CASES = [
    *((f'refs{protocol}.p', refs(protocol), lambda path, folder: load_refer(
        f'{folder}/instances.json', path, 'train')) for protocol in (0, 2, 5)),
    ('grefs.json', annotations(GREFS), lambda path, folder: read_refer(
        f'{folder}/instances.json', path, 'train')),
    ('instances.json',
     with_masks(INSTANCES, dumped, lambda mask: dict(INSTANCES, annotations=[
         dict(INSTANCES['annotations'][0], segmentation=mask)])),
     lambda path, folder: load_refer(path, f'{folder}/refs.p', 'train')),
    *((name, annotations(value), lambda path, folder: read_coco(
        path, folder, 'train')) for name, value in (
            ('names.json', INSTANCES), ('coco.json', EXPRESSED))),
    ('lines.jsonl',
     with_masks(LINES, as_lines, lambda mask: [dict(LINES[0], mask=mask)]),
     lambda path, folder: read_jsonl(path, folder, folder, 'train')),
    ('official.json', annotations(ENTRIES), lambda path, folder: (
        read_official_json(path, folder, folder, 'train'))),
    ('results.json', annotations(RESULTS), read_results),
    ('rle.txt', (COMPRESSED.encode(), damaged(COMPRESSED.encode())
                 | st.binary(max_size=99)), read_rle),
    *((f'image{suffix}', binary(encoded(suffix)), read_image)
      for suffix in ('.jpg', '.png', '.bmp', '.tiff', '.webp')),
    ('mask.png', binary(encoded('.png')),
     lambda path, _: read_mask(path, 40, 60)),
    *((f'weights.{kind}', binary(checkpoint(kind)),
       lambda path, _: read_checkpoint(path))
      for kind in ('pth', 'legacy', 'pt', 'safetensors')),
]


@pytest.mark.parametrize('name, contents, read', CASES,
                         ids=[name for name, *_ in CASES])
def test_reader(tmp_path, name, contents, read):
    """Beside an image, its mask, and whole annotations."""
    (tmp_path / '1.jpg').write_bytes(encoded('.jpg'))
    cv2.imwrite(str(tmp_path / '1.png'), IMAGE[..., 0] // 32 * 32)
    (tmp_path / 'instances.json').write_bytes(dumped(INSTANCES))
    (tmp_path / 'refs.p').write_bytes(pickle.dumps(REFS, 2))
    examine(tmp_path / f'damaged_{name}', *contents,
            lambda path: read(path, str(tmp_path)))
