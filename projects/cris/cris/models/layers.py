# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from torch import nn


def conv_bn_relu(in_channels: int,
                 out_channels: int,
                 kernel_size: int = 1) -> nn.Sequential:
    """Size-preserving convolution without bias, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
