# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Checkpoints that run code or fill the memory, through everything that reads
one: the marker they would make never appears."""
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


@pytest.fixture
def marker(tmp_path):
    yield tmp_path / 'marker'
    assert not (tmp_path / 'marker').exists()


def refuse(path, message):
    with pytest.raises(ValueError, match=f'(?s){path.name} .*{message}'):
        read_checkpoint(str(path))


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('form', ['zip', 'legacy', 'bare pickle'])
@pytest.mark.parametrize('name', gadgets('x'))
def test_no_call_is_made(tmp_path, marker, name, form, protocol):
    path, evil = tmp_path / 'evil.pth', gadgets(marker)[name]
    if form == 'bare pickle':
        path.write_bytes(pickle.dumps(evil, protocol))
    else:
        torch.save(dict(state_dict=evil), path, pickle_protocol=protocol,
                   _use_new_zipfile_serialization=form == 'zip')
    refuse(path, '--trust-checkpoint')


def rewrite(path, compression=zipfile.ZIP_STORED, **contents):
    """Replace the contents of a zip's records with these suffixes."""
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, 'w', compression) as file:
        for name, content in records.items():
            file.writestr(name, contents.get(name.split('.')[-1], content))


@pytest.mark.parametrize('name', ['mkdir', 'eval', 'storage'])
def test_torchscript(tmp_path, marker, name):
    path = tmp_path / 'evil.pt'
    torch.jit.script(nn.Linear(2, 2)).save(str(path))
    rewrite(path, pkl=pickle.dumps(gadgets(marker)[name]))
    refuse(path, 'it asks for')


class TestBombs:

    @pytest.fixture
    def saved(self, tmp_path):
        path = tmp_path / 'a.pth'
        torch.save(nn.Linear(100, 100).state_dict(), path)
        return path

    def test_compressed_records(self, saved):
        rewrite(saved, zipfile.ZIP_DEFLATED)
        refuse(saved, 'is compressed')

    def test_records_that_overlap(self, saved):
        content = saved.read_bytes()
        # Every record of the directory as large as the file.
        at = -1
        while (at := content.find(b'PK\1\2', at + 1)) >= 0:
            size = struct.pack('<II', len(content), len(content))
            content = content[:at + 20] + size + content[at + 28:]
        saved.write_bytes(content)
        refuse(saved, 'its records overlap')

    @pytest.mark.parametrize('bomb, message', [
        (b'\x80\x02Nr\xff\xff\xff\x7f.', 'refers to more than'),
        (b'\x80\x02}N' + b'\x85' * 200_000 + b'Ns.', 'more than 50000 tup'),
        (b'\x80\x02\x8b\xff\xff\xff\x7fx.', 'ends too early'),
    ])
    @pytest.mark.parametrize('zipped', [True, False])
    def test_pickles(self, saved, bomb, message, zipped):
        if zipped:
            rewrite(saved, pkl=bomb)
        else:
            saved.write_bytes(bomb)
        refuse(saved, message)

    def test_tar(self, saved):
        """PyTorch would follow its links out of it."""
        with tarfile.open(saved, 'w') as tar:
            link = tarfile.TarInfo('storages')
            link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
            tar.addfile(link)
        refuse(saved, 'it is a tar')

    @pytest.mark.parametrize('length, shape, end', [
        *((length, None, 0) for length in (2**63, 2**40, 2**31, 50)),
        (None, [2**40], 8), (None, [2**62, 2**62], 8), (None, [-1], 8),
        (None, [2], 2**50)])
    def test_safetensors(self, tmp_path, length, shape, end):
        head = json.dumps(
            dict(a=dict(dtype='F32', shape=shape, data_offsets=[0, end]))
        ).encode() if shape else b'{}'
        path = tmp_path / 'a.safetensors'
        path.write_bytes(
            struct.pack('<Q', length or len(head)) + head + bytes(end and 8))
        refuse(path, 'is not a checkpoint')

    def test_dtype_that_holds_objects(self, saved):
        torch.save(dict(meta=np.array([None, 1], dtype=object)), saved)
        refuse(saved, 'is not a checkpoint')


