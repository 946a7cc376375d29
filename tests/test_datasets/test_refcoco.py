# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner, set_random_seed
from mmseg.registry import DATASETS
from torch.utils.data import DataLoader

from cris.datasets import base, randomness

PIPELINE = [
    dict(type='LoadReferImage'),
    dict(type='ChooseExpressions'),
    dict(type='LoadReferMasks'),
    dict(type='Letterbox', size=64, border_value=(104, 117, 123)),
    dict(type='TokenizeExpressions', context_length=8),
    dict(type='PackReferInputs')
]


def build(refer_set, **kwargs):
    """The dataset, after its files were written."""
    return DATASETS.build(dict(
        dict(type='RefCOCODataset', pipeline=PIPELINE), **kwargs,
        data_root=str(refer_set.write())))


def test_training_has_one_expression_per_ref(refer_set):
    dataset = build(refer_set)
    assert len(dataset) == 4
    packed = dataset[1]
    sample = packed['data_samples']
    assert packed['inputs'].shape == (3, 64, 64)
    assert packed['inputs'].dtype == torch.uint8
    assert sample.tokens.shape == (1, 8)
    assert sample.gt_sem_seg.data.shape == (1, 64, 64)
    assert sample.ref_ids == [3]
    assert sample.expressions[0].startswith('thing 3')
    assert sample.ori_shape == (80, 50)
    assert sample.img_path.endswith('images/1.jpg')


def test_evaluation_has_all_sentences_of_an_image(refer_set):
    pipeline = [PIPELINE[i] for i in (0, 1, 3, 2, 4, 5)]
    dataset = build(refer_set, pipeline=pipeline, test_mode=True)
    assert len(dataset) == 2
    sample = dataset[0]['data_samples']
    assert sample.tokens.shape == (8, 8)
    assert sample.ref_ids == [2] * 4 + [3] * 4
    assert sample.sent_ids == [20, 21, 22, 23, 30, 31, 32, 33]
    masks = sample.gt_sem_seg.data
    assert masks.shape == (8, 80, 50)  # loaded after the letterbox
    assert masks.unique().tolist() == [0, 1]
    assert masks[:, 20, 10].tolist() == [1] * 4 + [0] * 4
    assert masks[:, 20, 30].tolist() == [0] * 4 + [1] * 4


def test_several_expressions_share_an_image_in_training(refer_set):
    refer_set.add_ref(1, [[1, 1, 9, 1, 9, 9]], 'train', ['only one'])
    dataset = build(refer_set, num_expressions=2)
    # Three refs of image 1 make two samples, two of image 2 make one.
    assert len(dataset) == 3
    seen = set()
    for i in range(3):
        sample = dataset[i]['data_samples']
        assert len(sample.expressions) == len(sample.tokens) == 2
        assert len(sample.gt_sem_seg.data) == 2
        seen.update(sample.ref_ids)
    assert seen == {2, 3, 4, 5, 6}
    alone = dataset[1]['data_samples']
    assert alone.expressions == ['only one'] * 2
    with pytest.raises(ValueError, match='num_expressions=0'):
        build(refer_set, num_expressions=0)


def test_a_sample_of_every_sentence(refer_set):
    grouped = build(refer_set, test_mode=True)
    single = build(refer_set, test_mode=True, group_by_image=False)

    def asked(dataset):
        return [
            (record['img_path'], ref['ref_id'], pair)
            for record in map(dataset.get_data_info, range(len(dataset)))
            for ref in record['refs'] for pair in zip(
                ref['sent_ids'], ref['sentences'], strict=True)]

    assert asked(single) == asked(grouped)
    assert len(single) == len(asked(single)) > len(grouped)


def epoch_sentences(refer_set, seed, num_workers, persistent, epochs=6):
    """What mmengine's own loader draws in each epoch."""
    set_random_seed(seed)
    loader = Runner.build_dataloader(
        dict(batch_size=2, num_workers=num_workers,
             persistent_workers=persistent,
             sampler=dict(type='DefaultSampler', shuffle=False),
             dataset=build(refer_set)), seed=seed)
    return [[tuple(sample.sent_ids) for batch in loader
             for sample in batch['data_samples']] for _ in range(epochs)]


