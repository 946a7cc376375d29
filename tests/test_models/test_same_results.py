# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Faster or smaller ways to compute the same."""
import pytest
import torch
import torch.nn.functional as F
from conftest import REPO
from mmengine.config import Config
from mmseg.registry import MODELS
from torch import nn

from cris.models.fast_cpu import (
    ConvAttention,
    ConvLinear,
    FastDropout,
    FoldedProjector,
    FusedAttention,
    ProductAttention,
    conv_of_upsampled,
    optimize_for_cpu_training,
)
from cris.models.projector import TextToPixelProjector

TINY = Config.fromfile(REPO / 'configs/_base_/models/cris_tiny.py').model
TINY.auxiliary_head = None

close = torch.testing.assert_close


def results(module, *args, call=None, **kwargs):
    """Output of a module, or of a method of it, and all gradients."""
    module.zero_grad()
    out = (call or module)(*args, **kwargs)
    if isinstance(out, tuple):
        out, weights = out
        assert weights is None
    out.square().mean().backward()
    inputs = [x.grad for x in args if x.requires_grad]
    return [out.detach(), *inputs, *(p.grad for p in module.parameters())]


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


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('text_kernel', [True, False])
def test_folded_projector(text_kernel, training):
    torch.manual_seed(0)
    plain = TextToPixelProjector(
        8, sentence_channels=5, kernel_size=3, text_kernel=text_kernel)
    decoded, sentence = torch.randn(3, 8, 6, 7), torch.randn(3, 5)
    fast = FoldedProjector(plain)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    outputs = [
        results(projector.train(training),
                decoded.clone().requires_grad_(), sentence)
        for projector in (plain, fast)
    ]
    for ours, expected in zip(*outputs, strict=True):
        assert (ours - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize('training', [True, False])
def test_folded_projector_in_bfloat16(training):
    """With gradients it upsamples, without it does not."""
    torch.manual_seed(0)
    plain = TextToPixelProjector(
        8, sentence_channels=5, kernel_size=3, text_kernel=True).eval()
    fast = FoldedProjector(plain).eval()
    decoded, sentence = torch.randn(3, 8, 6, 7), torch.randn(3, 5)
    expected = plain(decoded, sentence)
    with torch.set_grad_enabled(training), torch.autocast(
            'cpu', torch.bfloat16):
        ours = fast(decoded, sentence)
    assert ours.dtype == torch.float32
    assert (ours - expected).norm() <= 0.03 * expected.norm()


MASKS = {
    'neither': {},
    'keys': dict(
        key_padding_mask=torch.arange(40) > torch.tensor([[39], [5], [20]])),
    'scores': dict(attn_mask=torch.ones(90, 40).tril().log()),
}
MASKS['both'] = {**MASKS['keys'], **MASKS['scores']}


@pytest.mark.parametrize('word_channels', [16, 12])
@pytest.mark.parametrize('masks', MASKS)
@pytest.mark.parametrize('fast',
                         [FusedAttention, ConvAttention, ProductAttention])
def test_attention(fast, masks, word_channels):
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(
        16, 4, kdim=word_channels, vdim=word_channels, batch_first=True)
    nn.init.normal_(plain.in_proj_bias)
    query, words = torch.randn(3, 90, 16), torch.randn(3, 40, word_channels)
    masks = dict(MASKS[masks], need_weights=False)
    outputs = []
    for attention in (plain, fast(plain)):
        outputs.append(results(attention, query, words, words, **masks))
        with torch.no_grad():
            outputs[-1].append(attention(query, words, words, **masks)[0])
    for ours, expected in zip(*outputs, strict=True):
        close(ours, expected, rtol=1e-4, atol=1e-4)
    _, weights = fast(plain)(query, words, words)
    close(weights, plain(query, words, words)[1])


def test_dropout_of_attention():
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(16, 2, dropout=0.5, batch_first=True)
    attention = ProductAttention(plain)
    x = torch.randn(3, 6, 16)
    first, second = (attention(x, x, x, need_weights=False)[0]
                     for _ in range(2))
    assert not torch.equal(first, second)
    attention.eval()
    close(attention(x, x, x, need_weights=False)[0],
          plain.eval()(x, x, x)[0])


@pytest.mark.parametrize('shape', [(3, 5), (100, 5), (20, 6, 5)])
def test_linear_layers_as_convolutions(shape):
    torch.manual_seed(0)
    plain = nn.Linear(5, 7)
    x = torch.randn(shape)
    close(ConvLinear(plain)(x), plain(x))


def test_a_training_step_of_the_swapped_model():
    """Parameters are shared, names stay, results and gradients are equal."""
    torch.manual_seed(0)
    model = MODELS.build(TINY).train()
    names = list(model.state_dict())
    batch = (torch.randn(2, 3, 64, 96), torch.randint(1, 49000, (3, 9)),
             torch.tensor([0, 1, 1]))
    plain = results(model, *batch, call=model.predict_logits)
    optimize_for_cpu_training(model)
    fast = results(model, *batch, call=model.predict_logits)
    assert list(model.state_dict()) == names
    kinds = {type(module) for module in model.modules()}
    assert {FastDropout, FoldedProjector, ProductAttention} <= kinds
    assert not {nn.Dropout, nn.MultiheadAttention} & kinds
    # Batch norm of three samples amplifies rounding; each module has a
    # stricter test.
    for ours, expected in zip(fast, plain, strict=True):
        assert (ours - expected).norm() <= 1e-2 * expected.norm() + 1e-6


@pytest.mark.parametrize('p', [0.1, 0.5, 0.9])
def test_dropout(p):
    torch.manual_seed(0)
    dropout = FastDropout(nn.Dropout(p))
    x = torch.ones(1001, 1003, requires_grad=True)  # not a multiple of four
    out = dropout(x)
    out.sum().backward()
    kept = out != 0
    share = kept.double().mean().item()
    assert abs(share - (1 - p)) < 5 * (p * (1 - p) / x.numel())**0.5
    scale = 2**16 / (2**16 - round(p * 2**16))
    assert out[kept].unique().item() == pytest.approx(scale, rel=1e-6)
    assert torch.equal(x.grad, out.detach())
    # Rows and columns have no pattern.
    assert abs(kept.double().mean(0) - share).max() < 5 * 0.5 / 1001**0.5
    pairs = (kept[:, 1:] & kept[:, :-1]).double().mean().item()
    assert abs(pairs - share**2) < 3e-3
    assert not torch.equal(dropout(x), out)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), out)
    assert dropout.eval()(x) is x