# Everything that reads a checkpoint.
TRAIN = 'train.py CONFIG --work-dir ROOT/train'
COMMANDS = {
    'load_from': f'{TRAIN} OPTIONS load_from=EVIL',
    'resume': f'{TRAIN} --resume EVIL OPTIONS',
    'init_cfg of the model': f'{TRAIN} OPTIONS model.init_cfg.type='
    'Pretrained model.init_cfg.checkpoint=EVIL',
    'init_cfg of CLIP': 'train.py ROOT/clip.py --work-dir ROOT/train OPTIONS '
    'model.backbone.init_cfg.checkpoint=EVIL',
    'test': 'test.py CONFIG EVIL --work-dir ROOT/test OPTIONS',
    'convert': 'model_converters/official_cris.py EVIL ROOT/o.pth',
    'revert': 'model_converters/official_cris.py EVIL ROOT/o.pth --reverse',
    'publish': 'model_converters/publish_model.py EVIL ROOT/o',
    'sweep': 'analysis_tools/sweep_threshold.py CONFIG EVIL OPTIONS',
    'draw': 'analysis_tools/draw_predictions.py CONFIG EVIL ROOT/o.jpg '
    'OPTIONS',
}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('commands')
    ReferSet(root / 'refer').write()
    init_cfg = dict(_delete_=True, type='Pretrained', checkpoint='EVIL')
    (root / 'clip.py').write_text(
        f'_base_ = {str(CONFIG)!r}\n'
        f'model = dict(backbone=dict(init_cfg={init_cfg}))\n')
    return root


def refused(root, name, path, *arguments):
    """What a command prints that must fail."""
    file, *words = COMMANDS[name].replace(
        'OPTIONS', ' '.join(options('ROOT/refer'))).split()
    for short, long in (('CONFIG', CONFIG), ('ROOT', root), ('EVIL', path)):
        words = [word.replace(short, str(long)) for word in words]
    return tool(file, *arguments, *words, ok=False)


@pytest.mark.parametrize('name', COMMANDS)
def test_tools(root, tmp_path, marker, name):
    path = tmp_path / 'evil.pth'
    torch.save(dict(state_dict=gadgets(marker)['system']), path)
    out = refused(root, name, path)
    assert ('evil.pth is not a checkpoint of tensors and plain data: it asks'
            in out)
    assert '--trust-checkpoint' in out


@pytest.mark.parametrize('name', ['resume', 'test', 'convert', 'publish'])
def test_trust(root, tmp_path, name):
    """The code runs then, and the log says so."""
    path, marker = tmp_path / 'own.pth', tmp_path / 'marker'
    torch.save(dict(state_dict=Call(os.mkdir, str(marker))), path)
    # What mkdir returns is no weights, so the command fails.
    out = refused(root, name, path, '--trust-checkpoint')
    assert marker.is_dir()
    assert f'{path} is trusted: any code in it is run' in out


@pytest.mark.parametrize('build', [cris.init_model, cris.CRISInferencer])
def test_in_python(tmp_path, marker, build):
    path = tmp_path / 'evil.pth'
    torch.save(dict(state_dict=gadgets(marker)['eval']), path)
    with pytest.raises(ValueError, match='evil.pth is not a checkpoint'):
        build(str(CONFIG), str(path), device='cpu')


@pytest.fixture
def safe_loader(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes',
                        dict(CheckpointLoader._schemes))
    use_safe_loader()


def test_plain_weights_look_like_those_of_a_run(safe_loader, tmp_path):
    """EMAHook of mmengine wants the key."""
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / 'a.pth')
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'))
    assert loaded['state_dict'].keys() == {'weight', 'bias'}


@pytest.mark.parametrize('address', [
    'http://a/b.pth', 'https://a/b.pth', 's3://a/b.pth', 'x:s3://a/b.pth',
    'petrel://a/b', 'torchvision://resnet50', 'open-mmlab://resnet50',
    'mmcls://a', 'pavi://a'])
def test_addresses_are_not_fetched(safe_loader, address):
    with pytest.raises(ValueError, match='download it and name the file'):
        CheckpointLoader.load_checkpoint(address)
    cfg = load_config(str(CONFIG))
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint=address)
    with pytest.raises(ValueError, match='download it and name the file'):
        MODELS.build(cfg.model).init_weights()
