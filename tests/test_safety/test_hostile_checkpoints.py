# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Checkpoints that run code or fill the memory, through everything that reads
one: the marker they would make never appears."""
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from conftest import CONFIG, ReferSet, options, tool
from hostile import Call
from mmengine.runner import CheckpointLoader
from mmseg.registry import MODELS
from torch import nn

import cris
from cris.engine.config import load_config
from cris.io.checkpoints import read_checkpoint, use_safe_loader


def gadgets(marker):
    """Ways to make a folder while something is unpickled."""
    code = f'__import__("os").mkdir({str(marker)!r})'
    return {
        'mkdir': Call(os.mkdir, str(marker)),
        'system': Call(os.system, f'mkdir "{marker}"'),
        'eval': Call(eval, code),
        'exec': Call(exec, code),
        'getattr': Call(getattr, Call(__import__, 'os'), 'mkdir'),
        'nested': [dict(a=(1, Call(os.mkdir, str(marker))))],
        'numpy': Call(np.load, str(marker)),
        'torch': Call(torch.load, str(marker)),
        'hub': Call(torch.hub.load, str(marker), 'x'),
        'storage': Call(torch.storage._load_from_bytes, b'x'),
    }


NAMES = list(gadgets('x'))


@pytest.fixture
def marker(tmp_path):
    yield tmp_path / 'marker'
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize('protocol', range(2, 6))
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('name', NAMES)
def test_no_call_is_made(tmp_path, marker, name, zipped, protocol):
    path = tmp_path / 'evil.pth'
    torch.save(
        dict(state_dict=gadgets(marker)[name]),
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match='(?s)evil.pth.*--trust-checkpoint'):
        read_checkpoint(str(path))


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('name', NAMES)
def test_no_call_is_made_from_a_bare_pickle(tmp_path, marker, name, protocol):
    path = tmp_path / 'evil.pth'
    path.write_bytes(pickle.dumps(gadgets(marker)[name], protocol))
    with pytest.raises(ValueError, match='evil.pth'):
        read_checkpoint(str(path))


def rewritten(source, change, compress=zipfile.ZIP_STORED):
    """A zip with the records that ``change`` makes of each."""
    out = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(
            out, 'w', compress) as new:
        for name in old.namelist():
            for record in change(name, old.read(name)):
                new.writestr(*record)
    return out.getvalue()


@pytest.mark.parametrize('name', ['mkdir', 'eval', 'storage'])
def test_torchscript(tmp_path, marker, name):
    path = tmp_path / 'evil.pt'
    torch.jit.script(nn.Linear(2, 2)).save(str(path))
    evil = pickle.dumps(gadgets(marker)[name])

    def change(record, content):
        yield record, evil if record.endswith('data.pkl') else content

    path.write_bytes(rewritten(path, change))
    with pytest.raises(ValueError, match='evil.pt .* it asks for'):
        read_checkpoint(str(path))


class TestBombs:

    def refuse(self, path, match):
        with pytest.raises(ValueError, match=match):
            read_checkpoint(str(path))

    @pytest.fixture
    def saved(self, tmp_path):
        path = tmp_path / 'a.pth'
        torch.save(nn.Linear(100, 100).state_dict(), path)
        return path

    def test_compressed_records(self, saved):
        saved.write_bytes(
            rewritten(saved, lambda *r: [r], zipfile.ZIP_DEFLATED))
        self.refuse(saved, 'is compressed')

    def test_records_that_overlap(self, saved):
        content = saved.read_bytes()
        # Every record of the directory as large as the file.
        at = -1
        while (at := content.find(b'PK\1\2', at + 1)) >= 0:
            size = struct.pack('<II', len(content), len(content))
            content = content[:at + 20] + size + content[at + 28:]
        saved.write_bytes(content)
        self.refuse(saved, 'its records overlap')

    @pytest.mark.parametrize('bomb, message', [
        (b'\x80\x02Nr\xff\xff\xff\x7f.', 'refers to more than'),
        (b'\x80\x02}N' + b'\x85' * 200_000 + b'Ns.', 'more than 50000 tup'),
        (b'\x80\x02\x8b\xff\xff\xff\x7fx.', 'ends too early'),
    ])
    @pytest.mark.parametrize('zipped', [True, False])
    def test_pickles(self, saved, bomb, message, zipped):
        if zipped:
            def change(record, content):
                yield record, bomb if record.endswith('.pkl') else content
            bomb = rewritten(saved, change)
        saved.write_bytes(bomb)
        self.refuse(saved, message)

    def test_tar(self, saved):
        """PyTorch would follow its links out of it."""
        with tarfile.open(saved, 'w') as tar:
            link = tarfile.TarInfo('storages')
            link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
            tar.addfile(link)
        self.refuse(saved, 'it is a tar')

    @pytest.mark.parametrize('length', [2**63, 2**40, 2**31, 50])
    def test_header_of_safetensors(self, tmp_path, length):
        path = tmp_path / 'a.safetensors'
        path.write_bytes(struct.pack('<Q', length) + b'{}')
        self.refuse(path, 'a.safetensors is not a checkpoint')

    @pytest.mark.parametrize('shape, offsets', [
        ([2**40], [0, 8]), ([2**62, 2**62], [0, 8]), ([-1], [0, 8]),
        ([2], [0, 2**50])])
    def test_tensors_of_safetensors(self, tmp_path, shape, offsets):
        head = json.dumps(
            dict(a=dict(dtype='F32', shape=shape, data_offsets=offsets)))
        path = tmp_path / 'a.safetensors'
        path.write_bytes(
            struct.pack('<Q', len(head)) + head.encode() + bytes(8))
        self.refuse(path, 'a.safetensors is not a checkpoint')

    def test_dtype_that_holds_objects(self, tmp_path):
        path = tmp_path / 'a.pth'
        torch.save(dict(meta=np.array([None, 1], dtype=object)), path)
        self.refuse(path, 'a.pth is not a checkpoint')


@pytest.fixture(scope='module')
def commands(tmp_path_factory):
    """Everything that reads a checkpoint, as command lines."""
    root = tmp_path_factory.mktemp('commands')
    data = ReferSet(root / 'refer').write()
    cfg = options(data)
    train = ('train.py', CONFIG, '--work-dir', root / 'train')

    def pretrained(path):
        return f"type='Pretrained', checkpoint={str(path)!r}"

    def with_config(text):
        config = root / 'config.py'
        config.write_text(f'_base_ = {str(CONFIG)!r}\n{text}\n')
        return train[0], config, *train[2:], *cfg

    return {
        'load_from': lambda path: (*train, *cfg, f'load_from={path}'),
        'resume': lambda path: (*train, '--resume', path, *cfg),
        'init_cfg of CLIP': lambda path: with_config(
            'model = dict(backbone=dict(init_cfg=dict(_delete_=True, '
            f'{pretrained(path)})))'),
        'init_cfg of the model': lambda path: with_config(
            f'model = dict(init_cfg=dict({pretrained(path)}))'),
        'test': lambda path: (
            'test.py', CONFIG, path, '--work-dir', root / 'test', *cfg),
        'convert': lambda path: (
            'model_converters/official_cris.py', path, root / 'o.pth'),
        'revert': lambda path: (
            'model_converters/official_cris.py', path, root / 'o.pth',
            '--reverse'),
        'publish': lambda path: (
            'model_converters/publish_model.py', path, root / 'o'),
        'sweep': lambda path: (
            'analysis_tools/sweep_threshold.py', CONFIG, path, *cfg),
        'draw': lambda path: (
            'analysis_tools/draw_predictions.py', CONFIG, path,
            root / 'o.jpg', *cfg),
    }


@pytest.mark.parametrize('name', [
    'load_from', 'resume', 'init_cfg of CLIP', 'init_cfg of the model', 'test',
    'convert', 'revert', 'publish', 'sweep', 'draw'])
def test_tools(commands, tmp_path, marker, name):
    path = tmp_path / 'evil.pth'
    torch.save(dict(state_dict=gadgets(marker)['system']), path)
    out = tool(*commands[name](path), ok=False)
    assert 'evil.pth is not a checkpoint of tensors and plain data: it asks' \
        in out
    assert '--trust-checkpoint' in out


@pytest.mark.parametrize('name', ['resume', 'test', 'convert', 'publish'])
def test_trust(commands, tmp_path, name):
    """The code runs then, and the log says so."""
    path, marker = tmp_path / 'own.pth', tmp_path / 'marker'
    torch.save(dict(state_dict=Call(os.mkdir, str(marker))), path)
    command = commands[name](path)
    out = tool(command[0], '--trust-checkpoint', *command[1:], ok=False)
    assert marker.is_dir()  # what mkdir returns is no weights, hence ok=False
    assert f'{path} is trusted: any code in it is run' in out


def test_init_model(tmp_path, marker):
    path = tmp_path / 'evil.pth'
    torch.save(dict(state_dict=gadgets(marker)['eval']), path)
    with pytest.raises(ValueError, match='evil.pth'):
        cris.init_model(str(CONFIG), str(path), device='cpu')


def test_plain_weights_look_like_those_of_a_run(monkeypatch, tmp_path):
    """EMAHook of mmengine wants the key."""
    monkeypatch.setattr(CheckpointLoader, '_schemes',
                        dict(CheckpointLoader._schemes))
    use_safe_loader()
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / 'a.pth')
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'))
    assert loaded['state_dict'].keys() == {'weight', 'bias'}


@pytest.mark.parametrize('address', [
    'http://a/b.pth', 'https://a/b.pth', 's3://a/b.pth', 'x:s3://a/b.pth',
    'petrel://a/b', 'torchvision://resnet50', 'open-mmlab://resnet50',
    'mmcls://a', 'pavi://a'])
def test_addresses_are_not_fetched(monkeypatch, address):
    monkeypatch.setattr(CheckpointLoader, '_schemes',
                        dict(CheckpointLoader._schemes))
    use_safe_loader()
    with pytest.raises(ValueError, match='download it and name the file'):
        CheckpointLoader.load_checkpoint(address)
    cfg = load_config(str(CONFIG))
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint=address)
    with pytest.raises(ValueError, match='download it and name the file'):
        MODELS.build(cfg.model).init_weights()
