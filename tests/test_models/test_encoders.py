# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Image encoders of every kind: their maps, their weights, a whole CRIS."""
import copy

import open_clip
import pytest
import torch
from conftest import REPO
from mmengine.config import Config
from mmengine.structures import PixelData
from mmengine.utils import to_2tuple
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from torch import nn

from cris.datasets.tokenizer import tokenize
from cris.engine import optimize_for_inference
from cris.models.clip_backbone import needs_quick_gelu

TINY = Config.fromfile(REPO / 'configs/_base_/models/cris_tiny.py').model
TINY.auxiliary_head = None
TEXT = dict(context_length=32, vocab_size=49408, width=48, heads=3, layers=2)
same = torch.testing.assert_close


def timm(name, size=224, **cfg):
    return dict(dict(timm_model_name=name, timm_pool='', timm_proj='linear',
                     image_size=size), **cfg)


# Small ones of every family that open_clip has, and their native size.
FAMILIES = {
    'vit16': (64, dict(image_size=64, patch_size=16, width=64, layers=3)),
    'vit14': (224, dict(image_size=224, patch_size=14, width=64, layers=2)),
    'vit32': (96, dict(image_size=96, patch_size=32, width=64, layers=2,
                       ls_init_value=0.1, no_ln_pre=True)),
    'convnext': (64, timm('convnext_atto')),
    'fastvit': (64, timm('fastvit_t8', timm_pool='avg', timm_proj=None)),
    'swin': (224, timm('swin_tiny_patch4_window7_224')),
    'timm vit': (224, timm('vit_tiny_patch16_224')),
    'eva': (224, timm('eva02_tiny_patch14_224')),
}
REGISTRY = {
    'ResNet': dict(type='mmpretrain.ResNet', depth=18, out_indices=(1, 2, 3)),
    'ConvNeXt': dict(type='mmpretrain.ConvNeXt', arch='atto',
                     out_indices=(1, 2, 3), gap_before_final_norm=False),
    'Swin': dict(type='mmpretrain.SwinTransformer', arch='tiny',
                 out_indices=(1, 2, 3), pad_small_map=True),
    'EfficientNet': dict(type='mmpretrain.EfficientNet', arch='b0',
                         out_indices=(3, 4, 5)),
    'MobileNetV3': dict(type='mmpretrain.MobileNetV3', arch='small',
                        out_indices=(3, 8, 11)),
    'ViT': dict(type='mmpretrain.VisionTransformer', arch='dinov2-small',
                img_size=224, patch_size=14, out_type='featmap'),
    'TIMM': dict(type='mmpretrain.TIMMBackbone', features_only=True,
                 model_name='efficientnet_lite0', out_indices=(2, 3, 4)),
    'Lite0': dict(type='EfficientNetLite0'),
    'mmseg': dict(type='MixVisionTransformer', embed_dims=8,
                  num_layers=[1, 1, 1, 1]),
}


@MODELS.register_module()
class Stripes(nn.Module):
    """A backbone of a project elsewhere. Its batch norm is applied before the
    convolution that it follows by name."""

    def __init__(self, strides=(8, 16, 32)):
        super().__init__()
        self.strides = strides
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.conv(self.norm(x))
        return tuple(nn.functional.avg_pool2d(x, s) for s in self.strides)


