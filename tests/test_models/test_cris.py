# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import REPO
from mmengine.config import Config
from mmengine.structures import PixelData
from mmengine.utils import digit_version
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch.nn.modules.batchnorm import _BatchNorm

from cris.datasets.tokenizer import tokenize

TINY = Config.fromfile(REPO / 'configs/_base_/models/cris_tiny.py').model
AUXILIARY_HEAD = TINY.pop('auxiliary_head')  # see test_words_head.py

close = torch.testing.assert_close


def build(**head):
    return MODELS.build(dict(TINY, decode_head=dict(TINY.decode_head, **head)))


@pytest.fixture(scope='module')
def tiny():
    torch.manual_seed(0)
    model = build()
    # Batch norms and the zero-initialised ends of residual blocks must say
    # something, or a test of equality would pass on zeros.
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope='module')
def tokens():
    return tokenize(
        ['red circle', 'the small blue square on the left', 'sky', 'a b c'],
        17)


def samples(counts, size):
    generator = torch.Generator().manual_seed(0)
    out = []
    for count in counts:
        tokens = torch.randint(1, 49000, (count, 9), generator=generator)
        tokens[:, -1] = 49407
        data = torch.rand(count, *size, generator=generator)
        out.append(SegDataSample(
            metainfo=dict(ori_shape=(50, 70), tokens=tokens),
            gt_sem_seg=PixelData(data=data)))
    return out


def without_gradient(model):
    return [n for n, p in model.named_parameters() if p.grad is None]


def test_a_step_of_r50():
    model = MODELS.build(Config.fromfile(
        REPO / 'configs/cris/cris_r50_8xb8-amp-50e_refcoco-416x416.py').model)
    logits = model.predict_logits(
        torch.randn(2, 3, 128, 128), tokenize(['a dog', 'a cat'], 17))
    assert logits.shape == (2, 1, 32, 32)
    logits.mean().backward()
    assert without_gradient(model) == []


@torch.no_grad()
def test_expressions_of_an_image_share_its_encoder(tiny, tokens):
    images = torch.randn(2, 3, 96, 64)
    index = torch.tensor([1, 0, 1, 1])
    seen = []
    handle = tiny.backbone.visual.layer1.register_forward_hook(
        lambda module, args, out: seen.append(len(out)))
    together = tiny.predict_logits(images, tokens, index)
    handle.remove()
    assert seen == [2]
    assert together.shape == (4, 1, 24, 16)
    apart = torch.cat([
        tiny.predict_logits(images[i:i + 1], tokens[e:e + 1])
        for e, i in enumerate(index)
    ])
    close(together, apart, atol=1e-5, rtol=1e-5)
    assert (together[0] - together[2]).abs().max() > 1e-3


@torch.no_grad()
def test_padding_says_nothing(tiny):
    images = torch.randn(1, 3, 64, 64)
    short, long = (
        tiny.predict_logits(images, tokenize('the red circle', length))
        for length in (6, 30))
    close(short, long, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('size, cure', [
    ((200, 333), '192x320'), ((64, 95), '64x96'), ((16, 32), '32x32')])
def test_sizes_that_do_not_fit_are_refused(tiny, tokens, size, cure):
    with pytest.raises(ValueError, match=f'use {cure}'):
        tiny.predict_logits(torch.zeros(4, 3, *size), tokens)


def test_expressions_that_do_not_fit_are_refused(tiny, tokens):
    images = torch.zeros(3, 3, 64, 64)
    with pytest.raises(ValueError, match='4 expressions for 3 images'):
        tiny.predict_logits(images, tokens)
    with pytest.raises(ValueError, match='one entry for each'):
        tiny.predict_logits(images, tokens, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match='context_length <= 32'):
        tiny.predict_logits(images, tokenize(['a'] * 3, 33))
    with pytest.raises(TypeError, match='needs data_samples with tokens'):
        tiny(images)
    model = copy.deepcopy(tiny).train()
    with pytest.raises(ValueError, match='batch_size or .*must be 2 or more'):
        model.loss(images[:1], samples([1], (64, 64)))


@torch.no_grad()
def test_predict_gives_masks_at_the_original_size():
    out = build(threshold=0.45).eval().predict(
        torch.randn(2, 3, 64, 64), samples([3, 1], (50, 70)))
    for sample, count in zip(out, [3, 1], strict=True):
        probs, mask = sample.seg_logits.data, sample.pred_sem_seg.data
        assert probs.shape == mask.shape == (count, 50, 70)
        assert (probs.dtype, mask.dtype) == (torch.float32, torch.bool)
        assert torch.equal(mask, probs > 0.45)


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix(tiny):
    images = torch.randn(3, 3, 64, 64)
    data = samples([2, 1, 3], (64, 64))
    loss = tiny.loss(images, data)['loss_contrastive']
    together = tiny.predict(images, copy.deepcopy(data))
    losses = []
    for image, sample, same in zip(images, data, together, strict=True):
        alone = tiny.loss(image[None], [sample])['loss_contrastive']
        losses += [alone] * len(sample.tokens)
        tiny.predict(image[None], [sample])
        close(same.seg_logits.data, sample.seg_logits.data, atol=1e-5,
              rtol=1e-5)
    close(loss, torch.stack(losses).mean())


def test_training_reaches_every_parameter_and_lowers_the_loss():
    torch.manual_seed(0)
    model = build().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    images = torch.randn(2, 3, 64, 64)
    data = samples([2, 2], (64, 64))
    for sample in data:
        mask = torch.zeros(2, 64, 64)
        mask[0, :32] = mask[1, 32:] = 1
        sample.gt_sem_seg = PixelData(data=mask)
    losses = []
    for _ in range(25):
        losses.append(model.loss(images, data)['loss_contrastive'])
        optimizer.zero_grad()
        losses[-1].backward()
        if len(losses) == 2:  # after the zero-initialised ends have moved
            assert all(
                p.grad is not None and p.grad.abs().sum() > 0
                for n, p in model.named_parameters()
                if not n.endswith('k_proj.bias'))
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.4'),
    reason='older autocast on a CPU leaves the mask of attention in fp32')
