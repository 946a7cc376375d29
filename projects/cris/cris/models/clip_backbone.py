# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""CLIP's two encoders, with the image side kept spatial.

Shapes: B images of H x W pixels; E expressions of L tokens; D is the width of
the text transformer, C the dimension of CLIP's joint embedding space.
"""
from collections.abc import Sequence

import open_clip
import torch
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor

from cris._requirements import spare_multimodal

from .adapters import add_adapters, is_adapter, reset_adapters
from .clip_weights import read_clip_weights, tag_of
from .freezing import freeze_stages, keep_frozen_in_eval, layer_depth
from .image_encoders import (
    CLIP_ENCODERS,
    STRIDES,
    freeze_unused,
    keep_spatial,
    tap,
)

# In place of CLIP's image encoder, which is not used.
_NO_VISION = dict(image_size=32, patch_size=32, width=64, layers=1)


@MODELS.register_module()
class CLIPBackbone(BaseModule):
    """The image encoder and the text transformer of a CLIP of open_clip.

    Args:
        model_name (str, optional): A model of open_clip, e.g. ``'RN50'`` or
            ``'ViT-B-16'``, in place of the next three arguments.
        embed_dim (int, optional): Dimension of the joint embedding space.
        vision_cfg (dict, optional): open_clip's own keys, e.g.
            ``dict(image_size=224, layers=[3, 4, 6, 3], width=64)``.
        text_cfg (dict, optional): open_clip's own keys, e.g.
            ``dict(context_length=77, vocab_size=49408, width=512, heads=8,
            layers=12)``.
        image_encoder (dict, optional): Config of a module of any registry in
            place of CLIP's, e.g. ``dict(type='mmpretrain.ConvNeXt',
            arch='tiny', out_indices=(1, 2, 3))``. It returns maps
            ``(B, C, h, w)`` at these strides or, as a ViT, up to three of one
            size. Its own init_cfg gives its weights.
        strides (Sequence[int]): Of the three maps: 8, 16, 32 as in the paper,
            or 4, 8, 32 for small objects: the decoder then works at stride 8
            and the logits are at stride 2.
        out_indices (Sequence[int], optional): Up to three blocks of a ViT of
            open_clip, from 0, in ascending order, for the three maps; by
            default all are the last block's.
        quick_gelu (bool, optional): Use QuickGELU, as OpenAI's weights need
            it. By default as the weights of init_cfg need it, if they are a
            tag, else as the model's name says: for a name that OpenAI has.
        with_cp (bool): Compute the largest maps of the image encoder (the
            stem and first stage of a ResNet, each block of a ViT) again in
            the backward pass: for RN50 the same gradients with 0.1 GB less
            per image of 416 x 416 pixels in fp32, for 3 % more work.
        frozen_stages (int | str): The stem and this many stages of the image
            encoder are not trained, -1 for none: layers of a ResNet (5 is the
            attention pool), blocks of a ViT, stages of timm. ``'all'`` is all
            but ``connect``, which CLIP does not have; with image_encoder only
            -1 and ``'all'``, but for EfficientNetLite0.
        frozen_text (bool): The text transformer is not trained.
        peft (dict, optional): Adapters for what is not frozen by these two;
            the rest of both encoders is frozen then. ``dict(type='LoRA',
            r=16, ...)`` with arguments of peft.LoraConfig, see
            :func:`.adapters.add_adapters`.
        init_cfg (dict, optional): ``dict(type='Pretrained', checkpoint=...)``
            loads CLIP's weights from a file or a pretrained tag such as
            ``'openai'``, see :func:`.clip_weights.read_clip_weights`; with
            image_encoder only those of the text transformer.
            Nothing is loaded before ``init_weights()``.

    Attributes:
        image_channels (tuple[int]): Of the maps c3, c4, c5.
        strides (tuple[int]): Of the maps.
        text_channels (tuple[int]): Of words and sentences.

    Raises:
        ValueError: If the model is unknown, incompletely or contradictorily
            described, or cannot serve, or has no such stages or layers.
        ImportError: If adapters are wanted and peft is not installed.
    """

    def __init__(self, model_name: str | None = None,
                 embed_dim: int | None = None, vision_cfg: dict | None = None,
                 text_cfg: dict | None = None, *,
                 image_encoder: dict | None = None,
                 strides: Sequence[int] = STRIDES,
                 out_indices: Sequence[int] | None = None,
                 quick_gelu: bool | None = None,
                 with_cp: bool = False, frozen_stages: int | str = -1,
                 frozen_text: bool = False, peft: dict | None = None,
                 init_cfg: dict | None = None):
        super().__init__(init_cfg=init_cfg)
        if init_cfg is not None and init_cfg.get('type') != 'Pretrained':
            raise ValueError("init_cfg of CLIPBackbone must be of type "
                             f"'Pretrained', got {init_cfg}")
        text_only = image_encoder is not None
        if text_only and vision_cfg is not None:
            raise ValueError('give either image_encoder or vision_cfg')
        sizes = dict(
            embed_dim=embed_dim, vision_cfg=vision_cfg, text_cfg=text_cfg)
        if model_name is not None:
            sizes = clip_sizes(model_name, sizes, text_only)
        if text_only:
            sizes['vision_cfg'] = _NO_VISION
        if None in sizes.values():
            raise ValueError(
                'CLIPBackbone needs model_name, or embed_dim, vision_cfg and '
                f'text_cfg; got model_name={model_name!r}, ' +
                ', '.join(f'{key}={value!r}' for key, value in sizes.items()))

        self.model_name = model_name
        if quick_gelu is None:
            quick_gelu = needs_quick_gelu(
                model_name, (init_cfg or {}).get('checkpoint'))
        self.quick_gelu = quick_gelu
        clip = open_clip.CustomTextCLIP(**sizes, quick_gelu=quick_gelu)
        self.visual, self.text = clip.visual, clip.text
        names = set(clip.state_dict())
        if text_only:
            spare_multimodal()
            self.visual = MODELS.build(image_encoder)
        elif isinstance(self.visual, ModifiedResNet):
            keep_spatial(self.visual)
        self.strides = tuple(strides)
        self._taps = tap(self.visual, strides, out_indices, with_cp)
        if not isinstance(self.visual, ModifiedResNet):
            freeze_unused(self.visual, self._taps)
        # CLIP's own weights for what comes after the maps are not needed.
        self._dropped = names - set(self.state_dict())
        self.image_channels = self._taps.image_channels
        self.text_channels = (self.text.width, self.text.output_dim)
        freeze_stages(self.visual, frozen_stages)
        if frozen_text:
            self.text.requires_grad_(False)
        self._adapted = peft is not None
        if self._adapted:
            add_adapters(self, peft)
        self._frozen = self._adapted or frozen_text or frozen_stages != -1

    def init_weights(self) -> None:
        """Load the weights named by init_cfg, if any."""
        own = not isinstance(self.visual, CLIP_ENCODERS)
        if own and hasattr(self.visual, 'init_weights'):
            self.visual.init_weights()
            if self._adapted:
                reset_adapters(self)
        if self.init_cfg is not None:
            wanted = {name: weight for name, weight
                      in self.state_dict().items() if not is_adapter(name)}
            if own:
                wanted = {name: weight for name, weight in wanted.items()
                          if name.startswith('text.')}
            weights = read_clip_weights(
                self.init_cfg['checkpoint'], wanted, self._dropped,
                model_name=self.model_name, quick_gelu=self.quick_gelu)
            self.load_state_dict(weights, strict=not own)

    def train(self, mode: bool = True) -> 'CLIPBackbone':
        """As of nn.Module; what is frozen stays in eval mode."""
        super().train(mode)
        if mode and self._frozen:
            keep_frozen_in_eval(self.visual)
            keep_frozen_in_eval(self.text)
        return self

    def get_layer_depth(self, param_name: str,
                        prefix: str = '') -> tuple[int, int]:
        """For mmpretrain's LearningRateDecayOptimWrapperConstructor, see
        :func:`.freezing.layer_depth`.
        """
        return layer_depth(self, param_name.removeprefix(prefix))

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature maps at three strides.

        Args:
            images (Tensor): Normalised images, ``(B, 3, H, W)``; H and W are
                multiples of 32.

        Returns:
            tuple[Tensor]: c3, c4, c5 at the three strides, with
            ``image_channels``.

        Raises:
            ValueError: If H or W is not a multiple of 32.
        """
        _check_size(images)
        return tuple(self._taps.pyramid(self.visual, images))

    forward = encode_image

    def encode_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Features of every word and of the whole sentence.

        Args:
            tokens (Tensor): Token ids, ``(E, L)``, padded with 0; L is at
                most the context length of the text transformer.

        Returns:
            tuple[Tensor]: words ``(E, L, D)``, not projected, and sentence
            ``(E, C)``, the projected feature of the end-of-text token.

        Raises:
            ValueError: If L is longer than the context length.
        """
        text, length = self.text, tokens.shape[1]
        if length > text.context_length:
            raise ValueError(
                f'expressions of {length} tokens, but the text transformer '
                f'has {text.context_length} positions: tokenize with '
                f'context_length <= {text.context_length}')
        # TextTransformer.forward runs at its full context length only.
        x = text.token_embedding(tokens) + text.positional_embedding[:length]
        mask = text.attn_mask
        if mask is not None:  # else words see those after them
            mask = mask[:length, :length]
        words = text.ln_final(text.transformer(x, attn_mask=mask))
        # The end-of-text token has the largest id.
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        end = words[rows, tokens.argmax(dim=-1)]
        return words, end @ text.text_projection


def clip_sizes(model_name: str, given: dict,
               text_only: bool = False) -> dict:
    """open_clip's sizes of a model, with which those given must agree.

    With ``text_only`` its image encoder need not serve.

    Raises:
        ValueError: If they do not, or CRIS cannot use the model.
    """
    config = open_clip.get_model_config(model_name)
    fault = 'open_clip has no such model'
    if config is not None:
        fault = _why_not(config, text_only)
    if fault is not None:
        usable = [name for name in open_clip.list_models()
                  if _why_not(open_clip.get_model_config(name)) is None]
        raise ValueError(f'model_name={model_name!r}: {fault}. CRIS can use '
                         f'{", ".join(usable)}')
    for key, value in given.items():
        same = value is None or value == config[key]
        if isinstance(value, dict):
            same = value.items() <= config[key].items()
        if not same:
            raise ValueError(
                f'model_name={model_name!r} has {key}={config[key]}, but '
                f'{key}={value} is given: leave one of them out')
    return {key: config[key] for key in given}


def _why_not(config: dict, text_only: bool = False) -> str | None:
    """Why CRIS cannot use a model of open_clip."""
    vision, text = config['vision_cfg'], config['text_cfg']
    if 'hf_model_name' in text:
        return 'its text encoder is one of the transformers package'
    if 'hf_tokenizer_name' in text or text.get('vocab_size', 49408) != 49408:
        return "its text encoder does not use CLIP's tokens"
    if text.get('embed_cls'):
        return 'its text encoder has a token of its own for the sentence'
    if not text_only and 'relpos' in vision.get('timm_model_name', ''):
        return 'its image encoder takes one size of images'
    return None


def needs_quick_gelu(model_name: str | None, source: str | None) -> bool:
    """Whether weights, or else a model's usual ones, were made with it."""
    if model_name is None or model_name.endswith('-quickgelu'):
        return True
    cfg = tag_of(source, model_name)[2] if source else None
    if cfg:
        return bool(cfg.get('quick_gelu'))
    return 'openai' in open_clip.list_pretrained_tags_by_model(model_name)


def _check_size(images: Tensor) -> None:
    height, width = images.shape[-2:]
    if min(height, width) < 32 or height % 32 or width % 32:
        near = [max(32, round(side / 32) * 32) for side in (height, width)]
        raise ValueError(
            f'images of {height}x{width} (height x width) do not fit: both '
            f'sides must be multiples of 32, use {near[0]}x{near[1]}')
