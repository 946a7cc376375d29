# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Checkpoints of the official code, there and back."""
import official_cris
import pytest
import torch
from conftest import GOLDEN, REPO
from mmengine.config import Config
from mmseg.registry import MODELS
from safetensors.torch import load_file

from cris.io.checkpoints import load_weights, read_checkpoint

WEIGHTS = GOLDEN / 'official_weights.safetensors'


@pytest.fixture
def convert(monkeypatch, capsys):
    """The command line, in this process: standard output, or the error."""

    def call(*args, heads=4, ok=True):
        error = ''
        monkeypatch.setattr('sys.argv', [
            'official_cris.py', *map(str, args), f'--num-heads={heads}'])
        try:
            official_cris.main()
        except SystemExit as stop:
            error = str(stop)
        out, err = capsys.readouterr()
        assert (not error) == ok, error
        return out if ok else error + err

    return call


@pytest.fixture
def official():
    return load_file(WEIGHTS)


def same(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=0)


def files(folder, *names):
    return [folder / f'{name}.pth' for name in names]


@pytest.mark.parametrize('form', ['plain', 'module', 'wrapped', 'safetensors'])
def test_there_strictly_and_back_bit_for_bit(form, official, convert,
                                             tmp_path):
    src, dst, back = files(tmp_path, 'src', 'dst', 'back')
    if form == 'safetensors':
        src = WEIGHTS
    elif form == 'plain':
        torch.save(official, src)
    else:
        content = {f'module.{k}': v for k, v in official.items()}
        if form == 'wrapped':
            content = dict(
                epoch=50, cur_iou=0.7, state_dict=content,
                optimizer=dict(state={}, param_groups=[dict(lr=1e-4)]))
        torch.save(content, src)
    config = tmp_path / 'config.py'
    config.write_text(convert(src, dst, '--print-config'))
    model = MODELS.build(Config.fromfile(config).model)
    load_weights(model, str(dst))
    own = model.state_dict()
    same(read_checkpoint(str(dst))['state_dict'], dict(own))
    same(own['decode_head.projector.pixel_proj.weight'],
         official['proj.vis.4.weight'])
    same(own['decode_head.decoder.layers.1.cross_attn.in_proj_bias'],
         official['decoder.layers.1.multihead_attn.in_proj_bias'])
    convert(dst, back, '--reverse')
    same(torch.load(back, weights_only=True), official)


def test_reverse_of_a_run_of_this_project(official, convert, tmp_path):
    """Without the official file's temperature CLIP's own is written."""
    src, dst, back = files(tmp_path, 'src', 'dst', 'back')
    convert(WEIGHTS, dst)
    weights = read_checkpoint(str(dst))['state_dict']
    torch.save(dict(meta=dict(epoch=3), state_dict=weights,
                    optimizer=dict(state={})), dst)
    convert(dst, back, '--reverse')
    scale = torch.load(back, weights_only=True)['backbone.logit_scale']
    assert scale.exp().item() == pytest.approx(1 / 0.07)
    # An official file without it comes back without it.
    del official['backbone.logit_scale']
    torch.save(official, src)
    convert(src, dst)
    convert(dst, back, '--reverse')
    same(torch.load(back, weights_only=True), official)


class TestRefused:

    @pytest.fixture
    def refuse(self, convert, tmp_path):

        def call(weights, *args, **kwargs):
            src, dst = files(tmp_path, 'src', 'dst')
            torch.save(weights, src)
            out = convert(src, dst, *args, ok=False, **kwargs)
            assert not dst.exists()
            return out

        return call

    def test_all_that_does_not_fit_is_listed(self, official, refuse):
        del official['neck.aggr.1.running_var']
        del official['backbone.visual.layer2.1.bn1.num_batches_tracked']
        official['neck.proj3.0.weight'] = torch.ones(3)  # a name of ours
        official['backbone.visual.new'] = torch.ones(3)
        official['extra'] = torch.ones(3)
        official['decoder.norm.bias'] = torch.ones(63)
        out = refuse(official)
        for line in ('missing: neck.aggr.1.running_var',
                     'missing: backbone.visual.layer2.1.bn1.num_batches_track',
                     'not in the model: neck.proj3.0.weight',
                     'not in the model: backbone.visual.new',
                     'not in the model: extra',
                     'decoder.norm.bias: (63,) in the file, (64,) in'):
            assert line in out
        assert 'more' not in out

    def test_a_layer_that_is_missing(self, official, refuse):
        out = refuse({k: v for k, v in official.items()
                      if not k.startswith('decoder.layers.1.')})
        assert 'missing: decoder.layers.1.norm3.weight' in out

    @pytest.mark.parametrize('name', [
        'backbone.text_projection', 'neck.f2_v_proj.0.weight',
        'proj.txt.weight'
    ])
    def test_a_tensor_that_shows_a_size(self, name, official, refuse):
        whole = official.pop(name)
        assert f'cannot be read: {name} is missing' in refuse(official)
        official[name] = whole.flatten()
        out = refuse(official)
        assert f'{name} has shape ({whole.numel()},), not' in out

    def test_other_files(self, official, refuse, convert, tmp_path):
        assert 'do not describe a model' in refuse(official, heads=7)
        clip = {k.removeprefix('backbone.'): v for k, v in official.items()
                if k.startswith('backbone.')}
        assert 'not a CRIS checkpoint of the official code' in refuse(clip)
        out = refuse(official, '--reverse')
        assert "not a CRIS checkpoint with this project's names" in out
        assert 'no weights by name' in refuse(dict(state_dict=[1]))
        for empty in ([], ['--reverse']):
            assert 'not a CRIS checkpoint of the' in refuse({}, *empty)
        ours, broken = tmp_path / 'ours.pth', tmp_path / 'broken.safetensors'
        convert(WEIGHTS, ours)
        assert 'names already' in refuse(torch.load(ours, weights_only=True))
        broken.write_bytes(WEIGHTS.read_bytes()[:5000])
        out = convert(broken, tmp_path / 'dst.pth', ok=False)
        assert 'is not a checkpoint' in out
        out = convert(WEIGHTS, tmp_path / 'absent/dst.pth', ok=False)
        assert 'there is no folder' in out


@pytest.mark.slow
def test_r50_at_full_size(convert, tmp_path):
    ours, official, dst, back = files(
        tmp_path, 'ours', 'official', 'dst', 'back')
    cfg = Config.fromfile(REPO / 'configs/_base_/models/cris_r50.py').model
    weights = {
        name: (torch.randint(0, 2**40, w.shape) if w.dtype == torch.int64 else
               torch.randn(w.shape))
        for name, w in MODELS.build(cfg).state_dict().items()
    }
    torch.save(weights, ours)
    convert(ours, official, '--reverse', heads=8)
    content = torch.load(official, weights_only=True)
    content['backbone.logit_scale'] = torch.randn(())
    assert len(content) == len(weights) + 1
    torch.save({f'module.{k}': v for k, v in content.items()}, official)
    config = tmp_path / 'config.py'
    config.write_text(convert(official, dst, '--print-config', heads=8))
    load_weights(MODELS.build(Config.fromfile(config).model), str(dst))
    convert(dst, back, '--reverse', heads=8)
    same(torch.load(back, weights_only=True), content)
