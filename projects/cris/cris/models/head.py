# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Decode head: from fused features to logits, and their losses.

Shapes: E expressions of the K of each image; h x w pixels, at stride 16 in
the paper, of images of H x W; L words of D channels; C channels of the fused
features; C_s channels of the sentence feature.
"""
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor, nn

from .decoder import VisionLanguageDecoder
from .existence import ExistenceClassifier
from .projector import TextToPixelProjector

_NO_LOGIT = -1e4  # of a probability of 0, and finite


class Answer(NamedTuple):
    """What the model says about E expressions.

    Args:
        logits (Tensor): Of the pixels, ``(E, 1, 4h, 4w)``.
        existence (Tensor, optional): Logits of there being a referent, fp32
            ``(E,)``; None if the head has no such classifier.
    """
    logits: Tensor
    existence: Tensor | None = None


@MODELS.register_module()
class VisionLanguageDecoderHead(nn.Module):
    """Vision-language decoder, text-to-pixel projector and their loss.

    Args:
        in_channels (int): Channels of the fused features, C.
        word_channels (int): Channels of the word features.
        sentence_channels (int): Channels of the sentence feature.
        num_layers (int): Decoder layers; 0 leaves the decoder out (the
            paper's ablation).
        num_heads (int): Attention heads.
        feedforward_channels (int): Hidden channels of the feed-forward
            network.
        dropout (float): Of the decoder's layers.
        with_cp (bool): Compute the decoder's layers again in the backward
            pass instead of keeping their activations: the same gradients
            with a third less memory, for 4 % more work.
        kernel_size (int): Side of the kernel made from the sentence, odd.
        text_kernel (bool): Make the kernel from the sentence. If False, one
            learnt kernel serves all sentences (the paper's ablation of the
            contrastive loss).
        threshold (float): Pixels with a higher probability belong to the
            referent.
        align_corners (bool): How probabilities are resized to the size of the
            input; True in the official code.
        target_resize (str): How masks are resized to the size of the logits,
            ``'nearest'``, as in the official code, or ``'area'``. The official
            pair of nearest and align_corners=True shifts masks by up to 3
            input pixels to the right and down. This matters little at 416
            pixels, but at 160 use ``'area'`` with align_corners=False, which
            has no shift.
        loss_decode (dict | list[dict]): Config of the loss, or of several
            that are added up, e.g. mmseg's ``dict(type='DiceLoss')`` too.
            They are called with logits and soft targets of one shape.
        existence (bool): Also say whether an expression has a referent, see
            :class:`cris.models.existence.ExistenceClassifier`.
        existence_threshold (float, optional): An expression whose probability
            of having a referent is below it gets an empty mask. None means
            the threshold stored with the checkpoint, or 0.5 without one.
        existence_loss_weight (float): Weight of the binary cross entropy of
            existence.

    Raises:
        ValueError: If in_channels is not a multiple of 4, kernel_size is
            even, target_resize is unknown, loss_decode holds anything but
            dicts, or existence_threshold is not in [0, 1].
    """

    def __init__(self, in_channels: int, word_channels: int, *,
                 sentence_channels: int, num_layers: int = 3,
                 num_heads: int = 8, feedforward_channels: int = 2048,
                 dropout: float = 0.1, with_cp: bool = False,
                 kernel_size: int = 3, text_kernel: bool = True,
                 threshold: float = 0.35, align_corners: bool = True,
                 target_resize: str = 'nearest',
                 loss_decode: dict | Sequence[dict] = dict(
                     type='TextToPixelContrastiveLoss'),
                 existence: bool = False,
                 existence_threshold: float | None = None,
                 existence_loss_weight: float = 1.0):
        super().__init__()
        if in_channels % 4:
            raise ValueError(
                f'in_channels={in_channels}: the 2-D sine position needs a '
                'multiple of 4')
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size={kernel_size} must be odd')
        if target_resize not in ('nearest', 'area'):
            raise ValueError(f"target_resize={target_resize!r} must be "
                             "'nearest' or 'area'")
        if existence_threshold is not None and not (
                0 <= existence_threshold <= 1):
            raise ValueError(f'existence_threshold={existence_threshold} must '
                             'be in [0, 1]')
        self.threshold = threshold
        self.align_corners = align_corners
        self.target_resize = target_resize
        self.decoder: nn.Module | None = None
        if num_layers > 0:
            self.decoder = VisionLanguageDecoder(
                in_channels, num_layers=num_layers,
                word_channels=word_channels, num_heads=num_heads,
                feedforward_channels=feedforward_channels, dropout=dropout,
                with_cp=with_cp)
        self.projector = TextToPixelProjector(
            in_channels, sentence_channels=sentence_channels,
            kernel_size=kernel_size, text_kernel=text_kernel)
        if isinstance(loss_decode, dict):
            loss_decode = [loss_decode]
        if not all(isinstance(cfg, dict) for cfg in loss_decode):
            raise ValueError(f'loss_decode={loss_decode} must be a dict or a '
                             'list of them; several go into a config file')
        self.loss_decode = nn.ModuleList(map(MODELS.build, loss_decode))
        self.existence: nn.Module | None = None
        self.existence_threshold = float(
            0.5 if existence_threshold is None else existence_threshold)
        self._threshold_is_given = existence_threshold is not None
        #: See :func:`cris.evaluation.confidence.answer_confidence`.
        self.calibration: dict | None = None
        self.existence_loss_weight = existence_loss_weight
        if existence:
            self.existence = ExistenceClassifier(
                in_channels, sentence_channels=sentence_channels)

    def set_calibration(self, calibration: dict) -> None:
        """Use what is stored with a checkpoint.

        Args:
            calibration (dict): As of
                :func:`cris.io.calibration.check_calibration`. A threshold
                that the constructor was given has priority over its.
        """
        self.calibration = calibration
        if not self._threshold_is_given:
            self.existence_threshold = calibration['existence_threshold']

    def forward(self, fused: Tensor, *, words: Tensor, sentence: Tensor,
                padding_mask: Tensor) -> Tensor | Answer:
        """Logits of the pixels, ``(E, 1, 4h, 4w)``; with ``existence`` an
        Answer, which has those of existence, too.

        Args:
            fused (Tensor): ``(E, C, h, w)``.
            words (Tensor): ``(E, L, D)``.
            sentence (Tensor): ``(E, C_s)``.
            padding_mask (Tensor): True where a word is padding, ``(E, L)``.
        """
        if self.decoder is not None:
            fused = self.decoder(fused, words=words, padding_mask=padding_mask)
        logits = self.projector(fused, sentence)
        if self.existence is None:
            return logits
        return Answer(logits, self.existence(fused, sentence, logits))

    def loss(self, logits: Tensor, masks: list[Tensor],
             ignore: list[Tensor] | None = None,
             existence: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of a batch, scalars by name.

        Args:
            logits (Tensor): ``(E, 1, 4h, 4w)``.
            masks (list[Tensor]): Masks of each image's expressions,
                ``(K, H, W)`` in [0, 1]; the K add up to E.
            ignore (list[Tensor], optional): Pixels that do not count, bool,
                of the same shapes.
            existence (Tensor, optional): Logits of existence, ``(E,)``.
        """
        masks = torch.cat(masks)[:, None].float()  # (E, 1, H, W)
        target = F.interpolate(
            masks, logits.shape[-2:], mode=self.target_resize)
        options = {}
        if ignore is not None:
            ignored = F.interpolate(
                torch.cat(ignore)[:, None].float(), logits.shape[-2:],
                mode='nearest') > 0
            options['ignore'] = ignored
            # For losses that do not know the argument: surely background.
            logits = logits.masked_fill(ignored, _NO_LOGIT)
            target = target.masked_fill(ignored, 0)
        losses: dict[str, Tensor] = {}
        for loss in self.loss_decode:
            name = loss.loss_name
            losses[name] = losses.get(name, 0) + loss(
                logits, target, **options)
        if existence is not None:
            # Of the whole masks: a small referent may vanish in the target.
            exists = (masks > 0).flatten(1).any(1).float()
            losses['loss_existence'] = self.existence_loss_weight * (
                F.binary_cross_entropy_with_logits(existence, exists))
        return losses