@MODELS.register_module()
class OwnTowers(nn.Module):
    """Two encoders of a project elsewhere, none of CLIP's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.words = nn.Embedding(49408, 8)

    def forward(self, images):
        x = self.conv(images)
        return tuple(nn.functional.avg_pool2d(x, s) for s in (8, 16, 32))

    def encode_text(self, tokens):
        words = self.words(tokens)
        return words, words.mean(dim=1)


def clip_of(family):
    torch.manual_seed(0)
    return open_clip.CustomTextCLIP(
        embed_dim=64, vision_cfg=FAMILIES[family][1], text_cfg=TEXT).eval()


def backbone_of(family, **cfg):
    return MODELS.build(dict(
        type='CLIPBackbone', embed_dim=64, text_cfg=TEXT, quick_gelu=False,
        vision_cfg=FAMILIES[family][1], **cfg)).eval()


def own_backbone(encoder, **cfg):
    return MODELS.build(dict(type='CLIPBackbone', embed_dim=64, text_cfg=TEXT,
                             image_encoder=encoder, **cfg)).eval()


@torch.no_grad()
@pytest.mark.parametrize('family', FAMILIES)
def test_maps_are_those_of_open_clip(family, tmp_path):
    """After its weights are loaded, and at the native size."""
    clip = clip_of(family)
    torch.save(clip.state_dict(), tmp_path / 'clip.pt')
    flat = 'vit' in family and family != 'fastvit' or family == 'eva'
    backbone = backbone_of(
        family, init_cfg=dict(type='Pretrained',
                              checkpoint=str(tmp_path / 'clip.pt')),
        **(dict(out_indices=[0, 1]) if flat else {}))
    backbone.init_weights()
    size = FAMILIES[family][0]
    images = torch.randn(2, 3, size, size)
    if isinstance(clip.visual, TimmModel):
        infos = [info['reduction'] for info in
                 clip.visual.trunk.feature_info]
    indices = [0, 1] if flat else [infos.index(s) for s in (8, 16, 32)]
    theirs = clip.visual.forward_intermediates(
        images, indices=indices, intermediates_only=True)[
            'image_intermediates']
    ours = backbone._taps.maps(backbone.visual, images)
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().mean() > 1e-3
        same(a, b, atol=1e-5, rtol=1e-5)
    if not flat:
        for a, b in zip(backbone.encode_image(images), theirs, strict=True):
            same(a, b, atol=1e-5, rtol=1e-5)
    tokens = tokenize(['a red circle', 'sky'], 32)
    same(backbone.encode_text(tokens)[1], clip.encode_text(tokens),
         atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('vision_cfg', [
    TINY.backbone.vision_cfg, FAMILIES['convnext'][1], FAMILIES['vit16'][1]],
    ids=['resnet', 'convnext', 'vit16'])
def test_maps_for_small_objects(vision_cfg):
    """The same weights, two maps of which are taken one stage earlier."""
    cfg = dict(type='CLIPBackbone', embed_dim=64, text_cfg=TEXT,
               vision_cfg=vision_cfg)
    paper, small = (MODELS.build(dict(cfg, strides=strides)).eval()
                    for strides in ((8, 16, 32), (4, 8, 32)))
    small.load_state_dict(paper.state_dict())
    images = torch.randn(1, 3, 64, 96)
    c3, _, c5 = paper.encode_image(images)
    maps = small.encode_image(images)
    assert [tuple(x.shape[2:]) for x in maps] == [(16, 24), (8, 12), (2, 3)]
    assert small.image_channels == tuple(x.shape[1] for x in maps)
    same(maps[1], c3)
    same(maps[2], c5)


def test_maps_of_a_registry_for_small_objects():
    backbone = own_backbone(
        dict(type='EfficientNetLite0', out_indices=(1, 2, 4)),
        strides=(4, 8, 32))
    assert backbone.image_channels == (24, 40, 320)
    maps = backbone.encode_image(torch.randn(1, 3, 64, 96))
    assert [tuple(x.shape[2:]) for x in maps] == [(16, 24), (8, 12), (2, 3)]


@torch.no_grad()
def test_masks_from_maps_for_small_objects():
    cfg = copy.deepcopy(TINY)
    cfg.backbone.strides = (4, 8, 32)
    model = MODELS.build(cfg).eval()
    logits = model.predict_logits(
        torch.randn(1, 3, 64, 96), tokenize(['a star'], 17))
    assert logits.shape == (1, 1, 32, 48)
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[:, 10:20, 30:50] = True
    probs = model.original_size(mask[None, :, ::2, ::2] * 40. - 20, (64, 96))
    assert torch.equal(probs > 0.5, mask)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize('name', [
    'RN50', 'RN101-quickgelu', 'RN50x4', 'RN50x16', 'RN50x64', 'ViT-B-32',
    'ViT-B-16', 'ViT-B-16-quickgelu', 'ViT-L-14', 'ViT-L-14-336',
    'convnext_base', 'convnext_large_d_320', 'EVA02-B-16', 'ViTamin-S',
    'MobileCLIP-S1', 'swin_base_patch4_window7_224'])
def test_maps_of_true_sizes_are_those_of_open_clip(name):
    torch.manual_seed(0)
    config = open_clip.get_model_config(name)
    config['text_cfg'].update(layers=1)
    clip = open_clip.CustomTextCLIP(
        **{k: config[k] for k in ('embed_dim', 'vision_cfg', 'text_cfg')},
        quick_gelu='quickgelu' in name).eval()
    for module in clip.visual.modules():
        if isinstance(module, nn.BatchNorm2d):  # some weights start at zero
            nn.init.uniform_(module.weight, 0.5, 1)
    backbone = MODELS.build(dict(
        type='CLIPBackbone', model_name=name, quick_gelu='quickgelu' in name,
    )).eval()
    missing, _ = backbone.visual.load_state_dict(
        clip.visual.state_dict(), strict=False)
    assert all(key.startswith('attnpool.connect') for key in missing)
    height, width = to_2tuple(clip.visual.image_size)
    images = torch.randn(1, 3, height, width)
    ours = {}
    if isinstance(clip.visual, ModifiedResNet):
        layers = ('layer2', 'layer3', 'layer4')
        for layer in layers:
            getattr(backbone.visual, layer).register_forward_hook(
                lambda _, __, out, layer=layer: ours.update({layer: out}))
        *two, c5 = backbone.encode_image(images)
        assert all(map(torch.equal, two, [ours['layer2'], ours['layer3']]))
        ours, indices = [ours[layer] for layer in layers], [2, 3, 4]
    else:
        ours = backbone._taps.maps(backbone.visual, images)
        indices = [-1]
        if isinstance(clip.visual, TimmModel) and len(ours) == 3:
            infos = [info['reduction'] for info in
                     clip.visual.trunk.feature_info]
            indices = [infos.index(stride) for stride in (8, 16, 32)]
        elif isinstance(clip.visual, TimmModel):
            indices = [len(clip.visual.trunk.blocks) - 1]
        else:
            indices = [clip.visual.transformer.layers - 1]
    theirs = clip.visual.forward_intermediates(
        images, indices=indices, intermediates_only=True)[
            'image_intermediates']
    for a, b in zip(ours, theirs, strict=True):
        assert b.std() > 0
        same(a / b.std(), b / b.std(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_map_of_stride_16_is_that_of_open_clip():
    backbone = backbone_of('vit16')
    images = torch.randn(1, 3, 96, 32)
    c3, c4, c5 = backbone.encode_image(images)
    (plain, ) = backbone._taps.maps(backbone.visual, images)
    assert torch.equal(c4, plain)
    same(c5, nn.functional.avg_pool2d(plain, 2))
    assert c3.shape[2:] == (12, 4)


@pytest.mark.parametrize('family, with_cp', [
    *((family, False) for family in FAMILIES),
    *((family, True) for family in ('vit16', 'timm vit', 'convnext'))])
def test_any_size_and_gradients(family, with_cp):
    backbone = backbone_of(family, with_cp=with_cp)
    backbone.train()
    maps = backbone.encode_image(torch.randn(2, 3, 64, 96))
    for x, channels, stride in zip(
            maps, backbone.image_channels, (8, 16, 32), strict=True):
        assert x.shape == (2, channels, 64 // stride, 96 // stride)
    sum(x.square().mean() for x in maps).backward()
    missing = [name for name, weight in backbone.visual.named_parameters()
               if weight.requires_grad and weight.grad is None]
    assert not missing


def cris_of(backbone):
    """A whole, small CRIS with this backbone."""
    cfg = copy.deepcopy(TINY)
    cfg.neck.update(in_channels='auto', sentence_channels='auto')
    cfg.decode_head.update(word_channels='auto', sentence_channels='auto')
    torch.manual_seed(0)
    return MODELS.build(dict(cfg, backbone=backbone))


def batch(size=64):
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(ori_shape=(50, 70)))
        sample.tokens = tokenize(['a red circle', 'sky'], 17)
        sample.gt_sem_seg = PixelData(
            data=torch.rand(2, size, size).round())
        samples.append(sample)
    return torch.randn(2, 3, size, size), samples


ALL = [*FAMILIES, *REGISTRY, 'Stripes']


@pytest.mark.parametrize('name', ALL)
def test_a_whole_cris(name):
    """A step of training, then the same logits after the optimisation."""
    backbone = dict(type='CLIPBackbone', embed_dim=64, text_cfg=TEXT)
    if name in FAMILIES:
        backbone['vision_cfg'] = FAMILIES[name][1]
    else:
        backbone['image_encoder'] = REGISTRY.get(name, dict(type='Stripes'))
    model = cris_of(backbone)
    model.init_weights()
    model.train()
    inputs, samples = batch()
    loss = sum(model.loss(inputs, samples).values())
    loss.backward()
    missing = [name for name, weight in model.named_parameters()
               if weight.requires_grad and weight.grad is None]
    assert not missing and loss.isfinite()
    for module in model.modules():  # as after a training
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    model.eval()
    with torch.no_grad():
        plain = model._forward(inputs, samples)
        fast = optimize_for_inference(copy.deepcopy(model))._forward(
            inputs, samples)
    assert plain.std() > 1e-3
    same(fast, plain, atol=1e-3 * plain.abs().max().item(), rtol=0)


@torch.no_grad()
def test_a_backbone_that_is_no_clip():
    """It need not say its channels, if the config does."""
    cfg = copy.deepcopy(TINY)
    cfg.neck.update(in_channels=[8, 8, 8], sentence_channels=8)
    cfg.decode_head.update(word_channels=8, sentence_channels=8)
    model = MODELS.build(dict(cfg, backbone=dict(type='OwnTowers'))).eval()
    inputs, samples = batch()
    plain = model._forward(inputs, samples)
    same(optimize_for_inference(model)._forward(inputs, samples), plain,
         atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_every_model_of_open_clip():
    """Each serves, or is refused with the reason and those that serve."""
    served, refused = [], []
    for name in open_clip.list_models():
        try:
            with torch.device('meta'):
                backbone = MODELS.build(
                    dict(type='CLIPBackbone', model_name=name)).eval()
                maps = backbone.encode_image(torch.empty(1, 3, 96, 160))
                words, sentence = backbone.encode_text(
                    torch.ones(2, 17, dtype=torch.int64))
        except ValueError as error:
            refused.append(str(error))
            continue
        served.append(name)
        assert [tuple(x.shape[1:]) for x in maps] == [
            (channels, 96 // stride, 160 // stride) for channels, stride
            in zip(backbone.image_channels, (8, 16, 32), strict=True)], name
        assert backbone.text_channels == (words.shape[2], sentence.shape[1])
    print(len(served), 'serve,', len(refused), 'are refused')
    assert {message.partition('CRIS can use ')[2] for message in refused} == {
        ', '.join(served)}
    assert {'RN50x64', 'ViT-L-14-336', 'convnext_base', 'EVA02-L-14',
            'MobileCLIP-S1', 'ViTamin-B'} <= set(served)


def test_unused_weights_are_frozen():
    frozen = [name for name, weight in own_backbone(
        dict(type='Stripes')).visual.named_parameters()
        if not weight.requires_grad]
    assert frozen == ['unused.weight', 'unused.bias']


def test_the_text_encoder_alone_is_loaded(tmp_path):
    clip = clip_of('vit16')
    torch.save(clip.state_dict(), tmp_path / 'clip.pt')
    backbone = own_backbone(dict(type='Stripes'), init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'clip.pt')))
    backbone.init_weights()
    for name, weight in clip.text.state_dict().items():
        assert torch.equal(backbone.text.state_dict()[name], weight)


@pytest.mark.parametrize('encoder, said', [
    (dict(type='Stripes', strides=(4, 8, 16)),
     'maps at the strides 4, 8, 16: CRIS needs 8, 16, 32'),
    (dict(type='mmpretrain.ResNet', depth=18, out_indices=(0, 1, 2)),
     'maps at the strides 4, 8, 16'),
    (dict(type='mmpretrain.VisionTransformer', arch='deit-tiny'),
     r'returns tensors of \[\(1, 192\)\]: CRIS needs maps'),
])
def test_other_maps_are_refused(encoder, said):
    with pytest.raises(ValueError, match=said):
        own_backbone(encoder)


def test_other_strides_are_refused():
    with pytest.raises(ValueError, match='must be .8, 16, 32. or .4, 8, 32.'):
        backbone_of('vit16', strides=(4, 8, 16))
    with pytest.raises(ValueError, match='8, 16, 32: CRIS needs 4, 8, 32'):
        own_backbone(dict(type='Stripes'), strides=(4, 8, 32))


@pytest.mark.parametrize('cfg, said', [
    (dict(out_indices=[3]), 'ascending blocks between 0 and 2'),
    (dict(out_indices=[1, 0]), 'ascending blocks'),
    (dict(image_encoder=dict(type='Stripes')), 'either image_encoder or vis'),
])
def test_contradictions(cfg, said):
    with pytest.raises(ValueError, match=said):
        backbone_of('vit16', **cfg)


def test_the_gelu_is_that_of_the_weights():
    assert needs_quick_gelu('RN50', None)
    assert needs_quick_gelu('ViT-B-16', 'openai')
    assert needs_quick_gelu('ViT-B-16-quickgelu', None)
    assert not needs_quick_gelu('ViT-B-16', 'laion2b_s34b_b88k')
    assert not needs_quick_gelu('convnext_base', None)
