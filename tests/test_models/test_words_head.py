# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The auxiliary head that teaches words."""
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from test_cris import AUXILIARY_HEAD, TINY, close, samples
from torch import nn

from cris.datasets.tokenizer import tokenize
from cris.engine.sharding import check_sharding
from cris.io.checkpoints import (
    CheckpointError,
    check_fit,
    load_weights,
    state_dict_of,
)
from cris.models import RegionWordsHead

PREFIX = 'auxiliary_head.'
SENTENCES = ['the red circle', 'all small stars', 'the red circle', 'it']


@pytest.fixture
def head():
    torch.manual_seed(0)
    return RegionWordsHead(6, word_channels=5, sentence_channels=4,
                           embed_channels=3, loss_weight=2.0)


@pytest.fixture
def embedding():
    torch.manual_seed(1)
    return nn.Embedding(49408, 5)


@pytest.fixture
def batch():
    """Two pictures of 8 x 16 pixels, with one and with three expressions."""
    torch.manual_seed(2)
    masks = [(torch.rand(k, 32, 64) > 0.7).float() for k in (1, 3)]
    return dict(
        features=[torch.randn(2, 2, 8, 16), torch.randn(2, 4, 8, 16)],
        sentence=torch.randn(4, 4), tokens=tokenize(SENTENCES, 9),
        masks=masks)


def build():
    return MODELS.build(dict(TINY, auxiliary_head=AUXILIARY_HEAD))


def mlp(layers, x):
    """A layer norm and a linear layer, written out."""
    norm, linear = layers
    x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
    return linear.weight @ (x * norm.weight + norm.bias) + linear.bias


def test_losses_are_those_of_their_definition(head, embedding, batch):
    losses = head(**batch, embedding=embedding)
    words = [[t for t in row.tolist() if 0 < t < 49406]
             for row in batch['tokens']]
    pixels = torch.cat(batch['features'], 1)
    masks = torch.cat(batch['masks'])
    regions, bags, told = [], [], []
    vocabulary = torch.tensor(sorted({t for row in words for t in row}))
    for e, picture in enumerate([0, 1, 1, 1]):
        share = masks[e].reshape(8, 4, 16, 4).mean((1, 3))
        mean = (pixels[picture] * share).sum((1, 2)) / share.sum()
        regions.append(F.normalize(mlp(head.region_proj, mean), dim=0))
        bag = embedding(torch.tensor(words[e])).mean(0)
        bags.append(F.normalize(mlp(head.words_proj, bag), dim=0))
        asked = embedding(vocabulary) @ mlp(
            head.sentence_proj, batch['sentence'][e]) * 5
        told.append(-torch.stack(
            [asked.log_softmax(0)[vocabulary == t] for t in words[e]]).mean())

    def find(mine, others, e):
        # Expressions 0 and 2 are alike: no negatives of each other.
        cosines = {i: mine[e] @ other / 0.1 for i, other in enumerate(others)
                   if i == e or SENTENCES[i] != SENTENCES[e]}
        return torch.stack(list(cosines.values())).logsumexp(0) - cosines[e]

    found = [find(a, b, e) for a, b in ((regions, bags), (bags, regions))
             for e in range(4)]
    close(losses['loss_region'], 2 * torch.stack(found).mean())
    close(losses['loss_sentence'], 2 * torch.stack(told).mean())


def test_padding_does_not_matter(head, embedding, batch):
    losses = head(**batch, embedding=embedding)
    batch['tokens'] = tokenize(SENTENCES, 20)
    longer = head(**batch, embedding=embedding)
    for name in losses:
        close(longer[name], losses[name])


def test_expressions_without_a_referent_have_no_region(head, embedding,
                                                       batch):
    batch['masks'][1][1] = 0
    before = head(**batch, embedding=embedding)['loss_region']
    batch['tokens'][2] = tokenize(['another word'], 9)
    after = head(**batch, embedding=embedding)['loss_region']
    assert before == after and before > 0


