# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Whether an expression has a referent at all.

The paper's model always answers; ReLA (arXiv 2306.00968) has such a
classifier, of its region features.

Shapes: E expressions; N pixels at stride 16 of C channels; C_s channels of
the sentence feature; q queries.
"""
import torch
from torch import Tensor, nn


class ExistenceClassifier(nn.Module):
    """One logit per expression, from the decoded pixels and the sentence.

    Queries made from the sentence attend to the pixels. What they find, the
    sentence and the largest logit of a pixel go through a small MLP.

    Args:
        in_channels (int): C.
        sentence_channels (int): C_s.
        num_queries (int): q.
    """

    def __init__(self, in_channels: int, *, sentence_channels: int,
                 num_queries: int):
        super().__init__()
        self.num_queries = num_queries
        self.query_proj = nn.Linear(
            sentence_channels, num_queries * in_channels)
        self.mlp = nn.Sequential(
            nn.Linear(num_queries * in_channels + sentence_channels + 1,
                      in_channels),
            nn.ReLU(inplace=True),
            nn.Linear(in_channels, 1))

    def forward(self, decoded: Tensor, sentence: Tensor,
                logits: Tensor) -> Tensor:
        """From pixels ``(E, C, h, w)``, sentences ``(E, C_s)`` and logits
        ``(E, 1, 4h, 4w)`` to logits ``(E,)``, always in fp32.
        """
        with torch.autocast(decoded.device.type, enabled=False):
            pixels, sentence = decoded.float().flatten(2), sentence.float()
            queries = self.query_proj(sentence).unflatten(
                1, (self.num_queries, -1))  # (E, q, C)
            scores = queries @ pixels * pixels.shape[1]**-0.5  # (E, q, N)
            found = scores.softmax(dim=2) @ pixels.transpose(1, 2)
            peak = logits.float().amax((2, 3))  # (E, 1)
            return self.mlp(torch.cat(
                [found.flatten(1), sentence, peak], dim=1))[:, 0]
