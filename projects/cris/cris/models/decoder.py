# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Vision-language decoder (paper section 3.2).

Shapes: E expressions; h x w pixels, N = h * w of them; L words of D channels;
pixels of C channels.
"""
import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def sine_position_1d(length: int, channels: int,
                     device: torch.device | None = None) -> Tensor:
    """Sine position encoding of a sequence, ``(length, channels)``."""
    position = torch.arange(length, dtype=torch.float32, device=device)
    position = position[:, None]
    frequency = torch.exp(
        torch.arange(0, channels, 2, dtype=torch.float32, device=device) *
        -(math.log(10000.0) / channels))
    angle = position * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def sine_position_2d(height: int, width: int, channels: int,
                     device: torch.device | None = None) -> Tensor:
    """Sine position encoding of a map, ``(height * width, channels)``.

    The first half of the channels encodes x, the second half y.
    """
    half = channels // 2
    xs = sine_position_1d(width, half, device).expand(height, width, half)
    ys = sine_position_1d(height, half, device)[:, None].expand_as(xs)
    return torch.cat([xs, ys], dim=-1).flatten(0, 1)


class VisionLanguageDecoderLayer(nn.Module):
    """Pixels attend to pixels, then to words.

    Pre-norm, with a second LayerNorm on the output of each attention and one
    inside the feed-forward network, as in the official code.
    """

    def __init__(self, channels: int, *, word_channels: int, num_heads: int,
                 feedforward_channels: int, dropout: float):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(
            channels, num_heads, dropout=dropout, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(
            channels, num_heads, dropout=dropout, kdim=word_channels,
            vdim=word_channels, batch_first=True)
        self.ffn = nn.Sequential(
            nn.Linear(channels, feedforward_channels), nn.ReLU(),
            nn.Dropout(dropout), nn.LayerNorm(feedforward_channels),
            nn.Linear(feedforward_channels, channels))
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)
        self.self_attn_norm = nn.LayerNorm(channels)
        self.cross_attn_norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pixels: Tensor, *, pixel_position: Tensor,
                words: Tensor, word_position: Tensor,
                padding_mask: Tensor) -> Tensor:
        """One layer, from and to ``pixels (E, N, C)``.

        ``pixel_position (N, C)`` and ``word_position (L, D)`` are added to
        queries and keys. ``words (E, L, D)`` are padding where
        ``padding_mask (E, L)`` is True.
        """
        x = self.norm1(pixels)
        q = x + pixel_position
        x, _ = self.self_attn(q, q, x, need_weights=False)
        pixels = pixels + self.dropout(self.self_attn_norm(x))

        q = self.norm2(pixels) + pixel_position
        x, _ = self.cross_attn(
            q, words + word_position, words, key_padding_mask=padding_mask,
            need_weights=False)
        pixels = pixels + self.dropout(self.cross_attn_norm(x))

        return pixels + self.dropout(self.ffn(self.norm3(pixels)))


class VisionLanguageDecoder(nn.Module):
    """A stack of :class:`VisionLanguageDecoderLayer` and a LayerNorm.

    The arguments are those of the head. ``**layer_cfg`` goes to the layers.
    """

    def __init__(self, channels: int, *, num_layers: int, with_cp: bool,
                 **layer_cfg):
        super().__init__()
        self.with_cp = with_cp
        self.layers = nn.ModuleList(
            VisionLanguageDecoderLayer(channels, **layer_cfg)
            for _ in range(num_layers))
        self.norm = nn.LayerNorm(channels)

    def forward(self, fused: Tensor, *, words: Tensor,
                padding_mask: Tensor) -> Tensor:
        """From and to ``(E, C, h, w)``; ``words (E, L, D)`` are padding where
        ``padding_mask (E, L)`` is True.
        """
        channels, height, width = fused.shape[1:]
        context = dict(
            pixel_position=sine_position_2d(
                height, width, channels, fused.device).to(fused.dtype),
            words=words,
            word_position=sine_position_1d(
                *words.shape[1:], words.device).to(words.dtype),
            padding_mask=padding_mask)
        pixels = fused.flatten(2).transpose(1, 2)  # (E, N, C)
        for layer in self.layers:
            if self.with_cp and torch.is_grad_enabled():
                pixels = checkpoint(
                    layer, pixels, use_reentrant=False, **context)
            else:
                pixels = layer(pixels, **context)
        pixels = self.norm(pixels).transpose(1, 2)  # (E, C, N)
        return pixels.unflatten(2, (height, width))
