# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The head adds up several losses, ours and mmseg's."""
import pytest
import torch
from mmseg.registry import MODELS

CONTRASTIVE = dict(type='TextToPixelContrastiveLoss', loss_weight=2.0)
DICE = dict(type='DiceLoss', naive_dice=True, eps=1.0, ignore_index=None)


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(3, 1, 4, 4)


MASKS = [torch.rand(2, 16, 16), torch.zeros(1, 16, 16)]


def losses(*configs, logits, **kwargs):
    head = MODELS.build(dict(
        type='VisionLanguageDecoderHead', in_channels=8, word_channels=8,
        sentence_channels=8, num_layers=0, target_resize='area',
        loss_decode=list(configs)))
    return head.loss(logits, MASKS, **kwargs)


def test_several_losses(logits):
    found = losses(CONTRASTIVE, DICE, logits=logits)
    assert found.keys() == {'loss_contrastive', 'loss_dice'}
    (alone, ) = losses(CONTRASTIVE, logits=logits).values()
    assert torch.equal(found['loss_contrastive'], alone)
    prob = logits.sigmoid().flatten(1)
    share = torch.cat(MASKS).unfold(1, 4, 4).unfold(2, 4, 4).mean((3, 4))
    share = share.flatten(1)  # of the referent, in each pixel of the logits
    dice = (2 * (prob * share).sum(1) + 1) / ((prob + share).sum(1) + 1)
    torch.testing.assert_close(found['loss_dice'], (1 - dice).mean())


def test_losses_of_one_name_are_added_up(logits):
    (twice, ) = losses(CONTRASTIVE, CONTRASTIVE, logits=logits).values()
    (once, ) = losses(CONTRASTIVE, logits=logits).values()
    assert torch.equal(twice, 2 * once)


def test_a_loss_that_is_no_dict_is_refused(logits):
    with pytest.raises(ValueError, match='must be a dict or a list of them'):
        losses("dict(type='DiceLoss')", logits=logits)


def test_ignored_pixels_count_for_no_loss(logits):
    ignore = [torch.zeros_like(mask, dtype=torch.bool) for mask in MASKS]
    ignore[0][0, :8] = True
    before = losses(CONTRASTIVE, DICE, logits=logits, ignore=ignore)
    other = logits.clone()
    other[0, :, :2] += 5
    after = losses(CONTRASTIVE, DICE, logits=other, ignore=ignore)
    assert after == before
    kept = torch.ones(3, 1, 4, 4, dtype=torch.bool)
    kept[0, :, :2] = False
    other.requires_grad_()
    sum(losses(CONTRASTIVE, DICE, logits=other, ignore=ignore).values()
        ).backward()
    assert torch.equal(other.grad != 0, kept)
