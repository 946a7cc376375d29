# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Auxiliary head of training: words are taught directly, not by masks alone.

Shapes: B images, E expressions of L tokens; h x w pixels; C_s channels of the
sentence feature, D of a token's embedding.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor, nn

_TEMPERATURE = 0.1  # of the cosines of regions and words
_SCALE = 5.0  # of the logits of words: embeddings are small at first


@MODELS.register_module()
class RegionWordsHead(nn.Module):
    """Two losses for models that are trained from scratch.

    From masks alone, a text encoder without pretraining is slow to find out
    that words for shapes and places matter: measured, its sentence feature
    still told neither squares from stars nor left from right when masks knew
    colours well.

    * ``loss_region``: the mean feature of a referent's pixels and the mean
      embedding of its expression's tokens must find each other among all of
      the batch: cross entropy both ways, as in CLIP (arXiv 2103.00020).
      Expressions alike are no negatives of each other. Expressions without
      a referent do not count.
    * ``loss_sentence``: the sentence feature must tell which of the batch's
      tokens its expression has (cross entropy, bag of words).

    It is used in training only: published and loaded weights leave it out.

    Args:
        in_channels (int): Channels of the neck's p3 and p4 together.
        word_channels (int): D.
        sentence_channels (int): C_s.
        embed_channels (int): Channels in which regions and words are compared.
        loss_weight (float): Of both losses.
    """

    def __init__(self, in_channels: int, *, word_channels: int,
                 sentence_channels: int, embed_channels: int = 64,
                 loss_weight: float = 0.3):
        super().__init__()
        self.loss_weight = loss_weight
        self.region_proj = _norm_linear(in_channels, embed_channels)
        self.words_proj = _norm_linear(word_channels, embed_channels)
        self.sentence_proj = _norm_linear(sentence_channels, word_channels)

    def forward(self, features: Sequence[Tensor], sentence: Tensor,
                tokens: Tensor, masks: Sequence[Tensor],
                embedding: nn.Module) -> dict[str, Tensor]:
        """Losses of a batch, scalars by name.

        Args:
            features (Sequence[Tensor]): p3, p4 of the images, ``(B, C, h, w)``.
            sentence (Tensor): ``(E, C_s)``.
            tokens (Tensor): ``(E, L)``: a start token, words, an end token,
                which has the largest id, and padding.
            masks (Sequence[Tensor]): Masks of each image's expressions,
                ``(K, H, W)`` in [0, 1]; the K add up to E.
            embedding (nn.Module): From tokens to embeddings of D channels.
        """
        places = torch.arange(tokens.shape[1], device=tokens.device)
        is_word = (places > 0) & (places < tokens.argmax(1, keepdim=True))
        with torch.autocast(sentence.device.type, enabled=False):
            regions, exists = _mean_features(
                torch.cat([x.float() for x in features], dim=1), masks)
            return {
                'loss_region': self.loss_weight * self._region_loss(
                    regions, exists, tokens, is_word, embedding),
                'loss_sentence': self.loss_weight * self._sentence_loss(
                    sentence.float(), tokens, is_word, embedding)}

    def _region_loss(self, regions: Tensor, exists: Tensor, tokens: Tensor,
                     is_word: Tensor, embedding: nn.Module) -> Tensor:
        count = is_word.sum(1, keepdim=True).clamp(min=1)
        words = (embedding(tokens).float() * is_word[..., None]).sum(1) / count
        regions = F.normalize(self.region_proj(regions), dim=1)[exists]
        words = F.normalize(self.words_proj(words), dim=1)[exists]
        if len(words) < 2:  # nothing to compare; all weights have gradients
            return 0 * (regions.sum() + words.sum())
        tokens = tokens[exists]
        alike = (tokens[:, None] == tokens).all(2)
        alike.fill_diagonal_(False)
        cosines = (regions @ words.T / _TEMPERATURE).masked_fill(
            alike, -torch.inf)
        own = torch.arange(len(words), device=words.device)
        return (F.cross_entropy(cosines, own)
                + F.cross_entropy(cosines.T, own)) / 2

    def _sentence_loss(self, sentence: Tensor, tokens: Tensor, is_word: Tensor,
                       embedding: nn.Module) -> Tensor:
        vocabulary, which = tokens[is_word].unique(return_inverse=True)
        has = sentence.new_zeros(len(tokens), len(vocabulary))
        has[is_word.nonzero()[:, 0], which] = 1
        logits = _SCALE * (
            self.sentence_proj(sentence) @ embedding(vocabulary).float().T)
        share = has / has.sum(1, keepdim=True).clamp(min=1)
        return -(logits.log_softmax(1) * share).sum(1).mean()


def _norm_linear(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(in_channels), nn.Linear(in_channels, out_channels))


def _mean_features(features: Tensor,
                   masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean features ``(E, C)`` of the masks' pixels, and which have any."""
    shares = [
        F.interpolate(mask[:, None].float(), features.shape[-2:], mode='area')
        .flatten(1) for mask in masks]
    sums = torch.cat([
        share @ pixels.flatten(1).T  # (K, h * w) @ (h * w, C)
        for share, pixels in zip(shares, features, strict=True)])
    area = torch.cat(shares).sum(1, keepdim=True)
    return sums / area.clamp(min=1e-6), area[:, 0] > 0
