# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What is frozen, and LoRA in the two encoders."""
import copy
import functools
import json
import logging
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import open_clip
import publish_model
import pytest
import torch
from conftest import CONFIG, REPO
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from mmengine.runner.checkpoint import get_state_dict, load_state_dict
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import cris as cris_api
from cris.datasets.tokenizer import tokenize
from cris.engine import load_config, optimize_for_inference
from cris.engine.logs import log_trained
from cris.engine.training import _SetUpHook, choose_checkpoint
from cris.io.checkpoints import CheckpointError, read_checkpoint
from cris.models.fast_cpu import optimize_for_cpu_training

TINY = Config.fromfile(REPO / 'configs/_base_/models/cris_tiny.py').model
TINY.auxiliary_head = None
TEXT = dict(context_length=32, vocab_size=49408, width=48, heads=3, layers=1)
RESNET = dict(image_size=64, layers=[1, 1, 1, 1], width=16)
VIT = dict(image_size=64, patch_size=16, width=64, layers=3)
CONVNEXT = dict(timm_model_name='convnext_atto', timm_pool='', image_size=64,
                timm_proj='linear')
LORA = dict(type='LoRA', r=4, lora_alpha=8)
same = torch.testing.assert_close


def cris(vision=RESNET, **backbone):
    """A small CRIS whose adapters, if any, do something."""
    if 'image_encoder' not in backbone:
        backbone['vision_cfg'] = vision
    return copy.deepcopy(build(json.dumps(backbone)))


@functools.cache
def build(backbone):
    cfg = copy.deepcopy(TINY)
    cfg.neck.update(in_channels='auto', sentence_channels='auto')
    cfg.decode_head.update(word_channels='auto', sentence_channels='auto')
    cfg.backbone = dict(type='CLIPBackbone', embed_dim=64, text_cfg=TEXT,
                        **json.loads(backbone))
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for name, weight in model.named_parameters():
        if 'lora_B' in name:
            nn.init.normal_(weight, std=0.1)
    return model


def batch():
    torch.manual_seed(1)
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(ori_shape=(64, 64)))
        sample.tokens = tokenize(['a red circle', 'sky'], 17)
        sample.gt_sem_seg = PixelData(data=torch.rand(2, 64, 64).round())
        samples.append(sample)
    return torch.randn(2, 3, 64, 64), samples


def logits(model):
    with torch.no_grad():
        return model.eval()._forward(*batch())


def step(model):
    """A step of training; what changed, by name."""
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    before = copy.deepcopy(model.state_dict())
    loss = sum(model.loss(*batch()).values())
    loss.backward()
    assert all(weight.grad is not None for weight in weights)
    torch.optim.AdamW(weights, 1e-2).step()
    return {name for name, weight in model.state_dict().items()
            if not torch.equal(weight, before[name])}


def frozen_names(module):
    return {name for name, weight in module.named_parameters()
            if not weight.requires_grad}


@pytest.mark.parametrize('vision, stages, frozen, trained', [
    (RESNET, 0, ['bn3.'], ['layer1.', 'layer4.', 'attnpool.']),
    (RESNET, 2, ['conv1.', 'layer1.', 'layer2.'], ['layer3.']),
    (RESNET, 4, ['layer4.'], ['attnpool.q_proj.', 'attnpool.connect.']),
    (RESNET, 5, ['layer4.', 'attnpool.q_proj.', 'attnpool.positional'],
     ['attnpool.connect.']),
    (RESNET, 'all', ['layer4.', 'attnpool.c_proj.'], ['attnpool.connect.']),
    (VIT, 0, ['conv1.', 'class_', 'ln_pre.'], ['transformer.resblocks.0.']),
    (VIT, 2, ['positional_embedding', 'transformer.resblocks.1.'],
     ['transformer.resblocks.2.']),
    (CONVNEXT, 0, ['trunk.stem.'], ['trunk.stages.0.']),
    (CONVNEXT, 2, ['trunk.stages.1.'], ['trunk.stages.2.']),
    (CONVNEXT, 'all', ['trunk.stages.3.'], []),
    ('EfficientNetLite0', 0, ['trunk.conv_stem.', 'trunk.bn1.'],
     ['trunk.blocks.0.']),
    ('EfficientNetLite0', 3, ['trunk.blocks.2.'], ['trunk.blocks.3.']),
])
def test_frozen_stages(vision, stages, frozen, trained):
    towers = dict(vision=vision) if isinstance(vision, dict) else dict(
        image_encoder=dict(type=vision))
    visual = cris(**towers, frozen_stages=stages).backbone.visual
    names = frozen_names(visual)
    for prefix in (*frozen, *trained):
        own = {name for name, _ in visual.named_parameters()
               if name.startswith(prefix)}
        assert own and own & names == (own if prefix in frozen else set())


