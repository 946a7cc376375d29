# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class TextToPixelContrastiveLoss(nn.Module):
    """Pulls the referent's pixels to the sentence and pushes the others away.

    With z the response of a pixel to the kernel made from the sentence, the
    loss is -log sigmoid(z) on the referent and -log(1 - sigmoid(z)) elsewhere,
    averaged over all pixels (paper eq. 8-10). That is binary cross entropy
    with logits. It is always computed in fp32.

    Args:
        loss_weight (float): Defaults to 1.0.
    """
    loss_name = 'loss_contrastive'

    def __init__(self, loss_weight: float = 1.0):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, logits: Tensor, target: Tensor,
                ignore: Tensor | None = None) -> Tensor:
        """Loss of a batch, a scalar.

        Args:
            logits (Tensor): z, ``(E, 1, h, w)``.
            target (Tensor): The referent's share of each pixel, in [0, 1], of
                the same shape.
            ignore (Tensor, optional): Pixels that do not count, bool, of the
                same shape.
        """
        if ignore is not None:
            logits, target = logits[~ignore], target[~ignore]
        return self.loss_weight * F.binary_cross_entropy_with_logits(
            logits.float(), target.float())
