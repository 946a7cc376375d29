# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Whether an expression has a referent at all.

The paper's model always answers; ReLA (arXiv 2306.00968) has a classifier for
it, too.

Shapes: E expressions; N pixels of C channels; C_s channels of the sentence
feature.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HIDDEN = 256  # channels of the MLP


class ExistenceClassifier(nn.Module):
    """One logit per expression, from the decoded pixels and the sentence.

    A small MLP sees the pixels' mean where the mask would be and over the
    picture, the sentence, and the largest and the mean logit of the mask. Its
    loss trains the MLP alone: masks are those of a model without it.

    Args:
        in_channels (int): C.
        sentence_channels (int): C_s.
    """

    def __init__(self, in_channels: int, *, sentence_channels: int):
        super().__init__()
        channels = 2 * in_channels + sentence_channels + 2
        self.mlp = nn.Sequential(
            nn.BatchNorm1d(channels),  # they differ in scale
            nn.Linear(channels, _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN, 1))

    def forward(self, decoded: Tensor, sentence: Tensor,
                logits: Tensor) -> Tensor:
        """From pixels ``(E, C, h, w)``, sentences ``(E, C_s)`` and logits
        ``(E, 1, 4h, 4w)`` to logits ``(E,)``, always in fp32.
        """
        # Detached: with its gradient the rest made worse masks and this logit
        # no better.
        pixels = decoded.detach().float().flatten(2)
        sentence, logits = sentence.detach().float(), logits.detach().float()
        with torch.autocast(decoded.device.type, enabled=False):
            share = F.avg_pool2d(logits, 4).flatten(2).softmax(2)  # (E, 1, N)
            found = (pixels * share).sum(2)
            return self.mlp(torch.cat(
                [found, pixels.mean(2), sentence,
                 logits.amax((2, 3)), logits.mean((2, 3))], dim=1))[:, 0]