def test_dropout_scales_after_rounding_and_drops_everything():
    torch.manual_seed(0)
    x = torch.linspace(1, 2, 10**5).bfloat16()
    out = FastDropout(nn.Dropout(0.1))(x)
    kept = out != 0
    ratio = out[kept].double().mean() / x[kept].double().mean()
    assert ratio.item() == pytest.approx(1 / 0.9, rel=2e-4)
    assert not FastDropout(nn.Dropout(1.0))(x).any()


@pytest.mark.parametrize('training', [True, False])
def test_recomputing_changes_nothing(training):
    """Running statistics are updated once, and dropout is the same."""
    models = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = MODELS.build(dict(
            TINY, backbone=dict(TINY.backbone, with_cp=with_cp),
            decode_head=dict(TINY.decode_head, with_cp=with_cp, dropout=0.5)))
        images = torch.randn(2, 3, 64, 96)
        tokens = torch.randint(1, 49000, (2, 9))
        tokens[0, 6:] = 0
        calls = []
        for module in (model.backbone.visual.conv1,
                       model.decode_head.decoder.layers[0].norm1):
            module.register_forward_hook(
                lambda module, *_, calls=calls: calls.append(module))
        model.train(training)
        for _ in range(2):
            model.predict_logits(images, tokens).square().mean().backward()
        assert len(calls) == (8 if with_cp else 4)
        models.append(model)
    plain, again = models
    norm = plain.backbone.visual.bn1
    assert norm.weight.grad.abs().max() > 0
    assert norm.num_batches_tracked == (2 if training else 0)
    for a, b in zip(plain.buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
