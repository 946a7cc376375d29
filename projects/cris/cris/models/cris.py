# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""CRIS: CLIP-driven referring image segmentation (arXiv 2111.15174).

Shapes: B images of H x W pixels with K expressions each, E of them in all;
L tokens.
"""

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from cris.geometry import unletterbox

from .layers import in_autocast

ImageFeatures = tuple[Tensor, Tensor, Tensor]

# Expressions that are decoded at once in evaluation: on a CPU the maps of more
# than four in fp32, or eight in bf16, leave its cache and take longer each.
_CPU_BYTES, _GPU_EXPRESSIONS = 16, 32


@MODELS.register_module()
class CRIS(BaseSegmentor):
    """Segments what an expression refers to (paper figure 3).

    The image side is computed once per image however many expressions ask
    about it, in training and in evaluation alike.

    Args:
        backbone (dict): Config of the image and text encoders.
        neck (dict): Config of the cross-modal feature pyramid.
        decode_head (dict): Config of the decoder head.
        data_preprocessor (dict, optional): Config of the preprocessor.
        init_cfg (dict, optional): Initialisation config, e.g.
            ``dict(type='Pretrained', checkpoint=FILE)``.
    """

    def __init__(self,
                 backbone: dict,
                 neck: dict,
                 decode_head: dict,
                 data_preprocessor: dict | None = None,
                 init_cfg: dict | None = None):
        if isinstance(data_preprocessor, dict):
            # mmengine finds mmseg's preprocessor only in mmseg's scope.
            data_preprocessor = MODELS.build(data_preprocessor)
        super().__init__(
            data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck)
        self.decode_head = MODELS.build(decode_head)

    def predict_logits(self,
                       images: Tensor,
                       tokens: Tensor,
                       image_index: Tensor | None = None) -> Tensor:
        """Logits of every expression at a quarter of the images' size.

        Args:
            images (Tensor): Normalised images, ``(B, 3, H, W)``; H and W are
                multiples of 32.
            tokens (Tensor): Token ids, ``(E, L)``.
            image_index (Tensor, optional): Whose image an expression belongs
                to, ``(E,)`` of int64. None stands for one expression per
                image, E == B.

        Returns:
            Tensor: ``(E, 1, H/4, W/4)``.

        Raises:
            ValueError: If H or W is not a multiple of 32, L is longer than
                the text encoder's context, or E does not fit image_index.
        """
        return self.answer(self.encode_image(images), tokens, image_index)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """What the answers to any number of expressions share.

        Args:
            images (Tensor): Normalised images, ``(B, 3, H, W)``; H and W are
                multiples of 32.

        Returns:
            tuple[Tensor]: p3, p4, p5, the neck's projections, for
            :meth:`answer`.

        Raises:
            ValueError: If H or W is not a multiple of 32.
        """
        # Batch statistics of channels-last maps are less exact on a CPU, and
        # Adam's first steps, whose size does not depend on the gradients',
        # make that a hundred times as much: training in fp32 would no longer
        # repeat the official losses.
        if not self.training or in_autocast(images.device):
            images = images.contiguous(memory_format=torch.channels_last)
        c3, c4, c5 = self.backbone.encode_image(images)
        return self.neck.project(c3, c4, c5)

    def encode_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Words and sentence, see :meth:`CLIPBackbone.encode_text`."""
        return self.backbone.encode_text(tokens)

    def answer(self,
               features: ImageFeatures,
               tokens: Tensor,
               image_index: Tensor | None = None) -> Tensor:
        """Logits of every expression, from images that are encoded already.

        Args:
            features (tuple[Tensor]): From :meth:`encode_image`.
            tokens (Tensor): Token ids, ``(E, L)``.
            image_index (Tensor, optional): Whose image an expression belongs
                to, ``(E,)`` of int64. None stands for one expression per
                image, E == B.

        Returns:
            Tensor: ``(E, 1, H/4, W/4)``.

        Raises:
            ValueError: If L is longer than the text encoder's context, or E
                does not fit image_index.
        """
        image_index = _checked_index(image_index, tokens, len(features[0]))
        words, sentence = self.encode_text(tokens)
        asked = (words, sentence, tokens, image_index)
        if self.training:
            return self.decode(features, *asked)
        if tokens.device.type == 'cpu':
            at_once = _CPU_BYTES // features[0].element_size()
        else:
            at_once = _GPU_EXPRESSIONS
        return torch.cat([
            self.decode(features, *some) for some in zip(
                *(x.split(at_once) for x in asked), strict=True)
        ])

    def decode(self, features: ImageFeatures, words: Tensor, sentence: Tensor,
               tokens: Tensor, image_index: Tensor) -> Tensor:
        """What :meth:`answer` does with encoded expressions.

        Args:
            features (tuple[Tensor]): From :meth:`encode_image`.
            words (Tensor): ``(E, L, D)``, like the next of the backbone's
                ``encode_text``.
            sentence (Tensor): ``(E, C)``.
            tokens (Tensor): Token ids, ``(E, L)``; 0 is padding.
            image_index (Tensor): Whose image an expression belongs to,
                ``(E,)`` of int64.

        Returns:
            Tensor: ``(E, 1, H/4, W/4)``.
        """
        p3, p4, p5 = (feature[image_index] for feature in features)
        fused = self.neck.fuse(p3, p4, p5, sentence=sentence)
        return self.decode_head(
            fused, words=words, sentence=sentence, padding_mask=tokens == 0)

    def loss(self, inputs: Tensor,
             data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            inputs (Tensor): Normalised images, ``(B, 3, H, W)``.
            data_samples (list[SegDataSample]): With ``tokens (K, L)`` and
                ``gt_sem_seg.data (K, H, W)`` in [0, 1].

        Returns:
            dict: Losses by name.

        Raises:
            ValueError: If there is one expression alone, of which batch
                normalisation has no statistics.
        """
        try:
            logits = self._forward(inputs, data_samples)
        except ValueError as error:
            if 'more than 1 value per channel' not in str(error):
                raise
            raise ValueError(
                'batch normalisation has no statistics of a single '
                'expression: train_dataloader.batch_size or '
                'train_dataloader.dataset.num_expressions must be 2 or more'
            ) from error
        return self.decode_head.loss(
            logits, [sample.gt_sem_seg.data for sample in data_samples])

    def predict(self, inputs: Tensor,
                data_samples: list[SegDataSample]) -> list[SegDataSample]:
        """Masks at the images' original size.

        Args:
            inputs (Tensor): Normalised, letterboxed images, (B, 3, H, W).
            data_samples (list[SegDataSample]): With ``tokens (K, L)`` and
                ``ori_shape (h, w)``.

        Returns:
            list[SegDataSample]: The same samples with ``pred_sem_seg.data``,
            ``(K, h, w)`` of bool, and ``seg_logits.data``, ``(K, h, w)``
            of float32: the probabilities (mmseg, too, keeps them there for
            models of a single class).
        """
        logits = self._forward(inputs, data_samples)
        counts = [len(sample.tokens) for sample in data_samples]
        for sample, own in zip(
                data_samples, logits.split(counts), strict=True):
            prob = self.original_size(own, sample.ori_shape[:2])
            sample.seg_logits = PixelData(data=prob)
            sample.pred_sem_seg = PixelData(
                data=prob > self.decode_head.threshold)
        return data_samples

    def original_size(self, logits: Tensor, ori_shape: tuple[int,
                                                            int]) -> Tensor:
        """Probabilities of one picture's expressions at its original size.

        They are resized to the size of the input (bicubic) and taken back to
        the original picture (:func:`cris.geometry.unletterbox`), as in the
        official code.

        Args:
            logits (Tensor): ``(K, 1, H/4, W/4)``.
            ori_shape (tuple[int, int]): Height and width of the picture.

        Returns:
            Tensor: ``(K, h, w)`` of float32 on the CPU.

        Raises:
            ValueError: If a logit is infinite or no number.
        """
        if not logits.isfinite().all():
            raise ValueError('the model answered with values that are no '
                             'numbers: its weights are broken, or too large '
                             'for fp16')
        height, width = logits.shape[-2:]
        probs = F.interpolate(
            logits.float().sigmoid(), (4 * height, 4 * width),
            mode='bicubic',
            align_corners=self.decode_head.align_corners)
        return torch.from_numpy(
            unletterbox(probs[:, 0].detach().cpu().numpy(), *ori_shape))

    def _forward(self, inputs: Tensor,
                 data_samples: list[SegDataSample]) -> Tensor:
        if data_samples is None:
            raise TypeError('CRIS needs data_samples with their tokens; of '
                            'images and tokens alone: predict_logits')
        counts = [len(sample.tokens) for sample in data_samples]
        tokens = torch.cat([sample.tokens for sample in data_samples])
        image_index = torch.arange(len(counts)).repeat_interleave(
            torch.tensor(counts))
        return self.predict_logits(inputs, tokens,
                                   image_index.to(inputs.device))

    def extract_feat(self, inputs: Tensor):
        """Feature maps c3, c4, c5 of the images."""
        return self.backbone.encode_image(inputs)

    def encode_decode(self, inputs: Tensor,
                      batch_data_samples: list[SegDataSample]) -> Tensor:
        """Logits at the size of the inputs, ``(E, 1, H, W)``."""
        logits = self._forward(inputs, batch_data_samples)
        return F.interpolate(
            logits,
            inputs.shape[-2:],
            mode='bicubic',
            align_corners=self.decode_head.align_corners)


def _checked_index(image_index: Tensor | None, tokens: Tensor,
                   num_images: int) -> Tensor:
    if image_index is None:
        if len(tokens) != num_images:
            raise ValueError(
                f'{len(tokens)} expressions for {num_images} images: '
                'give image_index, which says whose image each belongs to')
        return torch.arange(num_images, device=tokens.device)
    if image_index.shape != tokens.shape[:1]:
        raise ValueError(
            f'image_index has shape {tuple(image_index.shape)}, but there are '
            f'{len(tokens)} expressions: it needs one entry for each')
    return image_index
