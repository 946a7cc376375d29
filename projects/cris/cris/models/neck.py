# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Cross-modal feature pyramid (paper section 3.1).

Shapes: B images, E expressions; h x w pixels, at stride 16 in the paper; C
is the dimension of the sentence feature.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor, nn

from .layers import conv_bn_relu


class CoordConv(nn.Sequential):
    """3x3 convolution that also sees x and y, both in [-1, 1]."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(*conv_bn_relu(in_channels + 2, out_channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        size, (height, width) = x.shape[0], x.shape[-2:]
        xs = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)
        ys = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)
        coords = torch.stack([xs.expand(height, width),
                              ys[:, None].expand(height, width)])
        coords = coords.expand(size, 2, height, width)
        if x.is_contiguous(memory_format=torch.channels_last):
            # Else the concatenation would not be channels last.
            coords = coords.contiguous(memory_format=torch.channels_last)
        return super().forward(torch.cat([x, coords], dim=1))


@MODELS.register_module()
class CrossModalFPN(nn.Module):
    """Fuses three stages of the image with the sentence (paper section 3.1).

    The projections of c3, c4 and c5 do not depend on the text: they run once
    per image (:meth:`project`), the rest once per expression (:meth:`fuse`).

    Args:
        in_channels (Sequence[int]): Channels of c3, c4, c5.
        out_channels (Sequence[int]): Channels of f3, f4, f5 before they are
            fused; the output has ``out_channels[1]``.
        sentence_channels (int): Dimension of the sentence feature.
    """

    def __init__(self, in_channels: Sequence[int],
                 out_channels: Sequence[int], *, sentence_channels: int):
        super().__init__()
        in3, in4, in5 = in_channels
        self.channels = out3, out4, out5 = tuple(out_channels)
        self.sentence_proj = nn.Sequential(
            nn.Linear(sentence_channels, out5, bias=False),
            nn.BatchNorm1d(out5), nn.ReLU(inplace=True))
        self.proj3 = conv_bn_relu(in3, out3, 3)
        self.proj4 = conv_bn_relu(in4, out4, 3)
        self.proj5 = conv_bn_relu(in5, out5)
        self.norm5 = nn.Sequential(
            nn.BatchNorm2d(out5), nn.ReLU(inplace=True))
        self.merge4 = conv_bn_relu(out4 + out5, out4)
        self.merge3 = conv_bn_relu(out3 + out4, out4)
        self.smooth3 = conv_bn_relu(out4, out4, 3)
        self.smooth4 = conv_bn_relu(out4, out4, 3)
        self.smooth5 = conv_bn_relu(out5, out4, 3)
        self.aggregate = conv_bn_relu(3 * out4, out4)
        self.coord = nn.Sequential(
            CoordConv(out4, out4), conv_bn_relu(out4, out4, 3))

    def project(self, c3: Tensor, c4: Tensor,
                c5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project the image features, once per image.

        Args:
            c3, c4, c5 (Tensor): Of 2h x 2w, h x w and fewer pixels.

        Returns:
            tuple[Tensor]: p3 and p4 of h x w pixels, p5 of those of c5, with
            out_channels.
        """
        p3 = F.avg_pool2d(self.proj3(c3), 2)
        return p3, self.proj4(c4), self.proj5(c5)

    def fuse(self, p3: Tensor, p4: Tensor, p5: Tensor, *,
             sentence: Tensor) -> Tensor:
        """Fuse E pairs of an image, p3, p4, p5, and a sentence ``(E, C)``,
        to ``(E, out_channels[1], h, w)``.
        """
        s = self.sentence_proj(sentence)[..., None, None]  # (E, out5, 1, 1)
        # The product is normalised as in the official code.
        f5 = self.norm5(p5 * s)
        f4 = self.merge4(torch.cat([p4, _resize(f5, p4)], dim=1))
        f3 = self.merge3(torch.cat([p3, f4], dim=1))

        f3, f4, f5 = self.smooth3(f3), self.smooth4(f4), self.smooth5(f5)
        fused = torch.cat([f3, f4, _resize(f5, f4)], dim=1)
        return self.coord(self.aggregate(fused))

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor, *, sentence: Tensor,
                image_index: Tensor) -> Tensor:
        """Project and fuse; ``image_index (E,)`` is the index of each
        expression's image.
        """
        p3, p4, p5 = (p[image_index] for p in self.project(c3, c4, c5))
        return self.fuse(p3, p4, p5, sentence=sentence)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(
        x, like.shape[-2:], mode='bilinear', align_corners=False)