@pytest.mark.parametrize('case', ['no referent', 'one', 'all alike'])
def test_nothing_to_compare(head, embedding, batch, case):
    if case == 'all alike':
        batch['tokens'] = tokenize(['a'] * 4, 9)
    else:
        for mask in batch['masks'][case == 'one':]:
            mask.zero_()
    losses = head(**batch, embedding=embedding)
    assert losses['loss_region'] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all()
               for p in head.parameters())


def test_empty_sentences(head, embedding, batch):
    batch['tokens'] = tokenize(['', ' ', '', ''], 9)
    losses = head(**batch, embedding=embedding)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all()
               for p in head.parameters())


def test_losses_stay_in_fp32(head, embedding, batch):
    plain = head(**batch, embedding=embedding)
    with torch.autocast('cpu', torch.bfloat16):
        mixed = head(**batch, embedding=embedding)
    for name, loss in plain.items():
        assert mixed[name].dtype == torch.float32
        assert torch.equal(mixed[name], loss)


def test_the_other_losses_do_not_change():
    model, plain = build(), MODELS.build(TINY)
    plain.load_state_dict(state_dict_of(model.state_dict()))
    images, data_samples = torch.randn(2, 3, 64, 64), samples([2, 3], (64, 64))
    with_head, without = (
        m.loss(images, data_samples) for m in (model, plain))
    for name, loss in without.items():
        close(with_head[name], loss)


def test_ignored_pixels_do_not_count():
    model = build()
    images, data_samples = torch.randn(2, 3, 64, 64), samples([2, 3], (64, 64))
    ignored = torch.zeros(3, 64, 64, dtype=torch.bool)
    ignored[:, :, :40] = True
    data_samples[1].gt_ignore = PixelData(data=ignored)
    before = model.loss(images, data_samples)['loss_region']
    data_samples[1].gt_sem_seg.data[ignored] = 1 - (
        data_samples[1].gt_sem_seg.data[ignored])
    close(model.loss(images, data_samples)['loss_region'], before)


def test_it_teaches_both_encoders():
    model = build()
    losses = model.loss(
        torch.randn(2, 3, 64, 64), samples([2, 3], (64, 64)))
    assert losses.keys() == {'loss_region', 'loss_sentence',
                             'loss_contrastive', 'loss_dice'}
    losses['loss_region'].backward(retain_graph=True)
    assert model.backbone.visual.conv1.weight.grad.abs().sum() > 0
    text = model.backbone.text
    assert text.token_embedding.weight.grad.abs().sum() > 0
    assert text.text_projection.grad is None
    losses['loss_sentence'].backward()
    assert text.text_projection.grad.abs().sum() > 0


def test_published_weights_do_without_it(tmp_path):
    """They fit the config with and the one without it."""
    model = build()
    weights = model.state_dict()
    assert any(name.startswith(PREFIX) for name in weights)
    published = state_dict_of(dict(state_dict=weights))
    assert published.keys() == {
        name for name in weights if not name.startswith(PREFIX)}
    check_fit(published, weights, 'x.pth')
    plain = MODELS.build(TINY)
    for name, content in (('all', weights), ('published', published)):
        torch.save(content, tmp_path / f'{name}.pth')
        for other in (plain, build()):
            load_weights(other, tmp_path / f'{name}.pth')
            for key, weight in published.items():
                assert torch.equal(other.state_dict()[key], weight)


def test_a_run_resumes_only_with_the_same_head():
    model = build()
    weights = model.state_dict()
    check_fit(weights, weights, 'x.pth', auxiliary=True)
    with pytest.raises(CheckpointError, match='missing: auxiliary_head'):
        check_fit(state_dict_of(weights), weights, 'x.pth', auxiliary=True)
    with pytest.raises(CheckpointError, match='not in the model: auxiliary'):
        check_fit(weights, MODELS.build(TINY).state_dict(), 'x.pth',
                  auxiliary=True)


def test_a_sharded_model_cannot_have_one():
    cfg = Config(dict(strategy=dict(type='ShardedStrategy'),
                      model=dict(auxiliary_head=dict(type='X'))))
    with pytest.raises(ValueError, match='auxiliary_head=None'):
        check_sharding(cfg)
