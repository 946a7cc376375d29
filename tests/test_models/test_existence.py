# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The logit that says whether an expression has a referent."""
import copy
import logging
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import PixelData
from test_cris import TINY, build, close, samples

from cris.datasets.tokenizer import tokenize
from cris.engine import optimize_for_inference
from cris.engine.training import _SetUpHook
from cris.io.checkpoints import CheckpointError, load_weights
from cris.models.head import Answer

PREFIX = 'decode_head.existence.'


@pytest.fixture(scope='module')
def pair():
    """A model without and one with the classifier, otherwise the same."""
    torch.manual_seed(0)
    without, model = build().eval(), build(existence=True).eval()
    model.load_state_dict(without.state_dict(), strict=False)
    return without, model


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.manual_seed(1))


@pytest.fixture(scope='module')
def tokens():
    return tokenize(['the red circle', 'all small stars', 'it', 'a b c'], 9)


INDEX = torch.tensor([1, 0, 1, 1])


def ask(model, images, tokens, index=INDEX):
    return model.answer(model.encode_image(images), tokens, index)


@torch.no_grad()
def test_it_changes_nothing_else(pair, images, tokens):
    without, model = pair
    new = model.state_dict().keys() - without.state_dict().keys()
    assert new and all(name.startswith(PREFIX) for name in new)
    assert without.decode_head.existence is None
    answers = [ask(m, images, tokens) for m in pair]
    assert answers[0].existence is None
    assert answers[1].existence.shape == (4, )
    assert torch.equal(answers[0].logits, answers[1].logits)
    for m in pair:
        assert torch.equal(m.predict_logits(images, tokens, INDEX),
                           answers[0].logits)
    (sample, ) = without.predict(images[:1], samples([3], (50, 70)))
    assert 'existence' not in sample
    assert without.loss(images, samples([1, 2], (64, 64))).keys() == {
        'loss_contrastive', 'loss_dice'}


@torch.no_grad()
def test_expressions_and_pictures_do_not_mix(pair, images, tokens):
    model = copy.deepcopy(pair[1])
    together = ask(model, images, tokens).existence
    alone = [ask(model, images[i:i + 1], tokens[e:e + 1], None).existence
             for e, i in enumerate(INDEX)]
    close(torch.cat(alone), together, atol=1e-5, rtol=1e-5)
    # The expression and the picture both count.
    other = ask(model, images, tokens, 1 - INDEX).existence
    assert (together[:, None] - together)[INDEX == 1].abs().max() > 1e-4
    assert (together - other).abs().min() > 1e-6
    model.expressions_at_once = 3
    close(ask(model, images, tokens).existence, together)
    padded = F.pad(tokens, (0, 8))
    close(ask(model, images, padded).existence, together, atol=1e-5,
          rtol=1e-5)


@torch.no_grad()
def test_an_expression_without_referent_gets_an_empty_mask(pair, images):
    without, model = (copy.deepcopy(m) for m in pair)
    for m in (without, model):
        m.decode_head.threshold = 0.0  # every mask has pixels
    data = samples([3, 1], (50, 70))
    plain = without.predict(images, copy.deepcopy(data))
    tokens = torch.cat([sample.tokens for sample in data])
    logits = ask(model, images, tokens, torch.tensor([0, 0, 0, 1])).existence
    between = logits.sigmoid().sort().values[1:3].mean().item()
    abstained = 0
    for threshold in (0.0, between, 1.0):
        model.decode_head.existence_threshold = threshold
        out = model.predict(images, copy.deepcopy(data))
        existence = torch.cat([sample.existence for sample in out])
        close(existence, logits.sigmoid())
        assert existence.dtype == torch.float32
        for sample, always in zip(out, plain, strict=True):
            assert sample.existence_threshold == threshold
            assert torch.equal(sample.seg_logits.data, always.seg_logits.data)
            exists = sample.existence >= threshold
            assert torch.equal(
                sample.pred_sem_seg.data,
                always.pred_sem_seg.data & exists[:, None, None])
            abstained += int((~exists).sum())
    assert abstained == 0 + 2 + 4


