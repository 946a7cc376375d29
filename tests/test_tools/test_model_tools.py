# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import hashlib
import re

import pytest
import torch
from conftest import CONFIG, REPO, ReferSet, options, tool
from safetensors.torch import load_file, save_file

import cris

R50 = REPO / 'configs/cris/cris_r50_8xb8-amp-50e_refcoco-416x416.py'


def test_flops_of_the_official_code():
    out = tool('analysis_tools/get_flops.py', R50)
    assert '146.85 M' in out
    official = re.search(r'official code +([\d.]+) GFLOPs \(head ([\d.]+)',
                         out).groups()
    assert [float(x) for x in official] == pytest.approx([131.9, 39.8],
                                                         abs=0.06)
    for stage, count in dict(
            image=42.9, text=1.3, neck=30.1, decoder=17.8, head=11.6).items():
        assert re.search(rf'{stage} +{count} GFLOPs', out), stage


def test_flops_grow_with_the_input():
    total = []
    for shape in ((64, 64), (64, 128)):
        out = tool('analysis_tools/get_flops.py', R50, '--shape', *shape,
                   '--cfg-options', 'model.decode_head.num_layers=0')
        assert re.search(r'decoder +0.0 GFLOPs', out)
        total.append(float(re.search(r'head +([\d.]+)', out)[1]))
    assert total[1] == pytest.approx(2 * total[0], rel=0.3)


def test_published_weights(tmp_path):
    model = cris.init_model(CONFIG, pretrained=False, device='cpu')
    weights = model.state_dict()
    src = tmp_path / 'epoch_3.pth'
    torch.save(dict(state_dict=weights, optimizer=dict(state={})), src)
    for half in ((), ('--half', )):
        dst = tmp_path / f'out{len(half)}' / 'cris'
        out = tool('model_converters/publish_model.py', src, dst, *half)
        (path, ) = dst.parent.iterdir()
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.name == f'cris-{sha256[:8]}.safetensors'
        assert sha256 in out
        dtype = torch.float16 if half else torch.float32
        written = load_file(path)
        assert written.keys() == weights.keys()
        for name, value in weights.items():
            if value.is_floating_point():
                value = value.to(dtype)
            assert torch.equal(written[name], value), name
            assert written[name].dtype == value.dtype
        cris.init_model(CONFIG, str(path))


def test_publishing_what_fp16_cannot_hold(tmp_path):
    weights = dict(large=torch.tensor([1e5, 1.0]), small=torch.ones(2))
    torch.save(weights, tmp_path / 'a.pth')
    out = tool('model_converters/publish_model.py', tmp_path / 'a.pth',
               tmp_path / 'b.safetensors', '--half')
    assert 'large is too large for fp16' in out
    (path, ) = tmp_path.glob('b-*.safetensors')
    written = load_file(path)
    assert torch.equal(written['large'], weights['large'])
    assert written['small'].dtype == torch.float16
    torch.save(dict(weights, epoch=3), tmp_path / 'c.pth')
    out = tool('model_converters/publish_model.py', tmp_path / 'c.pth',
               tmp_path / 'c', ok=False)
    assert 'c.pth: epoch is a int, not a tensor' in out
    assert 'Traceback' not in out


def test_fewer_samples_than_a_batch(tmp_path):
    data = ReferSet(tmp_path / 'refer').write()
    out = tool('train.py', CONFIG, '--work-dir', tmp_path, *options(data),
               'train_dataloader.batch_size=128',
               'train_dataloader.drop_last=True', ok=False)
    assert re.search('smaller than one batch: 2 samples, 1 process.*=128', out)
    assert 'Traceback' not in out and not list(tmp_path.glob('*.pth'))


@pytest.mark.parametrize('name, option, message', [
    ('train.py', 'train_dataloader.dataset.data_root=nowhere',
     'error: .*nowhere/instances.json does not exist: check data_root'),
    ('train.py', 'val_dataloader.dataset.split=dev', "error: .* 'dev'; it"),
    ('test.py', 'test_dataloader.dataset.split=dev', "error: .* 'dev'; it ha"),
])
def test_data_that_cannot_be_used_ends_in_a_sentence(tmp_path, name, option,
                                                     message):
    data = ReferSet(tmp_path / 'refer').write()
    weights = []
    if name == 'test.py':
        weights = [tmp_path / 'a.pth']
        model = cris.init_model(CONFIG, pretrained=False, device='cpu')
        torch.save(model.state_dict(), weights[0])
    out = tool(name, CONFIG, *weights, '--work-dir', tmp_path / 'work',
               *options(data), option, ok=False)
    assert re.search(message, out) and 'Traceback' not in out
    if name == 'test.py':
        out = tool(name, CONFIG, 'nowhere.pth', '--work-dir',
                   tmp_path / 'work', *options(data), ok=False)
        assert 'error: checkpoint nowhere.pth does not exist' in out
        assert 'Traceback' not in out


def test_learning_rate_follows_the_batch(tmp_path):
    data = ReferSet(tmp_path / 'refer').write()
    log = tool('train.py', CONFIG, '--work-dir', tmp_path, '--auto-scale-lr',
               *options(data)[:-1], 'train_cfg.max_epochs=1',
               'param_scheduler=[]', 'default_hooks.logger.interval=1')
    # The config's rate is for a batch of 8, the run's is 2.
    assert re.search(r'Epoch\(train\).* lr: 3.0000e-04', log)
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {str(CONFIG)!r}\nauto_scale_lr = '
                      'dict(_delete_=True, enable=False)\n')
    log = tool('train.py', config, '--auto-scale-lr', ok=False)
    assert 'the config has no auto_scale_lr' in log


def test_fine_tuning_begins_with_published_weights(tmp_path):
    data = ReferSet(tmp_path / 'refer').write()
    model = cris.init_model(CONFIG, pretrained=False, device='cpu')
    save_file(model.state_dict(), tmp_path / 'start.safetensors')
    tool('train.py', CONFIG, '--work-dir', tmp_path, *options(data)[:-1],
         'train_cfg.max_epochs=1', f'load_from={tmp_path}/start.safetensors',
         'optim_wrapper.optimizer.lr=0.0')
    trained = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    for name, value in model.named_parameters():
        assert torch.equal(trained['state_dict'][name], value), name
