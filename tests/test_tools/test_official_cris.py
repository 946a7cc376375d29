# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Checkpoints of the official code, there and back."""
import contextlib
import importlib.util
import io
import subprocess
import sys

import pytest
import torch
from conftest import GOLDEN, REPO, tool
from mmengine.config import Config
from mmseg.registry import MODELS
from safetensors.torch import load_file, save_file

from cris.io.checkpoints import load_weights, read_checkpoint

TOOL = REPO / 'tools/model_converters/official_cris.py'
WEIGHTS = GOLDEN / 'official_weights.safetensors'


_spec = importlib.util.spec_from_file_location('official_cris', TOOL)
official_cris = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(official_cris)


def convert(*args, ok=True):
    """The command line, in this process: standard output, or the error."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, \
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr('sys.argv', [TOOL.name, *map(str, args)])
        try:
            official_cris.main()
        except SystemExit as stop:
            assert not ok, stop
            return f'{stop}\n{err.getvalue()}'
    assert ok
    return out.getvalue()


@pytest.fixture
def official():
    return load_file(WEIGHTS)


def same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        assert torch.equal(value, right[name]), name
    return True


def write(form, official, folder):
    src = folder / 'src.pth'
    if form == 'safetensors':
        src = folder / 'src.safetensors'
        save_file(official, src)
        return src
    content = official
    if form != 'plain':
        content = {f'module.{k}': v for k, v in official.items()}
    if form == 'wrapped':
        content = dict(
            epoch=50,
            cur_iou=0.7,
            state_dict=content,
            optimizer=dict(state={}, param_groups=[dict(lr=1e-4)]))
    torch.save(content, src)
    return src


@pytest.mark.parametrize('form', ['plain', 'module', 'wrapped', 'safetensors'])
def test_there_strictly_and_back_bit_for_bit(form, official, tmp_path):
    src, dst = write(form, official, tmp_path), tmp_path / 'dst.pth'
    config = tmp_path / 'config.py'
    config.write_text(convert(src, dst, '--print-config', '--num-heads', 4))
    model = MODELS.build(Config.fromfile(config).model)
    load_weights(model, str(dst))
    own = model.state_dict()
    same(read_checkpoint(str(dst))['state_dict'], own)
    assert torch.equal(own['decode_head.projector.pixel_proj.weight'],
                       official['proj.vis.4.weight'])
    assert torch.equal(
        own['decode_head.decoder.layers.1.cross_attn.in_proj_bias'],
        official['decoder.layers.1.multihead_attn.in_proj_bias'])
    back = tmp_path / 'back.pth'
    convert(dst, back, '--reverse', '--num-heads', 4)
    same(torch.load(back, weights_only=True), official)


def test_as_a_process(tmp_path):
    done = subprocess.run(
        [sys.executable, TOOL, WEIGHTS, tmp_path / 'dst.pth', '--num-heads=4'],
        capture_output=True,
        text=True,
        cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tool('model_converters/official_cris.py', tmp_path / 'dst.pth',
               tmp_path / 'x.pth', ok=False)
    assert 'names already' in out and 'Traceback' not in out


def test_reverse_of_a_run_of_this_project(official, tmp_path):
    """Without the official file's temperature CLIP's own is written."""
    src, dst, back = (tmp_path / f'{n}.pth' for n in ('src', 'dst', 'back'))
    torch.save(official, src)
    convert(src, dst, '--num-heads', 4)
    torch.save(
        dict(
            meta=dict(epoch=3),
            state_dict=read_checkpoint(str(dst))['state_dict'],
            optimizer=dict(state={})), dst)
    convert(dst, back, '--reverse', '--num-heads', 4)
    scale = torch.load(back, weights_only=True)['backbone.logit_scale']
    assert scale.exp().item() == pytest.approx(1 / 0.07)
    # An official file without it comes back without it.
    del official['backbone.logit_scale']
    torch.save(official, src)
    convert(src, dst, '--num-heads', 4)
    convert(dst, back, '--reverse', '--num-heads', 4)
    same(torch.load(back, weights_only=True), official)


class TestRefused:

    def refuse(self, weights, tmp_path, *args):
        src, dst = tmp_path / 'src.pth', tmp_path / 'dst.pth'
        torch.save(weights, src)
        out = convert(src, dst, '--num-heads', 4, *args, ok=False)
        assert not dst.exists()
        return out

    def test_all_that_does_not_fit_is_listed(self, official, tmp_path):
        del official['neck.aggr.1.running_var']
        del official['backbone.visual.layer2.1.bn1.num_batches_tracked']
        official['neck.proj3.0.weight'] = torch.ones(3)  # a name of ours
        official['backbone.visual.new'] = torch.ones(3)
        official['extra'] = torch.ones(3)
        official['decoder.norm.bias'] = torch.ones(63)
        out = self.refuse(official, tmp_path)
        for line in ('missing: neck.aggr.1.running_var',
                     'missing: backbone.visual.layer2.1.bn1.num_batches_track',
                     'not in the model: neck.proj3.0.weight',
                     'not in the model: backbone.visual.new',
                     'not in the model: extra',
                     'decoder.norm.bias: (63,) in the file, (64,) in'):
            assert line in out
        assert 'more' not in out

    def test_a_layer_that_is_missing(self, official, tmp_path):
        weights = {k: v for k, v in official.items()
                   if not k.startswith('decoder.layers.1.')}
        out = self.refuse(weights, tmp_path)
        assert 'missing: decoder.layers.1.norm3.weight' in out

    @pytest.mark.parametrize('name', [
        'backbone.text_projection', 'neck.f2_v_proj.0.weight',
        'proj.txt.weight'
    ])
    def test_a_tensor_that_shows_a_size(self, name, official, tmp_path):
        whole = official.pop(name)
        out = self.refuse(official, tmp_path)
        assert f'cannot be read: {name} is missing' in out
        official[name] = whole.flatten()
        out = self.refuse(official, tmp_path)
        assert f'{name} has shape ({whole.numel()},), not' in out

    def test_heads_that_do_not_divide(self, official, tmp_path):
        torch.save(official, tmp_path / 'src.pth')
        out = convert(
            tmp_path / 'src.pth', tmp_path / 'x.pth', '--num-heads', 7,
            ok=False)
        assert 'do not describe a model' in out

    def test_other_files(self, official, tmp_path):
        clip = {k.removeprefix('backbone.'): v for k, v in official.items()
                if k.startswith('backbone.')}
        assert 'not a CRIS checkpoint of the official code' in self.refuse(
            clip, tmp_path)
        torch.save(official, tmp_path / 'official.pth')
        convert(tmp_path / 'official.pth', tmp_path / 'ours.pth',
                '--num-heads', 4)
        ours = torch.load(tmp_path / 'ours.pth', weights_only=True)
        assert 'names already' in self.refuse(ours, tmp_path)
        out = self.refuse(official, tmp_path, '--reverse')
        assert "not a CRIS checkpoint with this project's names" in out
        assert 'no weights by name' in self.refuse(
            dict(state_dict=[1]), tmp_path)
        broken = tmp_path / 'broken.safetensors'
        broken.write_bytes(WEIGHTS.read_bytes()[:5000])
        out = convert(broken, tmp_path / 'dst.pth', ok=False)
        assert 'is not a checkpoint' in out
        out = convert(
            WEIGHTS, tmp_path / 'absent/dst.pth', ok=False)
        assert 'there is no folder' in out


@pytest.mark.slow
def test_r50_at_full_size(tmp_path):
    cfg = Config.fromfile(REPO / 'configs/_base_/models/cris_r50.py').model
    model = MODELS.build(cfg)
    weights = {
        name: (torch.randint(0, 2**40, w.shape) if w.dtype == torch.int64 else
               torch.randn(w.shape)) for name, w in model.state_dict().items()
    }
    ours, official, dst, back = (
        tmp_path / f'{n}.pth' for n in ('ours', 'official', 'dst', 'back'))
    torch.save(weights, ours)
    convert(ours, official, '--reverse')
    content = torch.load(official, weights_only=True)
    content['backbone.logit_scale'] = torch.randn(())
    assert len(content) == len(weights) + 1
    torch.save({f'module.{k}': v for k, v in content.items()}, official)
    printed = convert(official, dst, '--print-config')
    (tmp_path / 'config.py').write_text(printed)
    load_weights(
        MODELS.build(Config.fromfile(tmp_path / 'config.py').model), str(dst))
    convert(dst, back, '--reverse')
    same(torch.load(back, weights_only=True), content)