@pytest.mark.parametrize('num_workers, persistent', [(0, False), (2, False),
                                                     (2, True)])
def test_a_new_sentence_each_epoch_that_follows_from_the_seed(
        refer_set, num_workers, persistent):
    epochs = epoch_sentences(refer_set, 3, num_workers, persistent)
    for ref in range(4):
        assert len({epoch[ref] for epoch in epochs}) > 1
    assert len({tuple(epoch) for epoch in epochs}) >= 5
    assert epochs == epoch_sentences(refer_set, 3, num_workers, persistent)
    assert epochs != epoch_sentences(refer_set, 4, num_workers, persistent)


def test_draws_follow_from_seed_epoch_and_sample(refer_set):
    dataset = build(refer_set)

    def draw(seed, epoch):
        dataset.worker_state.set_epoch(seed, epoch)
        return tuple(dataset[i]['data_samples'].sent_ids[0]
                     for i in range(len(dataset)))

    first = draw(3, 0)
    assert len({draw(3, epoch) for epoch in range(8)}) > 4
    assert len({draw(seed, 0) for seed in range(8)}) > 4
    assert draw(3, 0) == first


@pytest.mark.parametrize('spawned', [False, True])
def test_ranks_draw_differently_without_an_epoch(refer_set, monkeypatch,
                                                 spawned):
    drawn = []
    for rank in range(2):
        monkeypatch.setattr(randomness, 'get_rank', lambda r=rank: r)
        dataset = build(refer_set)
        if spawned:  # such a worker gets a copy, and does not know its rank
            dataset = pickle.loads(ForkingPickler.dumps(dataset))
            monkeypatch.setattr(randomness, 'get_rank', lambda: 0)
        torch.manual_seed(0)  # mmengine seeds all ranks alike
        loader = DataLoader(
            dataset, num_workers=1, collate_fn=pseudo_collate,
            multiprocessing_context='fork')
        drawn.append([tuple(sample.sent_ids) for _ in range(3)
                      for batch in loader for sample in batch['data_samples']])
    assert drawn[0] != drawn[1]


def test_every_sentence_is_drawn_as_often(refer_set):
    np.random.seed(0)
    dataset = build(refer_set)
    drawn = [dataset[0]['data_samples'].sent_ids[0] for _ in range(400)]
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == 4 and counts.min() > 70


def test_missing_images_are_named_before_training(refer_set):
    (refer_set.root / 'images/1.jpg').unlink()
    with pytest.raises(ValueError, match=r'1 fault.*\n.*images/1.jpg does'):
        build(refer_set)
    build(refer_set, split='val')


def test_missing_folders_and_files(refer_set):
    with pytest.raises(FileNotFoundError, match='data_prefix'):
        build(refer_set, data_prefix=dict(img_path='nowhere'))
    with pytest.raises(FileNotFoundError, match='check data_root'):
        build(refer_set, ann_file='nothing.json')


def test_an_empty_sentence_is_kept_and_reported(refer_set, monkeypatch):
    messages = []
    monkeypatch.setattr(
        base, 'print_log',
        lambda message, *args, **kwargs: messages.append(message))
    refer_set.refs[2]['sentences'][1]['sent'] = ' '
    dataset = build(refer_set, test_mode=True)
    assert '1 refs have an empty sentence, e.g. ref 2' in messages[-1]
    assert len(dataset[0]['data_samples'].expressions) == 8


def test_relative_paths_are_under_data_root(refer_set):
    root = refer_set.root
    (root / 'sub').mkdir()
    (root / 'instances.json').rename(root / 'sub/instances.json')
    (root / 'refs(unc).p').rename(root / 'sub/refs.p')
    assert len(DATASETS.build(dict(
        type='RefCOCODataset', data_root=str(root), split='val',
        ann_file='sub/instances.json', split_file='sub/refs.p',
        data_prefix=dict(img_path='images')))) == 2