def test_bfloat16_keeps_logits_in_fp32(tiny, tokens):
    images = torch.randn(4, 3, 64, 64)
    expected = tiny.predict_logits(images, tokens)
    with torch.autocast('cpu', torch.bfloat16):
        logits = tiny.predict_logits(images, tokens)
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max() + 0.1
    logits.sum().backward()


@pytest.mark.parametrize('cfg, said', [
    (dict(model_name='RN51'), 'RN50, '),
    (dict(model_name='ViT-B-16-SigLIP'), "does not use CLIP's tokens.*RN50"),
    (dict(model_name='coca_ViT-B-32'), 'a token of its own'),
    (dict(model_name='roberta-ViT-B-32'), 'of the transformers package'),
    (dict(model_name='vit_relpos_medium_patch16_cls_224'), 'takes one size'),
    (dict(embed_dim=64), 'embed_dim=64'),
    (dict(model_name='RN50', embed_dim=512), 'embed_dim=1024'),
    (dict(model_name='RN50', vision_cfg=dict(width=32)),
     'vision_cfg=.* is given'),
    (dict(init_cfg=dict(type='Normal')), "must be of type 'Pretrained'"),
    (dict(TINY.decode_head, in_channels=66), 'needs a multiple of 4'),
    (dict(TINY.decode_head, kernel_size=2), 'kernel_size=2 must be odd'),
    (dict(TINY.decode_head, target_resize='cubic'), "'nearest' or 'area'"),
])
def test_wrong_configs(cfg, said):
    with pytest.raises(ValueError, match=said):
        MODELS.build(dict(dict(type='CLIPBackbone'), **cfg))


def test_config_is_not_changed():
    cfg = copy.deepcopy(TINY)
    MODELS.build(cfg)
    assert cfg == TINY


@pytest.mark.parametrize('num_layers', [0, 1])
def test_the_papers_ablations(num_layers, tokens):
    """Without text kernel and decoder the sentence still steers the neck."""
    torch.manual_seed(0)
    model = build(num_layers=num_layers, text_kernel=False)
    images = torch.randn(1, 3, 64, 64).expand(4, -1, -1, -1)
    logits = model.predict_logits(images, tokens)
    assert logits.shape == (4, 1, 16, 16)
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    logits.square().mean().backward()
    assert without_gradient(model) == []
    projector = model.decode_head.projector.eval()
    decoded = torch.randn(2, 64, 4, 5)
    weight, bias = projector.kernel.split([32 * 9, 1], dim=1)
    expected = F.conv2d(
        projector.pixel_proj(projector.upsample(decoded)),
        weight.reshape(1, 32, 3, 3), bias[0], padding=1)
    close(projector(decoded, torch.randn(2, 64)), expected, atol=1e-5,
          rtol=1e-5)


@pytest.mark.skipif(digit_version(torch.__version__) < digit_version('2.6'),
                    reason='the export needs torch >= 2.6')
def test_the_number_of_expressions_stays_free_in_an_export(tiny, tokens):
    """len() of a tensor would fix it, in the ONNX graph, too."""

    class Text(torch.nn.Module):

        def __init__(self):
            super().__init__()
            self.backbone = tiny.backbone

        def forward(self, tokens):
            return self.backbone.encode_text(tokens)

    exported = torch.export.export(
        Text(), (tokens[:3], ),
        dynamic_shapes=({0: torch.export.Dim('expressions')}, ))
    with torch.no_grad():
        for x, wanted in zip(exported.module()(tokens[:2]),
                             tiny.backbone.encode_text(tokens[:2]),
                             strict=True):
            torch.testing.assert_close(x, wanted)
