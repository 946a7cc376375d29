# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import json
import multiprocessing
import os
import socket

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from cris.evaluation import RefSegMetric


def sample(pred, target):
    out = SegDataSample(metainfo=dict(img_path='x.jpg'))
    out.pred_sem_seg = PixelData(data=torch.as_tensor(pred))
    out.gt_sem_seg = PixelData(data=torch.as_tensor(target).float())
    return out


def scores(samples, **kwargs):
    evaluator = Evaluator([RefSegMetric(**kwargs)])
    evaluator.process(samples)
    return evaluator.evaluate(len(samples))


def row(intersection, pred_only, target_only, size=100):
    pred, target = np.zeros((2, 1, 1, size), bool)
    pred[..., :intersection + pred_only] = True
    target[..., :intersection] = True
    target[..., intersection + pred_only:][..., :target_only] = True
    return pred, target


def test_scores_of_the_official_code(golden):
    meta = json.loads((golden / 'prepost.json').read_text())
    arrays = np.load(golden / 'prepost.npz')
    samples = []
    for i, s in enumerate(meta['samples']):
        shape = (1, s['height'], s['width'])
        pred = np.unpackbits(arrays[f'{i}_pred'])[:np.prod(shape)]
        samples.append(
            sample(
                pred.reshape(shape).astype(bool),
                (arrays[f'{i}_gt'] > 0).reshape(shape)))
    out = scores(samples)
    for name in ('mIoU', 'oIoU', 'Pr@50', 'Pr@60', 'Pr@70', 'Pr@80', 'Pr@90'):
        assert out[name] == pytest.approx(meta[name], abs=1e-4), name
    assert out['n_expressions'] == 6


def test_by_hand():
    pairs = [row(50, 0, 50), row(6, 0, 4, 10), row(0, 5, 5), row(0, 0, 0, 7)]
    out = scores([sample(*pair) for pair in pairs])
    # IoU .5, .6, 0 and, with nothing in either, 0.
    assert out['mIoU'] == pytest.approx(100 * 1.1 / 4, abs=1e-3)
    assert out['oIoU'] == pytest.approx(100 * 56 / 120)
    assert out['Pr@50'] == pytest.approx(25)  # strictly above
    assert out['Pr@60'] == 0
    assert out['n_expressions'] == 4


def test_means_are_over_expressions_not_images():
    perfect, missed = row(10, 0, 0), row(0, 10, 10)
    three = [np.concatenate([m] * 3) for m in perfect]
    out = scores([sample(*three), sample(*missed)])
    assert out['mIoU'] == pytest.approx(75, abs=1e-4)
    assert out['Pr@90'] == 75


def test_prefix():
    assert 'refcoco/mIoU' in scores([sample(*row(1, 0, 0))], prefix='refcoco')


def test_shapes_must_agree():
    pred, target = row(1, 0, 0)
    with pytest.raises(ValueError, match='x.jpg differ in shape'):
        RefSegMetric().process({}, [sample(pred, target[..., 1:]).to_dict()])


def many_samples(count):
    rng = np.random.default_rng(0)
    samples = []
    for k in rng.integers(1, 5, count):
        pred, target = rng.random((2, k, 9, 11)) > rng.random((1, k, 1, 1))
        samples.append(sample(pred, target))
    return samples


def _rank(rank, world_size, port, count, queue):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.distributed.init_process_group(
        'gloo', rank=rank, world_size=world_size)
    samples = many_samples(count)
    evaluator = Evaluator([RefSegMetric()])
    for i in DefaultSampler(samples, shuffle=False):
        evaluator.process([samples[i]])
    out = evaluator.evaluate(count)
    queue.put((rank, out))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('world_size', [2, 3])
def test_several_ranks_report_the_same(world_size):
    count = 7  # neither 2 nor 3 divides it: the sampler repeats samples
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context('spawn')
    queue = context.Queue()
    ranks = [
        context.Process(
            target=_rank, args=(rank, world_size, port, count, queue))
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    results = dict(queue.get(timeout=120) for _ in ranks)
    for rank in ranks:
        rank.join(30)
    assert results[0] == scores(many_samples(count))
