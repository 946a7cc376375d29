# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""CLIP's weights, in every form in which people have them."""
import copy
import functools
import warnings

import open_clip
import pytest
import torch
from conftest import GOLDEN, REPO
from mmengine.config import Config
from mmseg.registry import MODELS
from safetensors.torch import load_file, save_file
from torch import nn

from cris.datasets.tokenizer import tokenize

TINY = Config.fromfile(REPO / 'configs/_base_/models/cris_tiny.py').model
RN50 = dict(type='CLIPBackbone', model_name='RN50')


def make_clip(cfg, cls=open_clip.CLIP):
    sizes = {k: cfg[k] for k in ('embed_dim', 'vision_cfg', 'text_cfg')}
    clip = cls(**sizes, quick_gelu=True).eval()
    # open_clip begins with the ends of its blocks at zero, and a random model
    # without statistics lets its maps fade away.
    for module in clip.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.1, 0.5)
    return clip


@pytest.fixture(scope='module')
def clip():
    torch.manual_seed(0)
    return make_clip(TINY.backbone)


def trace(clip, path, size=160):
    """A TorchScript archive, as OpenAI publishes CLIP."""
    tokens = torch.ones(1, clip.context_length, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.trace(
            clip, (torch.randn(1, 3, size, size), tokens), check_trace=False,
            strict=False).save(path)
    return path


def backbone_of(checkpoint, base=TINY.backbone, **cfg):
    backbone = MODELS.build(dict(
        base, **cfg,
        init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint))))
    backbone.init_weights()
    return backbone.eval()


def write(form, clip, folder):
    weights, path = clip.state_dict(), folder / 'clip.pt'
    if form == 'torchscript':
        return trace(clip, path)
    if form == 'half':  # as in OpenAI's file, with the sizes it holds
        weights = {k: v.half() for k, v in weights.items()}
        weights['input_resolution'] = torch.tensor(160)
    if form == 'safetensors':
        path = folder / 'clip.safetensors'
        save_file(weights, path)
        return path
    if form == 'open_clip checkpoint':
        prefixed = {f'module.{k}': v for k, v in weights.items()}
        weights = dict(epoch=3, name='run', state_dict=prefixed, optimizer={})
    if form == 'text tower':
        weights = make_clip(TINY.backbone,
                            open_clip.CustomTextCLIP).state_dict()
        own = clip.state_dict()
        weights = {k: own[k.removeprefix('text.')] for k in weights}
    torch.save(weights, path)
    return path


def assert_same_towers(backbone, clip, size=64):
    same = functools.partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)
    tokens = tokenize(['a red circle', 'sky'], clip.context_length)
    same(backbone.encode_text(tokens)[1], clip.encode_text(tokens))
    images = torch.randn(1, 3, size, size)
    stages = clip.visual.forward_intermediates(
        images, indices=[2, 3, 4],
        intermediates_only=True)['image_intermediates']
    visual = backbone.visual
    c3, c4, _ = backbone.encode_image(images)
    for ours, theirs in zip((c3, c4, visual.layer4(c4)), stages, strict=True):
        assert theirs.abs().mean() > 0.01
        same(ours, theirs)
    pool = visual.attnpool.state_dict()
    for name, value in clip.visual.attnpool.state_dict().items():
        same(pool[name], value)


@torch.no_grad()
@pytest.mark.parametrize('form', [
    'plain', 'half', 'safetensors', 'open_clip checkpoint', 'text tower',
    'torchscript'
])
def test_every_form(clip, tmp_path, form):
    backbone = backbone_of(write(form, clip, tmp_path))
    if form == 'half':
        clip = copy.deepcopy(clip).half().float()
    assert_same_towers(backbone, clip)


@torch.no_grad()
def test_short_expressions_give_the_same_sentence(clip, tmp_path):
    backbone = backbone_of(write('plain', clip, tmp_path))
    words, sentence = backbone.encode_text(tokenize(['a red circle'], 9))
    torch.testing.assert_close(
        sentence, clip.encode_text(tokenize(['a red circle'], 32)))
    assert words.shape == (1, 9, 48)


def test_connect_starts_fresh(clip, tmp_path):
    path = write('plain', clip, tmp_path)
    torch.manual_seed(1)
    connect = MODELS.build(TINY.backbone).visual.attnpool.connect
    torch.manual_seed(1)
    loaded = backbone_of(path).visual.attnpool.connect
    for name, value in connect.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_positional_embeddings_of_other_lengths(clip, tmp_path):
    path, text = write('plain', clip, tmp_path), TINY.backbone.text_cfg
    backbone = backbone_of(path, text_cfg=dict(text, context_length=20))
    assert torch.equal(backbone.text.positional_embedding,
                       clip.positional_embedding[:20])
    with pytest.raises(ValueError, match=r'\(32, 48\) in the file, \(40, 48'):
        backbone_of(path, text_cfg=dict(text, context_length=40))