def test_frozen_stages_stay_as_they_were():
    """Weights, statistics, and nothing is kept for their backward pass."""
    model = cris(frozen_stages=3, frozen_text=True)
    seen = []
    for module in (model.backbone.visual.layer3, model.backbone.text.ln_final):
        module.register_forward_hook(
            lambda module, args, out: seen.append(out.requires_grad))
    changed = step(model)
    assert seen == [False, False]
    prefixes = ('backbone.visual.layer4.', 'backbone.visual.attnpool.',
                'neck.', 'decode_head.')
    assert changed and all(name.startswith(prefixes) for name in changed)
    assert 'backbone.visual.layer4.0.bn1.running_mean' in changed
    visual = model.backbone.visual
    assert not visual.bn1.training and not visual.layer3[0].bn1.training
    assert visual.layer4[0].bn1.training


def test_both_encoders_may_be_frozen():
    model = cris(VIT, frozen_stages='all', frozen_text=True)
    assert all(name.startswith(('neck.', 'decode_head.'))
               for name in step(model))
    assert frozen_names(model.backbone) == {
        name for name, _ in model.backbone.named_parameters()}


def test_parts_of_a_whole_cris_may_be_frozen():
    frozen = ['neck', 'decode_head.decoder']
    model = MODELS.build(dict(TINY, frozen=frozen))
    optimize_for_cpu_training(model)
    before = copy.deepcopy(model.state_dict())
    changed = step(model)
    assert changed and not any(
        name.startswith(tuple(f'{part}.' for part in frozen))
        for name in changed)
    assert any(name.startswith('decode_head.projector.') for name in changed)
    assert before.keys() == model.state_dict().keys()
    assert not model.neck.training and model.backbone.training
    with pytest.raises(ValueError, match="frozen=.'head'.*'head'|`head`"):
        MODELS.build(dict(TINY, frozen=['head']))


def test_backbones_of_registries_are_frozen_as_a_whole():
    encoder = dict(type='MixVisionTransformer', embed_dims=8,
                   num_layers=[1, 1, 1, 1])
    visual = cris(image_encoder=encoder, frozen_stages='all').backbone.visual
    assert len(frozen_names(visual)) == len(list(visual.parameters()))
    with pytest.raises(ValueError, match="use 'all', or give it to image_enc"):
        cris(image_encoder=encoder, frozen_stages=1)


@pytest.mark.parametrize('stages', [6, -2, 'some'])
def test_stages_that_do_not_exist(stages):
    with pytest.raises(ValueError, match='has 5 stages after its stem'):
        cris(frozen_stages=stages)


def test_without_peft_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(ImportError, match="pip install 'peft>=0.14'"):
        cris(peft=LORA)


