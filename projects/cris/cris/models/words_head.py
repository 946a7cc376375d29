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
_NO_LOGIT = -1e4  # of a probability of 0, and finite


@MODELS.register_module()
class RegionWordsHead(nn.Module):
    """Two auxiliary losses for a text encoder trained from scratch.

    With the losses of masks alone, such an encoder is slow to learn words for
    shapes and places: after training in which colours were learnt, its
    sentence feature separated neither squares from stars nor left from right.

    * ``loss_region``: the mean feature of a referent's pixels and the mean
      embedding of its expression's tokens are matched among all of the batch:
      cross entropy both ways, as in CLIP (arXiv 2103.00020). Identical
      expressions are not negatives of each other. Expressions without a
      referent do not count.
    * ``loss_sentence``: the sentence feature predicts which of the batch's
      tokens its expression has (cross entropy, bag of words).

    The batch is that of one process. Inference does not need this head, and
    published weights leave it out.

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

    def forward(self, features: Sequence[Tensor], *, sentence: Tensor,
                tokens: Tensor, masks: Sequence[Tensor],
                embedding: nn.Module) -> dict[str, Tensor]:
        """Losses of a batch, scalars by name.

        Args:
            features (Sequence[Tensor]): p3 and p4, ``(B, C, h, w)``.
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
            embedded = embedding(tokens).float()  # (E, L, D)
            return {
                'loss_region': self.loss_weight * self._region_loss(
                    regions, exists, tokens, is_word, embedded),
                'loss_sentence': self.loss_weight * self._sentence_loss(
                    sentence.float(), tokens, is_word, embedded)}

    # No indexing by masks, which would make a GPU wait for the CPU.

    def _region_loss(self, regions: Tensor, exists: Tensor, tokens: Tensor,
                     is_word: Tensor, embedded: Tensor) -> Tensor:
        words = (embedded * is_word[..., None]).sum(1) / (
            is_word.sum(1, keepdim=True).clamp(min=1))
        regions = F.normalize(self.region_proj(regions), dim=1)
        words = F.normalize(self.words_proj(words), dim=1)
        out = (tokens[:, None] == tokens).all(2) | ~exists | ~exists[:, None]
        out.fill_diagonal_(False)
        cosines = (regions @ words.T / _TEMPERATURE).masked_fill(
            out, -torch.inf)
        own = torch.arange(len(tokens), device=tokens.device)
        losses = (F.cross_entropy(cosines, own, reduction='none')
                  + F.cross_entropy(cosines.T, own, reduction='none')) / 2
        return (losses * exists).sum() / exists.sum().clamp(min=1)

    def _sentence_loss(self, sentence: Tensor, tokens: Tensor, is_word: Tensor,
                       embedded: Tensor) -> Tensor:
        tokens, real = tokens.flatten(), is_word.flatten()  # (N, ), N = E * L
        same = (tokens[:, None] == tokens) & real
        first = real & ~same.tril(-1).any(1)  # each word of the batch once
        has = (same.view(*is_word.shape, -1) & is_word[..., None]).any(1)
        has = has & first  # (E, N)
        logits = _SCALE * (
            self.sentence_proj(sentence) @ embedded.flatten(0, 1).T)
        log_shares = logits.masked_fill(~first, _NO_LOGIT).log_softmax(1)
        wanted = has / has.sum(1, keepdim=True).clamp(min=1)
        return -(log_shares * wanted).sum(1).mean()


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