@pytest.mark.slow
@torch.no_grad()
def test_openais_archive_of_rn50(tmp_path):
    clip = make_clip(open_clip.get_model_config('RN50'))
    path = trace(clip, tmp_path / 'RN50.pt', size=224)
    assert_same_towers(backbone_of(path, RN50), clip, size=224)


# A tag is fetched by open_clip; only the network is replaced.
def test_tags_are_fetched(tmp_path, monkeypatch):
    clip = make_clip(open_clip.get_model_config('RN50'))
    path = write('safetensors', clip, tmp_path)
    asked = []

    def download(cfg):
        asked.append(cfg['hf_hub'])
        return str(path)

    monkeypatch.setattr(open_clip, 'download_pretrained', download)
    for source in ('openai', 'open_clip://openai', 'open_clip://RN50/openai',
                   'open_clip://RN50/cc12m'):
        backbone = backbone_of(source, RN50)
        assert asked[-1] == f'timm/resnet50_clip.{source.split("/")[-1]}/'
        for name in ('layer4.2.conv3.weight', 'conv1.weight'):
            assert torch.equal(backbone.visual.state_dict()[name],
                               clip.visual.state_dict()[name])


@pytest.mark.parametrize('source, base, error, said', [
    ('open_clip://opanai', RN50, ValueError,
     "no weights 'opanai' of 'RN50'.*'openai', 'yfcc15m', 'cc12m'"),
    ('openai', dict(RN50, quick_gelu=False), ValueError,
     'set quick_gelu=True in'),
    ('open_clip://openai', TINY.backbone, ValueError,
     'open_clip://MODEL/openai'),
    ('openai', TINY.backbone, FileNotFoundError, 'openai does not exist'),
    ('openai', RN50, FileNotFoundError,
     '(?s)could not be downloaded: no route.*give a file'),
])
def test_what_is_wrong_with_a_tag(monkeypatch, source, base, error, said):

    def offline(cfg):
        raise OSError('no route to host')

    monkeypatch.setattr(open_clip, 'download_pretrained', offline)
    with pytest.raises(error, match=said):
        backbone_of(source, base)


def of_another_kind(kind, weights):
    """Weights that are not CLIP's."""
    if kind == 'ours':
        return MODELS.build(TINY).state_dict()
    if kind == 'official':
        official = load_file(GOLDEN / 'official_weights.safetensors')
        return dict(state_dict={f'module.{k}': w for k, w in official.items()})
    if kind == 'image encoder':
        return {k: w for k, w in weights.items() if k.startswith('visual.')}
    if kind == 'no projection':
        return {k: w for k, w in weights.items() if k != 'text_projection'}
    return dict(weights, **{'visual.conv1.weight': torch.zeros(9, 3, 3, 3)})


@pytest.mark.parametrize('weights, said', [
    ('ours', 'holds a whole CRIS'),
    ('official', '(?s)holds a whole CRIS.*official_cris.py'),
    ('image encoder', 'without its text encoder'),
    ({'visual.transformer.resblocks.0.ln_1.weight': torch.ones(2),
      'token_embedding.weight': torch.ones(2)},
     "image encoder is a ViT, but the backbone's is CLIP's ResNet"),
    ({'vision_model.embeddings.class_embedding': torch.ones(2)},
     'a CLIP of the transformers package'),
    ({'conv1.weight': torch.ones(2), 'fc.weight': torch.ones(2)},
     'an image classifier, not CLIP'),
    ({'a': torch.ones(2)}, r"another model.*\['a'\]"),
    ({}, 'than CLIP: none of its 0 names'),
    ({'state_dict': 3}, 'no weights by name'),
    ('no projection', 'missing: text.text_projection'),
    ('wider', r'\(9, 3, 3, 3\) in the file'),
])
def test_wrong_files(clip, tmp_path, weights, said):
    if isinstance(weights, str):
        weights = of_another_kind(weights, clip.state_dict())
    torch.save(weights, tmp_path / 'clip.pth')
    with pytest.raises(ValueError, match=said):
        backbone_of(tmp_path / 'clip.pth')


def test_broken_files(clip, tmp_path):
    for form, cut in (('safetensors', 100), ('torchscript', 1000)):
        path = write(form, clip, tmp_path)
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(ValueError, match=f'{path.name} is not a checkpo'):
            backbone_of(path)
    torch.jit.script(nn.Linear(2, 2)).save(path)
    with pytest.raises(ValueError, match="than CLIP: .*'bias', 'weight'"):
        backbone_of(path)
