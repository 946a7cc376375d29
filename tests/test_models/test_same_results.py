# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What is computed in another way for speed or memory gives the same."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cris.models.decode_head import TextToPixelProjector, VisionLanguageDecoder
from cris.models.layers import conv_of_upsampled

close = torch.testing.assert_close


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('size', [(1, 1), (2, 3), (7, 5), (26, 26)])
def test_conv_of_upsampled(kernel_size, bias, size):
    torch.manual_seed(0)
    conv = nn.Conv2d(
        6, 4, kernel_size, padding=kernel_size // 2, bias=bias).double()
    x = torch.randn(2, 6, *size, dtype=torch.double)
    close(
        conv_of_upsampled(x, conv),
        conv(F.interpolate(x, scale_factor=2, mode='bilinear')))


def test_gradients_of_conv_of_upsampled():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 2, 3, padding=1, bias=False).double()
    x = torch.randn(1, 3, 4, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, _: conv_of_upsampled(x, conv), (x, conv.weight))


@pytest.mark.parametrize('text_kernel', [True, False])
def test_projector_is_the_official_one(text_kernel):
    torch.manual_seed(0)
    projector = TextToPixelProjector(
        8, sentence_channels=5, kernel_size=3, text_kernel=text_kernel)
    decoded, sentence = torch.randn(3, 8, 6, 7), torch.randn(3, 5)
    for mode in (True, False):
        projector.train(mode)
        expected = projector.respond(projector.upsample(decoded), sentence)
        close(
            projector(decoded, sentence), expected, rtol=1e-4, atol=1e-5)


def test_checkpointing_keeps_gradients():
    outputs = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        decoder = VisionLanguageDecoder(
            16,
            num_layers=2,
            word_channels=12,
            num_heads=2,
            feedforward_channels=32,
            dropout=0.5,
            with_cp=with_cp)
        fused = torch.randn(2, 16, 3, 4, requires_grad=True)
        words = torch.randn(2, 5, 12)
        padding = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
        out = decoder(fused, words=words, padding_mask=padding)
        out.square().sum().backward()
        outputs.append([out, fused.grad] +
                       [p.grad for p in decoder.parameters()])
    for plain, again in zip(*outputs, strict=True):
        assert torch.equal(plain, again)
