# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Text-to-pixel projector (paper section 3.3).

Shapes: E expressions; h x w pixels; C channels; C_s channels of the sentence
feature; k x k kernels.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import conv_bn_relu


class TextToPixelProjector(nn.Module):
    """Convolves the pixels with a kernel made from the sentence.

    The paper takes the dot product of the sentence and every pixel. This is a
    k x k kernel and a bias, as in the official code.

    The arguments are those of the head. Without ``text_kernel``, one learnt
    kernel of the same shape serves every sentence.
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
        length = channels * kernel_size**2 + 1  # + 1 for the bias
        if text_kernel:
            self.kernel_proj = nn.Linear(sentence_channels, length)
        else:
            bound = (length - 1)**-0.5  # as nn.Conv2d is initialised
            self.kernel = nn.Parameter(
                torch.empty(1, length).uniform_(-bound, bound))

    def forward(self, decoded: Tensor, sentence: Tensor) -> Tensor:
        """From pixels ``(E, C, h, w)`` and sentences ``(E, C_s)`` to logits
        ``(E, 1, 4h, 4w)``, always in fp32.
        """
        pixels = self.upsample(decoded)  # (E, C/2, 4h, 4w)
        with torch.autocast(pixels.device.type, enabled=False):
            pixels = self.pixel_proj(pixels.float())
            weight, bias = self.make_kernel(sentence.float())
            # One group per expression: each has its own map and kernel.
            logits = F.conv2d(
                pixels.flatten(0, 1)[None], weight, bias,
                padding=self.kernel_size // 2, groups=len(weight))
        return logits.transpose(0, 1)

    def make_kernel(self, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """Weight ``(E, C/2, k, k)`` and bias ``(E,)`` of every expression."""
        if hasattr(self, 'kernel_proj'):
            kernel = self.kernel_proj(sentence)
        else:
            kernel = self.kernel.expand(len(sentence), -1)
        size = self.kernel_size
        return kernel[:, :-1].unflatten(1, (-1, size, size)), kernel[:, -1]
