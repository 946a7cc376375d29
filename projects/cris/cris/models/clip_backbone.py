# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""CLIP's two encoders, with the image side kept spatial.

Shapes: B images of H x W pixels; E expressions of L tokens; D is the width of
the text transformer, C the dimension of CLIP's joint embedding space.
"""
import open_clip
import torch
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor

from .clip_weights import read_clip_weights
from .image_encoders import keep_spatial
from .layers import recompute


@MODELS.register_module()
class CLIPBackbone(BaseModule):
    """CLIP's ResNet image encoder and its text transformer, from open_clip.

    Args:
        model_name (str, optional): A model of open_clip with a ResNet image
            encoder, e.g. ``'RN50'`` or ``'RN101'``, in place of the next
            three arguments.
        embed_dim (int, optional): Dimension of the joint embedding space.
        vision_cfg (dict, optional): open_clip's own keys, e.g.
            ``dict(image_size=224, layers=[3, 4, 6, 3], width=64)``.
        text_cfg (dict, optional): open_clip's own keys, e.g.
            ``dict(context_length=77, vocab_size=49408, width=512, heads=8,
            layers=12)``.
        quick_gelu (bool): Use QuickGELU in the text transformer, as OpenAI's
            weights need it.
        with_cp (bool): Compute the image encoder's stem and first stage again
            in the backward pass instead of keeping their activations, which
            are the largest: the same gradients with 0.1 GB less per image of
            416 x 416 pixels in fp32, for 3 % more work.
        init_cfg (dict, optional): ``dict(type='Pretrained', checkpoint=...)``
            loads CLIP's weights from a file or a pretrained tag such as
            ``'openai'``, see :func:`.clip_weights.read_clip_weights`.
            Nothing is loaded before ``init_weights()``.

    Raises:
        ValueError: If the model is unknown, incompletely or contradictorily
            described, or its image encoder is not a ResNet.
    """

    def __init__(self, model_name: str | None = None,
                 embed_dim: int | None = None, vision_cfg: dict | None = None,
                 text_cfg: dict | None = None, quick_gelu: bool = True,
                 with_cp: bool = False, init_cfg: dict | None = None):
        super().__init__(init_cfg=init_cfg)
        if init_cfg is not None and init_cfg.get('type') != 'Pretrained':
            raise ValueError("init_cfg of CLIPBackbone must be of type "
                             f"'Pretrained', got {init_cfg}")
        sizes = dict(
            embed_dim=embed_dim, vision_cfg=vision_cfg, text_cfg=text_cfg)
        if model_name is not None:
            sizes = _sizes_of(model_name, sizes)
        if None in sizes.values():
            raise ValueError(
                'CLIPBackbone needs model_name, or embed_dim, vision_cfg and '
                f'text_cfg; got model_name={model_name!r}, ' +
                ', '.join(f'{key}={value!r}' for key, value in sizes.items()))

        self.model_name = model_name
        self.quick_gelu = quick_gelu
        self.with_cp = with_cp
        clip = open_clip.CustomTextCLIP(**sizes, quick_gelu=quick_gelu)
        if not isinstance(clip.visual, ModifiedResNet):
            raise ValueError(
                f'CRIS taps the four stages of a CLIP ResNet, but {model_name}'
                f' describes a {type(clip.visual).__name__}: use a ResNet such'
                " as 'RN50' or 'RN101', or vision_cfg with a list of four "
                'numbers as layers')
        self.visual = keep_spatial(clip.visual)
        self.text = clip.text

    def init_weights(self) -> None:
        """Load the weights named by init_cfg, if any."""
        if self.init_cfg is not None:
            self.load_state_dict(
                read_clip_weights(
                    self.init_cfg['checkpoint'], self.state_dict(),
                    model_name=self.model_name, quick_gelu=self.quick_gelu))

    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature maps of the last three stages.

        Args:
            images (Tensor): Normalised images, ``(B, 3, H, W)``; H and W are
                multiples of 32.

        Returns:
            tuple[Tensor]: c3, c4, c5 at strides 8, 16, 32.

        Raises:
            ValueError: If H or W is not a multiple of 32.
        """
        _check_size(images)
        if self.with_cp and torch.is_grad_enabled():
            c2 = recompute(self._stem_and_layer1, self.visual, images)
        else:
            c2 = self._stem_and_layer1(images)
        c3 = self.visual.layer2(c2)
        c4 = self.visual.layer3(c3)
        c5 = self.visual.attnpool(self.visual.layer4(c4))
        return c3, c4, c5

    forward = encode_image

    def _stem_and_layer1(self, images: Tensor) -> Tensor:
        return self.visual.layer1(self.visual.stem(images))

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
        x = text.transformer(x, attn_mask=text.attn_mask[:length, :length])
        words = text.ln_final(x)
        # The end-of-text token has the largest id.
        rows = torch.arange(len(tokens), device=tokens.device)
        end = words[rows, tokens.argmax(dim=-1)]
        return words, end @ text.text_projection


def _sizes_of(model_name: str, given: dict) -> dict:
    """open_clip's sizes of a model, with which those given must agree."""
    config = open_clip.get_model_config(model_name)
    if config is None:
        resnets = [n for n in open_clip.list_models() if n.startswith('RN')]
        raise ValueError(f'open_clip has no model {model_name!r}; CRIS can '
                         f'use {", ".join(resnets)}')
    for key, value in given.items():
        same = value is None or value == config[key]
        if isinstance(value, dict):
            same = value.items() <= config[key].items()
        if not same:
            raise ValueError(
                f'model_name={model_name!r} has {key}={config[key]}, but '
                f'{key}={value} is given: leave one of them out')
    return {key: config[key] for key in given}


def _check_size(images: Tensor) -> None:
    height, width = images.shape[-2:]
    if min(height, width) < 32 or height % 32 or width % 32:
        near = [max(32, round(side / 32) * 32) for side in (height, width)]
        raise ValueError(
            f'images of {height}x{width} (height x width) do not fit: both '
            f'sides must be multiples of 32, use {near[0]}x{near[1]}')
