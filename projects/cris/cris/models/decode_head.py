# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Vision-language decoder and text-to-pixel projector.

Shapes: E expressions; h x w pixels at stride 16, N = h * w of them; L words;
C channels.
"""
import math
from functools import partial

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .layers import (
    Dropout,
    conv_bn_relu,
    conv_of_upsampled,
    dropout_on_cpu,
    project_heads,
)


def sine_position_1d(length: int, channels: int) -> Tensor:
    """Sine position encoding of a sequence, ``(length, channels)``."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    frequency = torch.exp(
        torch.arange(0, channels, 2, dtype=torch.float32) *
        -(math.log(10000.0) / channels))
    angle = position * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def sine_position_2d(height: int, width: int, channels: int) -> Tensor:
    """Sine position encoding of a map, ``(height * width, channels)``.

    The first half of the channels encodes x, the second y.
    """
    half = channels // 2
    xs = sine_position_1d(width, half).expand(height, width, half)
    ys = sine_position_1d(height, half)[:, None].expand(height, width, half)
    return torch.cat([xs, ys], dim=-1).flatten(0, 1)


class VisionLanguageDecoderLayer(nn.Module):
    """Pixels attend to pixels, then to words (paper section 3.2).

    Pre-norm, with a second LayerNorm on each attention's output and one
    inside the feed-forward network, as in the official code.
    """

    def __init__(self, channels: int, *, word_channels: int, num_heads: int,
                 feedforward_channels: int, dropout: float):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(
            channels, num_heads, dropout=dropout)
        self.cross_attn = nn.MultiheadAttention(
            channels,
            num_heads,
            dropout=dropout,
            kdim=word_channels,
            vdim=word_channels)
        self.ffn = nn.Sequential(
            nn.Linear(channels, feedforward_channels), nn.ReLU(),
            Dropout(dropout), nn.LayerNorm(feedforward_channels),
            nn.Linear(feedforward_channels, channels))
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)
        self.self_attn_norm = nn.LayerNorm(channels)
        self.cross_attn_norm = nn.LayerNorm(channels)
        self.dropout = Dropout(dropout)

    def forward(self, pixels: Tensor, *, pixel_position: Tensor,
                words: Tensor, word_keys: Tensor,
                padding_mask: Tensor) -> Tensor:
        """One layer.

        Args:
            pixels (Tensor): ``(N, E, C)``.
            pixel_position (Tensor): ``(N, 1, C)``.
            words (Tensor): Values of the cross-attention, ``(L, E, D)``.
            word_keys (Tensor): Words with their position, ``(L, E, D)``.
            padding_mask (Tensor): True where a word is padding, ``(E, L)``.

        Returns:
            Tensor: ``(N, E, C)``.
        """
        x = self.norm1(pixels)
        q = x + pixel_position
        x = _attend(self.self_attn, q, q, x)
        pixels = pixels + self.dropout(self.self_attn_norm(x))

        q = self.norm2(pixels) + pixel_position
        x = _attend(self.cross_attn, q, word_keys, words, padding_mask)
        pixels = pixels + self.dropout(self.cross_attn_norm(x))

        return pixels + self.dropout(self.ffn(self.norm3(pixels)))


def _attend(attention: nn.MultiheadAttention,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            padding_mask: Tensor | None = None) -> Tensor:
    """``attention``, sequence first: ``(N, E, C)`` to the same."""
    if query.device.type != 'cpu' or not torch.is_grad_enabled():
        return attention(
            query,
            key,
            value,
            key_padding_mask=padding_mask,
            need_weights=False)[0]
    # To train on a CPU plain products are the fastest: the fused kernel has
    # no dropout, and its bf16 backward pass takes several times as long.
    q, k, v = project_heads(attention, (query, key, value))
    weights = q * q.shape[-1]**-0.5 @ k.transpose(2, 3)  # (E, h, N, L)
    if padding_mask is not None:
        weights = weights.masked_fill(padding_mask[:, None, None], -math.inf)
    weights = weights.softmax(dim=3)
    if attention.training and attention.dropout > 0:
        weights = dropout_on_cpu(weights, attention.dropout)
    out = (weights @ v).permute(2, 0, 1, 3).flatten(2)
    return attention.out_proj(out)


