# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""CRIS: CLIP-driven referring image segmentation (arXiv 2111.15174).

Shapes: B images of H x W pixels with K expressions each, E expressions in
total; L tokens. D is the width of the text transformer, C the dimension of
CLIP's joint embedding space. In :meth:`CRIS.predict`, h x w is an image's
original size.
"""
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.structures import PixelData
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor

from cris.geometry import unletterbox

from .clip_backbone import CLIPBackbone
from .head import Answer, VisionLanguageDecoderHead
from .neck import CrossModalFPN

ImageFeatures = tuple[Tensor, Tensor, Tensor]

_GROUND_TRUTH = ('gt_sem_seg', 'gt_ignore')


@MODELS.register_module()
class CRIS(BaseSegmentor):
    """Segments what an expression refers to (paper figure 3).

    The image side runs once per image, however many expressions there are
    for it, in training and in evaluation.

    Args:
        backbone (dict): Config of the image and text encoders.
        neck (dict): Config of the cross-modal feature pyramid; its
            ``in_channels`` and ``sentence_channels`` may be ``'auto'``: the
            backbone's.
        decode_head (dict): Config of the decoder head; the same holds for
            its ``word_channels`` and ``sentence_channels``.
        data_preprocessor (dict, optional): Config of the preprocessor.
        frozen (Sequence[str]): Parts that are not trained, and stay in eval
            mode, e.g. ``['neck', 'decode_head.decoder']`` to adapt a whole
            CRIS. Those of the backbone have options of its own.
        init_cfg (dict, optional): Initialisation config, e.g.
            ``dict(type='Pretrained', checkpoint=FILE)``.
        auxiliary_head (dict, optional): Config of a head with additional
            losses, used in training only:
            :class:`.words_head.RegionWordsHead`. Its channels, too, may be
            ``'auto'``: the neck's and the backbone's.

    Raises:
        ValueError: If there is no part of a name in ``frozen``.
    """
    #: Expressions decoded at once in evaluation, which bounds the memory.
    expressions_at_once = 32
    #: Autocast to this type in inference; optimize_for_inference sets it.
    inference_dtype: torch.dtype | None = None
    #: Pixels of the input for a pixel of the logits.
    logit_stride = 4
    _frozen: tuple[str, ...] = ()

    def __init__(self, backbone: dict, neck: dict, decode_head: dict,
                 data_preprocessor: dict | None = None,
                 frozen: Sequence[str] = (),
                 init_cfg: dict | None = None, *,
                 auxiliary_head: dict | None = None):
        if isinstance(data_preprocessor, dict):
            # mmengine finds mmseg's preprocessor only in mmseg's scope.
            data_preprocessor = MODELS.build(data_preprocessor)
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(self._with_channels(neck))
        self.decode_head = MODELS.build(self._with_channels(decode_head))
        self.auxiliary_head = None if auxiliary_head is None else (
            MODELS.build(self._with_channels(
                auxiliary_head, in_channels=sum(self.neck.channels[:2]))))
        if isinstance(self.backbone, CLIPBackbone):
            self.logit_stride = self.backbone.strides[1] // 4
        self._frozen = tuple(frozen)
        for name in self._frozen:
            try:
                self.get_submodule(name).requires_grad_(False)
            except AttributeError as error:
                raise ValueError(f'frozen={frozen}: {error}') from error

    def train(self, mode: bool = True) -> 'CRIS':
        """As of nn.Module; what is frozen stays in eval mode."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self

    def _with_channels(self, cfg: dict, **known) -> dict:
        if 'auto' not in cfg.values():  # a backbone need not know them
            return cfg
        words, sentence = self.backbone.text_channels
        found = dict(in_channels=self.backbone.image_channels,
                     word_channels=words, sentence_channels=sentence) | known
        return {key: found[key] if key in found and value == 'auto' else value
                for key, value in cfg.items()}

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        """Depth and number of depths: the neck and the head, the deepest, are
        trained at the full rate, the backbone's layers at decaying ones.
        """
        if param_name.startswith('backbone.'):
            return self.backbone.get_layer_depth(param_name, 'backbone.')
        return 0, 1

    def predict_logits(self, images: Tensor, tokens: Tensor,
                       image_index: Tensor | None = None) -> Tensor:
        """Logits of every expression at a quarter of the images' size.

        Args:
            images (Tensor): Normalised images, ``(B, 3, H, W)``; H and W are
                multiples of 32.
            tokens (Tensor): Token ids, ``(E, L)``; 0 is padding.
            image_index (Tensor, optional): Index of each expression's image,
                int64 ``(E,)``. None means one expression per image, E == B.

        Returns:
            Tensor: ``(E, 1, H/s, W/s)``, s is ``logit_stride``.

        Raises:
            ValueError: If H or W is not a multiple of 32, L is longer than
                the text encoder's context, or E does not fit image_index.
        """
        features = self.encode_image(images)
        return self.answer(features, tokens, image_index).logits

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Features p3, p4, p5 of images ``(B, 3, H, W)``, which all their
        expressions share, see :meth:`CrossModalFPN.project`.
        """
        with self._autocast(images.device):
            if in_autocast(images.device):  # there channels_last is fastest
                images = images.contiguous(memory_format=torch.channels_last)
            c3, c4, c5 = self.backbone(images)
            return self.neck.project(c3, c4, c5)

    def encode_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Words ``(E, L, D)`` and sentences ``(E, C)`` of tokens ``(E, L)``,
        see :meth:`CLIPBackbone.encode_text`.
        """
        return self.backbone.encode_text(tokens)

    def decode(self, features: ImageFeatures, words: Tensor, sentence: Tensor,
               tokens: Tensor, image_index: Tensor) -> Answer:
        """From image and text features to logits."""
        p3, p4, p5 = (feature[image_index] for feature in features)
        fused = self.neck.fuse(p3, p4, p5, sentence=sentence)
        found = self.decode_head(
            fused, words=words, sentence=sentence, padding_mask=tokens == 0)
        return found if isinstance(found, Answer) else Answer(found)

    def answer(self, features: ImageFeatures, tokens: Tensor,
               image_index: Tensor | None = None) -> Answer:
        """Logits of pixels, as :meth:`predict_logits`, and of existence, of
        images that :meth:`encode_image` has encoded.
        """
        image_index = _checked_index(image_index, tokens, len(features[0]))
        with self._autocast(tokens.device):
            words, sentence = self.encode_text(tokens)
            inputs = (words, sentence, tokens, image_index)
            if self.training:
                return self.decode(features, *inputs)
            parts = zip(
                *(x.split(self.expressions_at_once) for x in inputs),
                strict=True)
            answers = [self.decode(features, *part) for part in parts]
            return Answer(*(
                None if parts[0] is None else torch.cat(parts)
                for parts in zip(*answers, strict=True)))

    def loss(self, inputs: Tensor,
             data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            inputs (Tensor): Normalised images, ``(B, 3, H, W)``.
            data_samples (list[SegDataSample]): With ``tokens (K, L)`` and
                ``gt_sem_seg.data (K, H, W)`` in [0, 1]; perhaps with
                ``gt_ignore.data``, bool, pixels that do not count.

        Returns:
            dict: Losses by name.

        Raises:
            ValueError: If the batch has a single expression, for which batch
                norm has no statistics.
        """
        expressions = sum(len(sample.tokens) for sample in data_samples)
        if self.neck.training and expressions == 1:
            raise ValueError(
                'batch norm cannot train on a single expression: '
                'train_dataloader.batch_size or '
                'train_dataloader.dataset.num_expressions must be 2 or more')
        masks = [sample.gt_sem_seg.data for sample in data_samples]
        ignore = None
        if any('gt_ignore' in sample for sample in data_samples):
            ignore = [
                sample.gt_ignore.data if 'gt_ignore' in sample
                else torch.zeros_like(mask, dtype=torch.bool)
                for sample, mask in zip(data_samples, masks, strict=True)]
        losses = {}
        if self.auxiliary_head is None:
            answer = self._answer(inputs, data_samples)
        else:
            tokens, image_index = _expressions(data_samples)
            features = self.encode_image(inputs)
            words, sentence = self.encode_text(tokens)
            answer = self.decode(
                features, words, sentence, tokens, image_index)
            losses = self.auxiliary_head(
                features[:2], sentence=sentence, tokens=tokens,
                masks=masks if ignore is None else [
                    mask.masked_fill(ignored, 0) for mask, ignored in zip(
                        masks, ignore, strict=True)],
                embedding=self.backbone.text.token_embedding)
        return losses | self.decode_head.loss(
            answer.logits, masks, ignore, answer.existence)

    def predict(self, inputs: Tensor,
                data_samples: list[SegDataSample]) -> list[SegDataSample]:
        """Masks at the images' original size.

        Args:
            inputs (Tensor): Normalised, letterboxed images, (B, 3, H, W).
            data_samples (list[SegDataSample]): With ``tokens (K, L)`` and
                ``ori_shape (h, w)``.

        Returns:
            list[SegDataSample]: The same samples with ``pred_sem_seg.data``,
            bool ``(K, h, w)``, and ``seg_logits.data``, float32 ``(K, h, w)``,
            which holds probabilities, as in mmseg's single-class models. If
            the head has a classifier of existence, also with ``existence``,
            float32 ``(K,)``, probabilities; where one is below the metainfo
            ``existence_threshold``, the mask is empty. The metainfo
            ``calibration`` is the head's, if it has one.
        """
        answer = self._answer(inputs, data_samples)
        counts = [len(sample.tokens) for sample in data_samples]
        for sample, logits in zip(
                data_samples, answer.logits.split(counts), strict=True):
            prob = self.original_size(logits, sample.ori_shape[:2])
            sample.seg_logits = PixelData(data=prob)
            sample.pred_sem_seg = PixelData(
                data=prob > self.decode_head.threshold)
        if answer.existence is not None:
            self._abstain(data_samples, answer.existence.split(counts))
        return data_samples

    def _abstain(self, data_samples: list[SegDataSample],
                 existence: Sequence[Tensor]) -> None:
        """Empty the masks of expressions that probably have no referent."""
        threshold = self.decode_head.existence_threshold
        for sample, logits in zip(data_samples, existence, strict=True):
            sample.existence = logits.detach().sigmoid().cpu()
            sample.set_metainfo(dict(
                existence_threshold=threshold,
                calibration=self.decode_head.calibration))
            sample.pred_sem_seg.data[sample.existence < threshold] = False

    def val_step(self, data: dict) -> list[SegDataSample]:
        """:meth:`predict` of a batch. Ground truth stays on the CPU: it is of
        the original size, and only scores need it.
        """
        samples = data.get('data_samples') or []
        truth = [{key: sample.get(key) for key in _GROUND_TRUTH
                  if key in sample} for sample in samples]
        for sample, fields in zip(samples, truth, strict=True):
            for key in fields:
                delattr(sample, key)
        predicted = super().val_step(data)
        for holders in (samples, predicted):
            for sample, fields in zip(holders, truth, strict=True):
                sample.set_data(fields)
        return predicted

    def test_step(self, data: dict) -> list[SegDataSample]:
        """As :meth:`val_step`."""
        return self.val_step(data)

    def original_size(self, logits: Tensor,
                      ori_shape: tuple[int, int]) -> Tensor:
        """Probabilities at the original size of one image.

        They are resized to the input size (bicubic) and mapped back to the
        original image (:func:`cris.geometry.unletterbox`), as in the official
        code.

        Args:
            logits (Tensor): ``(K, 1, H/s, W/s)``, s is ``logit_stride``.
            ori_shape (tuple[int, int]): Height and width of the image.

        Returns:
            Tensor: float32 ``(K, h, w)`` on the CPU.

        Raises:
            ValueError: If a logit is infinite or NaN.
        """
        if not logits.isfinite().all():
            raise ValueError('the model returned infinite or NaN logits: its '
                             'weights are broken, or too large for fp16')
        probs = self._upsample(logits.float().sigmoid())
        return torch.from_numpy(
            unletterbox(probs[:, 0].detach().cpu().numpy(), *ori_shape))

    def extract_feat(self, inputs: Tensor) -> ImageFeatures:
        """Maps c3, c4, c5. BaseSegmentor demands this method and the next,
        which CRIS does not call.
        """
        return self.backbone(inputs)

    def encode_decode(self, inputs: Tensor,
                      batch_data_samples: list[SegDataSample]) -> Tensor:
        """Logits ``(E, 1, H, W)`` at the input size."""
        return self._upsample(self._forward(inputs, batch_data_samples))

    def _upsample(self, x: Tensor) -> Tensor:
        return F.interpolate(
            x, tuple(self.logit_stride * side for side in x.shape[-2:]),
            mode='bicubic', align_corners=self.decode_head.align_corners)

    def _forward(self, inputs: Tensor,
                 data_samples: list[SegDataSample]) -> Tensor:
        """Logits ``(E, 1, H/s, W/s)``, for ``forward(mode='tensor')``."""
        return self._answer(inputs, data_samples).logits

    def _answer(self, inputs: Tensor,
                data_samples: list[SegDataSample]) -> Answer:
        if data_samples is None:
            raise TypeError('CRIS needs data_samples with tokens; use '
                            'predict_logits for images and tokens alone')
        tokens, image_index = _expressions(data_samples)
        if self.decode_head.existence is None:
            # The public method, which others may have replaced.
            return Answer(self.predict_logits(inputs, tokens, image_index))
        return self.answer(self.encode_image(inputs), tokens, image_index)

    def _autocast(self, device: torch.device) -> AbstractContextManager:
        if self.inference_dtype is None:
            return nullcontext()
        return torch.autocast(device.type, self.inference_dtype)


def fold_batch_norm(model: CRIS) -> None:
    """Fold it into the convolutions before it, in place.

    Only where it is known to follow them: in the neck, the head and CLIP's
    ResNet. In other encoders a layer of this name may do more, or come first.
    """
    visual = getattr(model.backbone, 'visual', None)
    for part in (visual, model.neck, model.decode_head):
        if isinstance(part, (ModifiedResNet, CrossModalFPN,
                             VisionLanguageDecoderHead)):
            fuse_conv_bn(part)


def in_autocast(device: torch.device) -> bool:
    """Whether autocast is on for tensors of this device."""
    # Before torch 2.4 is_autocast_enabled takes no device.
    return (torch.is_autocast_cpu_enabled()
            if device.type == 'cpu' else torch.is_autocast_enabled())


def _expressions(data_samples: list[SegDataSample]) -> tuple[Tensor, Tensor]:
    """Tokens of all expressions, and the index of each one's image."""
    tokens = torch.cat([sample.tokens for sample in data_samples])
    image_index = torch.cat([
        tokens.new_full((len(sample.tokens), ), i)
        for i, sample in enumerate(data_samples)])
    return tokens, image_index


def _checked_index(image_index: Tensor | None, tokens: Tensor,
                   num_images: int) -> Tensor:
    if image_index is None:
        if len(tokens) != num_images:
            raise ValueError(
                f'{len(tokens)} expressions for {num_images} images: pass '
                'image_index, the index of the image of each expression')
        return torch.arange(num_images, device=tokens.device)
    if image_index.shape != tokens.shape[:1]:
        raise ValueError(
            f'image_index has shape {tuple(image_index.shape)}, but there are '
            f'{len(tokens)} expressions: it needs one entry for each')
    return image_index
