# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import copy

import pytest
import torch
from conftest import REPO
from mmengine.config import Config
from mmengine.structures import PixelData
from mmengine.utils import digit_version
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from cris.datasets.tokenizer import tokenize

R50 = Config.fromfile(
    REPO / 'configs/cris/cris_r50_8xb8-amp-50e_refcoco-416x416.py').model
TINY = Config.fromfile(REPO / 'configs/_base_/models/cris_tiny.py').model


@pytest.fixture(scope='module')
def tiny():
    torch.manual_seed(0)
    model = MODELS.build(TINY)
    # Batch norms and the zero-initialised ends of residual blocks must say
    # something, or a test of equality would pass on zeros.
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope='module')
def tokens():
    return tokenize(
        ['red circle', 'the small blue square on the left', 'sky', 'a b c'],
        17)


def test_a_step_of_r50_at_416():
    model = MODELS.build(R50)
    logits = model.predict_logits(
        torch.randn(2, 3, 416, 416), tokenize(['a dog', 'a cat'], 17))
    assert logits.shape == (2, 1, 104, 104)
    logits.mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []


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
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    assert (together[0] - together[2]).abs().max() > 1e-3


@torch.no_grad()
def test_padding_says_nothing(tiny):
    images = torch.randn(1, 3, 64, 64)
    short, long = (
        tiny.predict_logits(images, tokenize('the red circle', length))
        for length in (6, 30))
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('size, cure', [((200, 333), '192x320'),
                                        ((64, 95), '64x96'),
                                        ((16, 32), '32x32')])
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


def samples(counts, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    out = []
    for count in counts:
        sample = SegDataSample(
            metainfo=dict(ori_shape=(50, 70), img_path='x.jpg'))
        sample.tokens = torch.randint(
            1, 49000, (count, 9), generator=generator)
        sample.tokens[:, -1] = 49407
        sample.gt_sem_seg = PixelData(
            data=torch.rand(count, *size, generator=generator))
        out.append(sample)
    return out


def test_predict_gives_masks_at_the_original_size(tiny):
    with torch.no_grad():
        out = tiny.predict(
            torch.randn(2, 3, 64, 64), samples([3, 1], (50, 70)))
    for sample, count in zip(out, [3, 1], strict=True):
        assert sample.pred_sem_seg.data.shape == (count, 50, 70)
        assert sample.pred_sem_seg.data.dtype == torch.bool
        probs = sample.seg_logits.data
        assert probs.dtype == torch.float32
        assert torch.equal(sample.pred_sem_seg.data, probs > 0.35)


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix(tiny):
    images = torch.randn(3, 3, 64, 64)
    data = samples([2, 1, 3], (64, 64))
    loss = tiny.loss(images, data)['loss_contrastive']
    together = tiny.predict(images, copy.deepcopy(data))
    losses = []
    for i, sample in enumerate(data):
        one = images[i:i + 1]
        losses += [tiny.loss(one, [sample])['loss_contrastive']] * len(
            sample.tokens)
        (alone, ) = tiny.predict(one, [copy.deepcopy(sample)])
        torch.testing.assert_close(
            together[i].seg_logits.data,
            alone.seg_logits.data,
            atol=1e-5,
            rtol=1e-5)
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_training_reaches_every_parameter_and_lowers_the_loss():
    torch.manual_seed(0)
    model = MODELS.build(TINY).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    images = torch.randn(2, 3, 64, 64)
    data = samples([2, 2], (64, 64))
    for sample in data:
        mask = torch.zeros_like(sample.gt_sem_seg.data)
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
def test_bfloat16_keeps_logits_and_loss_in_fp32(tiny, tokens):
    images = torch.randn(4, 3, 64, 64)
    expected = tiny.predict_logits(images, tokens)
    with torch.autocast('cpu', torch.bfloat16):
        logits = tiny.predict_logits(images, tokens)
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max() + 0.1
    logits.sum().backward()


def test_save_and_load(tiny, tokens, tmp_path):
    torch.save(tiny.state_dict(), tmp_path / 'weights.pth')
    other = MODELS.build(TINY).eval()
    other.load_state_dict(
        torch.load(tmp_path / 'weights.pth', weights_only=True))
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(
            tiny.predict_logits(images, tokens),
            other.predict_logits(images, tokens))


class TestBackbone:

    def test_names_and_sizes_that_do_not_exist(self):
        build = MODELS.build
        with pytest.raises(ValueError, match='RN50, '):
            build(dict(type='CLIPBackbone', model_name='RN51'))
        with pytest.raises(ValueError, match='VisionTransformer'):
            build(dict(type='CLIPBackbone', model_name='ViT-B-32'))
        with pytest.raises(ValueError, match='embed_dim=64'):
            build(dict(type='CLIPBackbone', embed_dim=64))

    def test_a_name_and_sizes_must_agree(self):
        cfg = dict(type='CLIPBackbone', model_name='RN50')
        with pytest.raises(ValueError, match='embed_dim=1024'):
            MODELS.build(dict(cfg, embed_dim=512))
        with pytest.raises(ValueError, match='vision_cfg=.* is given'):
            MODELS.build(dict(cfg, vision_cfg=dict(width=32)))

    def test_config_is_not_changed(self):
        cfg = copy.deepcopy(TINY)
        MODELS.build(cfg)
        assert cfg == TINY


@pytest.mark.parametrize('num_layers', [0, 1])
def test_the_papers_ablations(num_layers, tokens):
    """Without text kernel and decoder the sentence still steers the neck."""
    cfg = copy.deepcopy(TINY)
    cfg.decode_head.update(num_layers=num_layers, text_kernel=False)
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    images = torch.randn(1, 3, 64, 64).expand(4, -1, -1, -1)
    logits = model.predict_logits(images, tokens)
    assert logits.shape == (4, 1, 16, 16)
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    logits.square().mean().backward()
    kernel = model.decode_head.projector.kernel
    assert kernel.shape == (1, 32 * 9 + 1)
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []


@torch.no_grad()
def test_a_static_kernel_is_a_convolution():
    cfg = copy.deepcopy(TINY)
    cfg.decode_head.text_kernel = False
    projector = MODELS.build(cfg).decode_head.projector.eval()
    decoded, sentence = torch.randn(2, 64, 4, 5), torch.randn(2, 64)
    weight, bias = projector.kernel.split([32 * 9, 1], dim=1)
    expected = torch.nn.functional.conv2d(
        projector.pixel_proj(projector.upsample(decoded)),
        weight.reshape(1, 32, 3, 3),
        bias[0],
        padding=1)
    torch.testing.assert_close(
        projector(decoded, sentence), expected, atol=1e-5, rtol=1e-5)


def test_a_single_expression_cannot_be_trained(tiny):
    model = copy.deepcopy(tiny).train()
    sample = SegDataSample(
        metainfo=dict(tokens=tokenize(['a'], 17)),
        gt_sem_seg=PixelData(data=torch.zeros(1, 64, 64)))
    with pytest.raises(ValueError, match='batch_size or .*must be 2 or more'):
        model.loss(torch.zeros(1, 3, 64, 64), [sample])


def test_images_without_expressions(tiny):
    with pytest.raises(TypeError, match='needs data_samples with tokens'):
        tiny(torch.zeros(1, 3, 64, 64))