@pytest.mark.parametrize('vision, rates', [
    (RESNET, {'visual.conv1.': 2**-6, 'visual.layer1.': 2**-5,
              'visual.layer4.': 2**-2, 'visual.attnpool.q_proj.': 2**-1,
              'visual.attnpool.connect.': 1, 'text.token_embedding.': 2**-2,
              'text.positional_embedding': 2**-2,
              'text.transformer.resblocks.0.': 2**-1, 'text.ln_final.': 1}),
    (CONVNEXT, {'visual.trunk.stem.': 2**-5,
                'visual.trunk.stages.3.': 2**-1}),
])
def test_the_rate_decays_with_depth(vision, rates):
    model = cris(vision)
    optimizer = build_optim_wrapper(model, dict(
        optimizer=dict(type='AdamW', lr=1., weight_decay=0.1),
        constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.5)))
    found = {group['param_name']: group['lr'] for group
             in optimizer.param_groups if 'param_name' in group}
    rates = {f'backbone.{name}': rate for name, rate in rates.items()}
    for prefix, rate in {**rates, 'neck.': 1, 'decode_head.': 1}.items():
        own = {value for name, value in found.items()
               if name.startswith(prefix)}
        assert own == {rate}, prefix


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A config, a checkpoint, its file of what was trained, its publisher."""
    cfg = load_config(str(CONFIG))
    backbone = cfg.model.backbone
    clips = [tmp_path / 'clip.pt', tmp_path / 'other.pt']
    for clip in clips:
        torch.save(open_clip.CustomTextCLIP(
            embed_dim=backbone.embed_dim, vision_cfg=dict(backbone.vision_cfg),
            text_cfg=dict(backbone.text_cfg), quick_gelu=True
        ).state_dict(), clip)
    backbone.update(frozen_stages=3, frozen_text=True, init_cfg=dict(
        type='Pretrained', checkpoint=str(clips[0])))
    model = cris_api.init_model(cfg, pretrained=False, device='cpu')
    model.backbone.init_weights()
    checkpoint = dict(meta={}, state_dict=model.state_dict())
    hook_of(model).before_save_checkpoint(runner_of(model), checkpoint)
    torch.save(checkpoint, tmp_path / 'epoch_1.pth')

    def publish():
        monkeypatch.setattr('sys.argv', [
            'publish_model.py', str(tmp_path / 'epoch_1.pth'),
            str(tmp_path / 'out/cris'), '--adapters'])
        publish_model.main()
        (path, ) = (tmp_path / 'out').iterdir()
        return str(path)

    return SimpleNamespace(
        cfg=cfg, model=model, checkpoint=tmp_path / 'epoch_1.pth',
        other=str(clips[1]), publish=publish)


def runner_of(model):
    runner = Runner.__new__(Runner)
    runner.model = model
    return runner


def hook_of(model, path=None):
    return _SetUpHook(None, Config(dict(load_from=path, resume=False)))


def test_only_what_was_trained_is_published(published):
    weights = published.model.state_dict()
    path = published.publish()
    saved = load_file(path)
    assert saved.keys() == weights.keys() - {
        f'backbone.{name}' for name in frozen_names(published.model.backbone)}
    assert 'backbone.visual.layer4.0.conv1.weight' in saved
    assert 'backbone.visual.attnpool.connect.0.weight' in saved
    for build in (
            lambda: cris_api.init_model(published.cfg, path, device='cpu'),
            lambda: loaded(published, path)):
        same(dict(build().state_dict()), dict(weights), atol=0, rtol=0)


def loaded(published, path):
    """As a run starts from the file with load_from."""
    cfg = published.cfg
    cfg.update(load_from=path, resume=False)
    choose_checkpoint(cfg)
    model = cris_api.init_model(cfg, pretrained=False, device='cpu')
    model.backbone.init_weights()
    checkpoint = read_checkpoint(path)
    hook_of(model, path).after_load_checkpoint(runner_of(model), checkpoint)
    model.load_state_dict(checkpoint['state_dict'])
    return model


def test_a_whole_cris_and_what_was_trained_of_it(tmp_path, monkeypatch):
    """Its frozen weights come from the model's own init_cfg."""
    cfg = load_config(str(CONFIG))
    whole = tmp_path / 'whole.pth'
    torch.manual_seed(1)
    torch.save(MODELS.build(cfg.model).state_dict(), whole)
    cfg.model.update(
        frozen=['neck', 'decode_head.decoder'],
        init_cfg=dict(type='Pretrained', checkpoint=str(whole)))
    cfg.model.backbone.update(frozen_stages='all', frozen_text=True)
    model = MODELS.build(cfg.model)
    model.init_weights()
    step(model)
    checkpoint = dict(meta={}, state_dict=model.state_dict())
    hook_of(model).before_save_checkpoint(runner_of(model), checkpoint)
    torch.save(checkpoint, tmp_path / 'epoch_1.pth')
    monkeypatch.setattr('sys.argv', [
        'publish_model.py', str(tmp_path / 'epoch_1.pth'),
        str(tmp_path / 'out/cris'), '--adapters'])
    publish_model.main()
    (path, ) = (tmp_path / 'out').iterdir()
    parameters = {name for name, _ in model.named_parameters()}
    model.auxiliary_head = None  # left out
    assert parameters & load_file(path).keys() == {
        name for name, p in model.named_parameters() if p.requires_grad}
    loaded = cris_api.init_model(cfg, str(path), device='cpu')
    same(dict(loaded.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    cfg.model.init_cfg = None
    with pytest.raises(CheckpointError, match='on other frozen weights'):
        cris_api.init_model(cfg, str(path), device='cpu')


def test_other_frozen_weights_are_refused(published):
    path = published.publish()
    published.cfg.model.backbone.init_cfg.checkpoint = published.other
    for load in (cris_api.init_model, lambda cfg, path, device: loaded(
            published, path)):
        with pytest.raises(CheckpointError, match='other frozen weights'):
            load(published.cfg, path, device='cpu')
    published.cfg.model.backbone.frozen_stages = 2
    with pytest.raises(CheckpointError, match='missing: .*layer3'):
        cris_api.init_model(published.cfg, path, device='cpu')


def test_a_run_that_froze_nothing_has_no_adapters(published):
    torch.save(dict(state_dict=published.model.state_dict()),
               published.checkpoint)
    with pytest.raises(SystemExit, match='without --adapters'):
        published.publish()


def test_the_log_says_what_is_trained(caplog):
    model = cris(frozen_stages='all')
    runner = SimpleNamespace(logger=logging.getLogger('trained'))
    with caplog.at_level('INFO'):
        log_trained(runner, model)
    total, connect = (sum(p.numel() for p in module.parameters()) for module in
                      (model.backbone.visual,
                       model.backbone.visual.attnpool.connect))
    assert (f'image {connect / 1e6:.4g} of {total / 1e6:.4g} M'
            in caplog.text)


needs_peft = pytest.mark.skipif(
    find_spec('peft') is None, reason='needs requirements/optional.txt')
DORA = dict(LORA, use_dora=True)
CASES = [(RESNET, DORA), (VIT, LORA)]


def plain_of(model):
    """Without adapters, with the same weights; names and shapes agree."""
    vision = model.vision
    plain = cris(vision)
    weights = model.state_dict()
    assert set(plain.state_dict()) == {
        name for name in weights if '.lora_' not in name}
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    return plain


def adapted(vision=RESNET, peft=LORA, **backbone):
    model = cris(vision, peft=peft, **backbone)
    model.vision = vision
    return model


@needs_peft
@pytest.mark.parametrize('vision, peft', CASES)
def test_a_plain_checkpoint_is_the_start_of_adapters(vision, peft):
    """By torch's loader and by mmengine's, which saves and loads itself."""
    plain = cris(vision)
    for weight in plain.backbone.parameters():
        weight.data *= 1.01
    model = adapted(vision, peft)
    for name, weight in model.named_parameters():
        if 'lora_B' in name:
            nn.init.zeros_(weight)
    assert (logits(model) - logits(plain)).abs().max() > 1e-3
    model.load_state_dict(plain.state_dict())
    same(logits(model), logits(plain), atol=1e-5, rtol=1e-5)
    again = adapted(vision, peft)
    load_state_dict(again, get_state_dict(model), strict=True)
    same(logits(again), logits(model))
    assert set(get_state_dict(model)) == set(model.state_dict())


@needs_peft
@pytest.mark.parametrize('vision, peft', CASES)
def test_only_what_is_new_is_trained(vision, peft):
    model = adapted(vision, dict(peft, lora_dropout=0.1))
    start = adapted(vision, peft)
    assert (logits(model) - logits(plain_of(model))).abs().max() > 1e-3
    changed = step(model)
    for name in model.state_dict():
        if name.endswith(('running_mean', 'running_var', 'tracked')):
            continue
        new = '.lora_' in name or '.connect.' in name or not name.startswith(
            'backbone.')
        assert (name in changed) == new, name
    # The whole state, through a file.
    start.load_state_dict(model.state_dict())
    same(logits(start), logits(model))


@needs_peft
@pytest.mark.parametrize('vision, peft', [*CASES, (CONVNEXT, DORA)])
def test_merged_adapters_give_the_same_logits(vision, peft):
    model = adapted(vision, peft)
    plain = logits(model)
    fast = optimize_for_inference(copy.deepcopy(model))
    assert not any('.lora_' in name for name, _ in fast.named_modules())
    same(logits(fast), plain, atol=1e-4, rtol=1e-4)


@needs_peft
def test_swapped_modules_keep_the_adapters():
    model = adapted()
    fast = copy.deepcopy(model)
    optimize_for_cpu_training(fast)
    same(logits(fast), logits(model), atol=1e-5, rtol=1e-5)
    step(fast)


@needs_peft
def test_the_average_of_weights_loads_a_plain_model():
    model, plain = adapted(), cris()
    average = ExponentialMovingAverage(model, momentum=0.5)
    nn.init.ones_(plain.backbone.visual.attnpool.q_proj.weight)
    for each in (model, average.module):
        load_state_dict(each, plain.state_dict(), strict=True)
    average.update_parameters(model)
    step(model)
    average.update_parameters(model)
    averaged = average.state_dict()
    assert averaged.pop('steps') == 2
    weights = model.state_dict()
    assert {f'module.{name}' for name in weights} == set(averaged)
    name = 'backbone.visual.attnpool.q_proj.{}weight'.format
    assert (averaged['module.' + name('')] == 1).all()
    assert not torch.equal(averaged['module.' + name('lora_B.default.')],
                           weights[name('lora_B.default.')])


@needs_peft
def test_frozen_parts_get_no_adapters():
    names = [name for name, weight in adapted(
        VIT, frozen_text=True, frozen_stages=1).named_parameters()
        if '.lora_' in name]
    assert names and all(
        name.startswith(('backbone.visual.transformer.resblocks.1.',
                         'backbone.visual.transformer.resblocks.2.'))
        for name in names)
    with pytest.raises(ValueError, match='all are frozen'):
        adapted(VIT, frozen_text=True, frozen_stages='all')


@needs_peft
@pytest.mark.parametrize('peft, said', [
    (dict(LORA, target_modules=['c_proj', 'query']),
     r"not frozen \(query\); these could match: .*q_proj.*in_proj, out_proj"),
    (dict(LORA, target_modules='layer1'), r'not frozen \(layer1\)'),
    (dict(type='IA3'), "must be 'LoRA'"),
    (dict(LORA, rank=4), 'rank'),
    (dict(LORA, init_lora_weights='pissa'), 'loaded later'),
    (dict(LORA, modules_to_save=['ln_final']), 'not supported'),
])
def test_arguments_of_peft_that_cannot_be_used(peft, said):
    with pytest.raises(ValueError, match=said):
        adapted(peft=peft)


@needs_peft
def test_layers_by_name_or_pattern():
    by_name = adapted(peft=dict(LORA, target_modules=['conv3', 'c_fc']))
    pattern = adapted(peft=dict(
        LORA, target_modules=r'visual.*\.conv3|text.*\.c_fc'))
    names = [name for name, _ in by_name.named_parameters() if 'lora_' in name]
    assert len(names) == 2 * (4 + 1 + 1)
    assert names == [n for n, _ in pattern.named_parameters() if 'lora_' in n]
    same(logits(optimize_for_inference(copy.deepcopy(by_name))),
         logits(by_name), atol=1e-4, rtol=1e-4)


@needs_peft
def test_clips_weights_below_the_adapters(tmp_path):
    clip = open_clip.CustomTextCLIP(
        embed_dim=64, vision_cfg=VIT, text_cfg=TEXT, quick_gelu=True)
    torch.save(clip.state_dict(), tmp_path / 'clip.pt')
    backbone = adapted(VIT, init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'clip.pt'))).backbone
    backbone.init_weights()
    theirs = clip.state_dict()
    for name, weight in backbone.state_dict().items():
        assert '.lora_' in name or torch.equal(weight, theirs[name])


@needs_peft
def test_an_encoder_that_initialises_itself_starts_without_effect():
    encoder = dict(type='mmpretrain.ConvNeXt', arch='atto',
                   out_indices=(1, 2, 3), gap_before_final_norm=False)
    backbone = adapted(image_encoder=encoder, peft=dict(
        DORA, target_modules=['pointwise_conv1'])).backbone
    backbone.init_weights()
    for name, weight in backbone.visual.named_parameters():
        if 'lora_B' in name:
            assert not weight.any()
        if 'magnitude' in name:
            layer = backbone.visual.get_submodule(name.partition('.lora')[0])
            same(weight, layer.weight.norm(dim=1))