class VisionLanguageDecoder(nn.Module):
    """A stack of :class:`VisionLanguageDecoderLayer` and a LayerNorm."""

    def __init__(self, channels: int, *, num_layers: int, word_channels: int,
                 with_cp: bool, **layer_cfg):
        super().__init__()
        self.with_cp = with_cp
        self.layers = nn.ModuleList(
            VisionLanguageDecoderLayer(
                channels, word_channels=word_channels, **layer_cfg)
            for _ in range(num_layers))
        self.norm = nn.LayerNorm(channels)

    def forward(self, fused: Tensor, *, words: Tensor,
                padding_mask: Tensor) -> Tensor:
        """Decode.

        Args:
            fused (Tensor): ``(E, C, h, w)``.
            words (Tensor): ``(E, L, D)``.
            padding_mask (Tensor): True where a word is padding, ``(E, L)``.

        Returns:
            Tensor: ``(E, C, h, w)``.
        """
        channels, height, width = fused.shape[1:]
        pixel_position = sine_position_2d(height, width, channels).to(fused)
        word_position = sine_position_1d(*words.shape[1:]).to(words)

        # Sequence first: batch first, nn.MultiheadAttention would multiply
        # transposed views, which bfloat16 on a CPU does many times slower.
        words = words.transpose(0, 1).contiguous()  # (L, E, D)
        pixels = fused.flatten(2).permute(2, 0, 1).contiguous()  # (N, E, C)
        for layer in self.layers:
            if self.with_cp and torch.is_grad_enabled():
                layer = partial(checkpoint, layer, use_reentrant=False)
            pixels = layer(
                pixels,
                pixel_position=pixel_position[:, None],
                words=words,
                word_keys=words + word_position[:, None],
                padding_mask=padding_mask)
        pixels = self.norm(pixels).transpose(0, 1)  # (E, N, C)
        return pixels.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class TextToPixelProjector(nn.Module):
    """Answers every pixel with a kernel made from the sentence.

    The paper's section 3.3: pixels are upsampled to stride 4 and projected to
    C / 2 channels; the sentence becomes a k x k x C/2 kernel and a bias. With
    text_kernel=False one learnt kernel of that shape answers every sentence.

    The last projection of the pixels is linear, so it is applied to the
    kernel instead of the map. The convolution is then one matrix product per
    expression, whose k * k responses are added where they belong: the same
    sum as the official grouped convolution, several times faster on a CPU.
    """

    def __init__(self, in_channels: int, *, sentence_channels: int,
                 kernel_size: int, text_kernel: bool):
        super().__init__()
        channels = in_channels // 2
        self.kernel_size = kernel_size
        self.upsample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode='bilinear'),
            conv_bn_relu(in_channels, in_channels, 3),
            nn.Upsample(scale_factor=2, mode='bilinear'),
            conv_bn_relu(in_channels, channels, 3))
        self.pixel_proj = nn.Conv2d(channels, channels, 1)
        length = channels * kernel_size**2 + 1  # with the bias
        if text_kernel:
            self.kernel_proj = nn.Linear(sentence_channels, length)
        else:
            bound = (length - 1)**-0.5  # as nn.Conv2d begins
            self.kernel = nn.Parameter(
                torch.empty(1, length).uniform_(-bound, bound))

    def forward(self, decoded: Tensor, sentence: Tensor) -> Tensor:
        """Responses.

        Args:
            decoded (Tensor): ``(E, C, h, w)``.
            sentence (Tensor): ``(E, C_s)``.

        Returns:
            Tensor: Logits at stride 4, ``(E, 1, 4h, 4w)``, of fp32.
        """
        pixels = decoded  # to self.upsample(decoded)
        for block in (self.upsample[1], self.upsample[3]):
            pixels = block[1:](conv_of_upsampled(pixels, block[0]))
        with torch.autocast(pixels.device.type, enabled=False):
            return self.respond(pixels.float(), sentence.float())

    def respond(self, pixels: Tensor, sentence: Tensor) -> Tensor:
        size, k = pixels.shape[-2:], self.kernel_size
        if hasattr(self, 'kernel_proj'):
            kernel = self.kernel_proj(sentence)
        else:
            kernel = self.kernel.expand(sentence.shape[0], -1)
        kernel, bias = kernel.split([pixels.shape[1] * k**2, 1], dim=1)
        kernel = kernel.unflatten(1, (-1, k**2)).transpose(1, 2)
        offset = kernel @ self.pixel_proj.bias[:, None]  # (E, k*k, 1)
        kernel = kernel @ self.pixel_proj.weight.flatten(1)  # (E, k*k, C/2)
        # Pixels first, as they are in memory, so that their gradients are.
        responses = pixels.flatten(2).transpose(1, 2) @ kernel.transpose(1, 2)
        responses = responses.transpose(1, 2) + offset
        # fold sends tap j to the pixel at its offset, a convolution fetches
        # from there: the taps change places.
        logits = F.fold(responses.flip(1), size, k, padding=k // 2)
        return logits + bias[..., None, None]


@MODELS.register_module()
class VisionLanguageDecoderHead(BaseModule):
    """Vision-language decoder, text-to-pixel projector and their loss.

    Args:
        in_channels (int): Channels of the fused features, C.
        word_channels (int): Channels of the word features.
        sentence_channels (int): Channels of the sentence feature.
        num_layers (int): Decoder layers; 0 leaves the decoder out (the
            paper's ablation). Defaults to 3.
        num_heads (int): Attention heads. Defaults to 8.
        feedforward_channels (int): Hidden channels of the feed-forward
            network. Defaults to 2048.
        dropout (float): Defaults to 0.1.
        with_cp (bool): Compute the decoder's layers again in the backward
            pass instead of keeping what they made: the same gradients with a
            third less memory, for 4 % more work. Defaults to False.
        kernel_size (int): Side of the kernel made from the sentence, odd.
            Defaults to 3.
        text_kernel (bool): Make the kernel from the sentence. False takes one
            kernel for all, the paper's ablation of the contrastive loss.
            Defaults to True.
        threshold (float): A pixel is the referent's where its probability is
            above. Defaults to 0.35.
        align_corners (bool): How probabilities are resized to the size of the
            input. Defaults to True, as in the official code.
        target_resize (str): How masks are resized to the size of the logits,
            ``'nearest'``, as in the official code, or ``'area'``. The official
            pair moves masks by up to 3 pixels of the input to the right and
            down: a cell is trained on the first of its 4 x 4 pixels, and
            aligned corners stretch the map. At 416 pixels that is little, at
            160 it is not: there take ``'area'`` and align_corners=False,
            which fit each other. Defaults to ``'nearest'``.
        loss_decode (dict): Config of the loss.
        init_cfg (dict, optional): Initialisation config. Defaults to None.

    Raises:
        ValueError: If in_channels is not a multiple of 4, kernel_size even or
            target_resize unknown.
    """

    def __init__(self,
                 in_channels: int,
                 word_channels: int,
                 *,
                 sentence_channels: int,
                 num_layers: int = 3,
                 num_heads: int = 8,
                 feedforward_channels: int = 2048,
                 dropout: float = 0.1,
                 with_cp: bool = False,
                 kernel_size: int = 3,
                 text_kernel: bool = True,
                 threshold: float = 0.35,
                 align_corners: bool = True,
                 target_resize: str = 'nearest',
                 loss_decode: dict = dict(type='TextToPixelContrastiveLoss'),
                 init_cfg: dict | None = None):
        super().__init__(init_cfg=init_cfg)
        if in_channels % 4:
            raise ValueError(
                f'in_channels={in_channels}: the 2-D sine position needs a '
                'multiple of 4')
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size={kernel_size} must be odd')
        if target_resize not in ('nearest', 'area'):
            raise ValueError(f"target_resize={target_resize!r} must be "
                             "'nearest' or 'area'")
        self.threshold = threshold
        self.align_corners = align_corners
        self.target_resize = target_resize
        self.decoder = None
        if num_layers > 0:
            self.decoder = VisionLanguageDecoder(
                in_channels,
                num_layers=num_layers,
                word_channels=word_channels,
                num_heads=num_heads,
                feedforward_channels=feedforward_channels,
                dropout=dropout,
                with_cp=with_cp)
        self.projector = TextToPixelProjector(
            in_channels,
            sentence_channels=sentence_channels,
            kernel_size=kernel_size,
            text_kernel=text_kernel)
        self.loss_decode = MODELS.build(loss_decode)

    def forward(self, fused: Tensor, *, words: Tensor, sentence: Tensor,
                padding_mask: Tensor) -> Tensor:
        """Logits of every expression.

        Args:
            fused (Tensor): ``(E, C, h, w)`` at stride 16.
            words (Tensor): ``(E, L, D)``.
            sentence (Tensor): ``(E, C_s)``.
            padding_mask (Tensor): True where a word is padding, ``(E, L)``.

        Returns:
            Tensor: ``(E, 1, 4h, 4w)`` at stride 4.
        """
        decoded = fused
        if self.decoder is not None:
            decoded = self.decoder(
                fused, words=words, padding_mask=padding_mask)
        return self.projector(decoded, sentence)

    def loss(self, logits: Tensor, masks: list[Tensor]) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            logits (Tensor): ``(E, 1, H/4, W/4)``.
            masks (list[Tensor]): Masks of each image's expressions,
                ``(K, H, W)`` in [0, 1]; the K add up to E.

        Returns:
            dict[str, Tensor]: The loss, a scalar, under its name.
        """
        target = torch.cat(masks)[:, None].float()  # (E, 1, H, W)
        target = F.interpolate(
            target, logits.shape[-2:], mode=self.target_resize)
        return {self.loss_decode.loss_name: self.loss_decode(logits, target)}
