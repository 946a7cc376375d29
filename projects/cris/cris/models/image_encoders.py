# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""CLIP's image encoder, kept spatial.

Shapes: B images; h x w pixels at stride 32; C channels.
"""
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from torch import Tensor, nn


class SpatialAttentionPool(AttentionPool2d):
    """CLIP's attention pool without its mean token, from map to map.

    The positional embedding is resized to the size of the map, and a
    projected residual (``connect``, not in CLIP) is added.

    Source: the official CRIS code; paper section 3.1.
    """

    def __init__(self, grid_size: int, in_channels: int, num_heads: int,
                 out_channels: int):
        super().__init__(grid_size, in_channels, num_heads, out_channels)
        self.grid_size = grid_size
        self.connect = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """From the last stage's ``(B, C_in, h, w)`` to ``(B, C_out, h, w)``:
        every pixel attends to all.
        """
        size = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)  # (B, h*w, C_in)
        tokens = tokens + self.position(size)
        query, key, value = (
            proj(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(query, key, value)
        out = self.c_proj(out.transpose(1, 2).flatten(2))
        out = out.transpose(1, 2).unflatten(-1, size)
        return F.relu(out + self.connect(x))

    def position(self, size: torch.Size) -> Tensor:
        """Positional embedding of every pixel, ``(1, h * w, C_in)``."""
        grid = self.positional_embedding[1:].T.unflatten(
            -1, (self.grid_size, self.grid_size))
        grid = F.interpolate(
            grid[None], size, mode='bicubic', align_corners=False)
        return grid.flatten(2).transpose(1, 2)


def keep_spatial(visual: ModifiedResNet) -> ModifiedResNet:
    """Replace the attention pool of CLIP's ResNet by a spatial one."""
    pool = visual.attnpool
    visual.attnpool = SpatialAttentionPool(visual.image_size // 32,
                                           pool.q_proj.in_features,
                                           pool.num_heads, visual.output_dim)
    visual.init_parameters()
    return visual
