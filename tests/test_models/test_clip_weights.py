# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""CLIP's weights, in every form in which people have them."""
import copy
import warnings

import open_clip
import pytest
import torch
from conftest import REPO
from mmengine.config import Config
from mmseg.registry import MODELS
from safetensors.torch import load_file, save_file
from torch import nn

from cris.datasets.tokenizer import tokenize

TINY = Config.fromfile(REPO / 'configs/_base_/models/cris_tiny.py').model


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
    length = clip.context_length
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(
            clip,
            (torch.randn(1, 3, size, size), torch.ones(
                1, length, dtype=torch.long)),
            check_trace=False,
            strict=False)
        torch.jit.save(traced, path)
    return path


def backbone_of(checkpoint, base=TINY.backbone, **cfg):
    backbone = MODELS.build(
        dict(
            dict(base, **cfg),
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


def assert_same_towers(backbone, clip, size=64, tolerance=1e-5):
    tokens = tokenize(['a red circle', 'sky'], clip.context_length)
    torch.testing.assert_close(
        backbone.encode_text(tokens)[1],
        clip.encode_text(tokens),
        atol=tolerance,
        rtol=tolerance)
    images = torch.randn(1, 3, size, size)
    stages = clip.visual.forward_intermediates(
        images, indices=[2, 3, 4],
        intermediates_only=True)['image_intermediates']
    visual = backbone.visual
    c3, c4, _ = backbone.encode_image(images)
    for ours, theirs in zip((c3, c4, visual.layer4(c4)), stages, strict=True):
        assert theirs.abs().mean() > 0.01
        torch.testing.assert_close(
            ours, theirs, atol=tolerance, rtol=tolerance)
    pool, theirs = visual.attnpool, clip.visual.attnpool
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(
            pool.state_dict()[name], value, atol=tolerance, rtol=tolerance)


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


def test_a_longer_positional_embedding_is_cut(clip, tmp_path):
    backbone = backbone_of(
        write('plain', clip, tmp_path),
        text_cfg=dict(TINY.backbone.text_cfg, context_length=20))
    assert torch.equal(backbone.text.positional_embedding,
                       clip.positional_embedding[:20])


def test_a_shorter_positional_embedding_is_refused(clip, tmp_path):
    with pytest.raises(ValueError, match=r'\(32, 48\) in the file, \(40, 48'):
        backbone_of(
            write('plain', clip, tmp_path),
            text_cfg=dict(TINY.backbone.text_cfg, context_length=40))


@pytest.mark.slow
@torch.no_grad()
def test_openais_archive_of_rn50(tmp_path):
    clip = make_clip(open_clip.get_model_config('RN50'))
    path = trace(clip, tmp_path / 'RN50.pt', size=224)
    backbone = backbone_of(path, dict(type='CLIPBackbone', model_name='RN50'))
    assert_same_towers(backbone, clip, size=224)


class TestTag:
    """A tag is fetched by open_clip; only the network is replaced."""

    @pytest.fixture
    def fetched(self, tmp_path, monkeypatch):
        clip = make_clip(open_clip.get_model_config('RN50'))
        path = write('safetensors', clip, tmp_path)
        asked = []

        def download(cfg):
            asked.append(cfg['hf_hub'])
            return str(path)

        monkeypatch.setattr(open_clip, 'download_pretrained', download)
        return path, asked

    @pytest.mark.parametrize('source', [
        'openai', 'open_clip://openai', 'open_clip://RN50/openai',
        'open_clip://RN50/cc12m'
    ])
    def test_a_tag_is_fetched(self, fetched, source):
        path, asked = fetched
        backbone = backbone_of(
            source, dict(type='CLIPBackbone', model_name='RN50'))
        assert asked[0] == f'timm/resnet50_clip.{source.split("/")[-1]}/'
        weights = load_file(path)
        for name in ('visual.layer4.2.conv3.weight', 'visual.conv1.weight'):
            assert torch.equal(backbone.state_dict()[name], weights[name])

    def test_what_is_wrong_with_a_tag(self, monkeypatch):
        rn50 = dict(type='CLIPBackbone', model_name='RN50')
        with pytest.raises(ValueError, match="no weights 'opanai' of 'RN50'.*"
                           "'openai', 'yfcc15m', 'cc12m'"):
            backbone_of('open_clip://opanai', rn50)
        with pytest.raises(ValueError, match='set quick_gelu=True in'):
            backbone_of('openai', rn50, quick_gelu=False)
        with pytest.raises(ValueError, match='open_clip://MODEL/openai'):
            backbone_of('open_clip://openai')
        with pytest.raises(FileNotFoundError, match='openai does not exist'):
            backbone_of('openai')

        def offline(cfg):
            raise OSError('no route to host')

        monkeypatch.setattr(open_clip, 'download_pretrained', offline)
        with pytest.raises(
                FileNotFoundError,
                match='(?s)could not be downloaded: no route.*give a file'):
            backbone_of('openai', rn50)


class TestWrongFiles:

    def refuse(self, weights, tmp_path, match):
        torch.save(weights, tmp_path / 'clip.pth')
        with pytest.raises(ValueError, match=match):
            backbone_of(tmp_path / 'clip.pth')

    def test_cris_checkpoints(self, tmp_path):
        self.refuse(
            MODELS.build(TINY).state_dict(), tmp_path, 'holds a whole CRIS')
        official = load_file(
            REPO / 'tests/data/golden/official_weights.safetensors')
        self.refuse(
            dict(state_dict={f'module.{k}': v
                             for k, v in official.items()}), tmp_path,
            '(?s)holds a whole CRIS.*official_cris.py')

    def test_other_models(self, clip, tmp_path):
        weights = clip.state_dict()
        self.refuse({k: v
                     for k, v in weights.items() if k.startswith('visual.')},
                    tmp_path, 'without its text encoder')
        self.refuse(
            {'visual.transformer.resblocks.0.ln_1.weight': torch.ones(2)},
            tmp_path, 'image encoder is not a ModifiedResNet')
        self.refuse({
            'conv1.weight': torch.ones(2),
            'fc.weight': torch.ones(2)
        }, tmp_path, 'an image classifier, not CLIP')
        self.refuse({'a': torch.ones(2)}, tmp_path, r"another model.*\['a'\]")
        self.refuse({}, tmp_path, 'than CLIP: none of its 0 names')
        self.refuse({'state_dict': 3}, tmp_path, 'no weights by name')

    def test_clips_of_other_sizes(self, clip, tmp_path):
        weights = clip.state_dict()
        del weights['text_projection']
        self.refuse(weights, tmp_path, 'missing: text.text_projection')
        weights = clip.state_dict()
        weights['visual.conv1.weight'] = torch.zeros(9, 3, 3, 3)
        self.refuse(weights, tmp_path, r'\(9, 3, 3, 3\) in the file')

    def test_broken_files(self, clip, tmp_path):
        path = write('safetensors', clip, tmp_path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match='safetensors is not a checkpoin'):
            backbone_of(path)
        path = write('torchscript', clip, tmp_path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ValueError, match='clip.pt is not a checkpoint'):
            backbone_of(path)
        torch.jit.script(nn.Linear(2, 2)).save(path)
        with pytest.raises(ValueError, match="than CLIP: .*'bias', 'weight'"):
            backbone_of(path)