def test_loss_is_cross_entropy_on_whether_there_is_any_pixel():
    head = build(existence=True, existence_loss_weight=3.0,
                 target_resize='nearest').decode_head
    masks = [torch.zeros(2, 8, 8), torch.ones(1, 8, 8)]
    masks[0][1, 5, 5] = 1  # nearest does not take this pixel
    logits, existence = torch.zeros(3, 1, 2, 2), torch.tensor([-1., 2., .5])
    losses = head.loss(logits, masks, existence=existence)
    prob = existence.sigmoid()
    expected = -torch.stack(
        [(1 - prob[0]).log(), prob[1].log(), prob[2].log()]).mean()
    close(losses['loss_existence'], 3 * expected)
    close(losses['loss_contrastive'], torch.tensor(2.).log())


def test_it_can_be_learnt_without_changing_the_masks():
    """From the picture: each expression has a referent in one of two."""
    torch.manual_seed(0)
    model = build(existence=True).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    images = torch.randn(2, 3, 64, 64)
    data = samples([2, 2], (64, 64))
    data[1].set_metainfo(dict(tokens=data[0].tokens))
    exists = torch.tensor([1., 0, 0, 1])
    for sample, some in zip(data, exists.split(2), strict=True):
        mask = torch.zeros(2, 64, 64)
        mask[:, :32] = some[:, None, None]
        sample.gt_sem_seg = PixelData(data=mask)
    for _ in range(60):
        losses = model.loss(images, data)
        optimizer.zero_grad()
        losses['loss_existence'].backward(retain_graph=True)
        # It trains its own weights, all of them, and no others.
        assert all(
            (p.grad is not None and p.grad.abs().sum() > 0) == n.startswith(
                PREFIX) for n, p in model.named_parameters())
        losses['loss_contrastive'].backward()
        optimizer.step()
    assert losses['loss_existence'] < 0.1


@torch.no_grad()
@pytest.mark.parametrize('precision, tolerance', [
    ('fp32', 1e-4), ('bf16', 0.1)])
def test_fast_models_say_the_same(pair, images, tokens, precision, tolerance):
    expected = ask(pair[1], images, tokens)
    fast = optimize_for_inference(copy.deepcopy(pair[1]), precision)
    found = ask(fast, images, tokens)
    assert found.existence.dtype == torch.float32
    close(found.existence, expected.existence, atol=tolerance, rtol=0)


def test_wrong_threshold():
    with pytest.raises(ValueError, match='existence_threshold=1.5 must be in'):
        build(existence=True, existence_threshold=1.5)
    assert Answer(torch.zeros(1)).existence is None
    assert 'existence' not in TINY.decode_head


@pytest.fixture
def files(pair, tmp_path):
    paths = [str(tmp_path / f'{name}.pth') for name in ('without', 'with')]
    for model, path in zip(pair, paths, strict=True):
        torch.save(dict(state_dict=model.state_dict()), path)
    return paths


def test_checkpoints_fit_or_are_refused(pair, files):
    for model, path in zip(pair, files, strict=True):
        load_weights(copy.deepcopy(model), path)
    with pytest.raises(CheckpointError, match=(
            'no weights of the classifier of existence .*load_from=.*'
            'decode_head.existence=False')):
        load_weights(copy.deepcopy(pair[1]), files[0])
    with pytest.raises(CheckpointError, match=(
            'which this config does not have.*decode_head.existence=True')):
        load_weights(copy.deepcopy(pair[0]), files[1])


def start(model, path, resume=False):
    """As tools/train.py begins with a checkpoint."""
    runner = Runner.__new__(Runner)
    runner.model = model
    runner.logger = logging.getLogger('existence')
    hook = _SetUpHook(SimpleNamespace(), Config(dict(
        load_from=path, resume=resume)))
    checkpoint = torch.load(path)
    if resume:
        checkpoint.update(meta={}, message_hub={})
    hook.after_load_checkpoint(runner, checkpoint)


def test_training_adds_it_to_a_model_that_always_answers(pair, files, caplog):
    with caplog.at_level(logging.INFO):
        start(pair[1], files[1])
        assert not caplog.messages
        start(pair[1], files[0])
    assert 'has no classifier of existence' in caplog.messages[0]
    assert 'starts new' in caplog.messages[0]
    # A run that goes on must not lose it, and vice versa.
    with pytest.raises(CheckpointError, match='no weights of the classifier'):
        start(pair[1], files[0], resume=True)
    with pytest.raises(CheckpointError, match='this config does not have'):
        start(pair[0], files[1])
    # All else must be there.
    weights = torch.load(files[0])['state_dict']
    weights.pop('neck.aggr.0.weight', weights.popitem()[0])
    torch.save(weights, files[0])
    with pytest.raises(CheckpointError, match='missing: '):
        start(pair[1], files[0])
