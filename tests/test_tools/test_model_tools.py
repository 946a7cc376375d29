# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import hashlib
import re

import pytest
import torch
from conftest import CONFIG, REPO, options, tool
from safetensors.torch import load_file, save_file

import cris
from cris.apis.model_zoo import read_model_index

R50 = REPO / 'configs/cris/cris_r50_8xb8-amp-50e_refcoco-416x416.py'


def random_model():
    return cris.init_model(CONFIG, pretrained=False, device='cpu')


def flops(*args):
    """What get_flops.py prints, and its numbers by their first words."""
    out = tool('analysis_tools/get_flops.py', R50, *args)
    return out, {name: float(number) for name, number in re.findall(
        r'^(\w+).*? +([\d.]+) GFLOPs', out, re.MULTILINE)}


def test_flops_of_the_official_code():
    out, counts = flops()
    assert '146.85 M' in out
    (head, ) = re.findall(r'GFLOPs \(head ([\d.]+)', out)
    assert [counts.pop('official'), float(head)] == pytest.approx(
        [131.9, 39.8], abs=0.06)
    assert counts == dict(image=42.9, text=1.3, neck=30.1, decoder=17.8,
                          head=11.6, total=103.8)
    in_zoo = read_model_index()[R50.stem]['Metadata']['FLOPs']
    assert counts['total'] == round(in_zoo / 1e9, 1)


def test_flops_follow_the_input():
    out, counts = flops('--shape', 192, 416, '--cfg-options',
                        'model.decode_head.num_layers=0')
    assert 'input 192x416' in out and counts['decoder'] == 0
    for stage, whole in dict(image=42.9, neck=30.1, head=11.6).items():
        assert counts[stage] == pytest.approx(whole * 192 / 416, rel=0.02)


def test_published_weights(tmp_path):
    src = tmp_path / 'epoch_3.pth'
    weights = random_model().state_dict()
    torch.save(dict(state_dict=weights, optimizer=dict(state={})), src)
    for half in ((), ('--half', )):
        dst = tmp_path / f'out{len(half)}' / 'cris'
        out = tool('model_converters/publish_model.py', src, dst, *half)
        (path, ) = dst.parent.iterdir()
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.name == f'cris-{sha256[:8]}.safetensors'
        assert sha256 in out
        if half:
            weights = {name: w.half() if w.is_floating_point() else w
                       for name, w in weights.items()}
        torch.testing.assert_close(
            load_file(path), dict(weights), rtol=0, atol=0)
        cris.init_model(CONFIG, str(path))


def test_publishing_what_fp16_cannot_hold(tmp_path):
    weights = dict(large=torch.tensor([1e5, 1.0]), small=torch.ones(2))
    src = tmp_path / 'a.pth'
    torch.save(weights, src)
    out = tool('model_converters/publish_model.py', src,
               tmp_path / 'b.safetensors', '--half')
    assert 'large is too large for fp16' in out
    (path, ) = tmp_path.glob('b-*.safetensors')
    written = load_file(path)
    assert torch.equal(written['large'], weights['large'])
    assert written['small'].dtype == torch.float16
    torch.save(dict(weights, epoch=3), src)
    out = tool('model_converters/publish_model.py', src, tmp_path / 'c',
               ok=False)
    assert 'a.pth: epoch is a int, not a tensor' in out
    assert 'Traceback' not in out


@pytest.mark.parametrize('name, given, message', [
    ('train.py', ['train_dataloader.dataset.data_root=nowhere'],
     'nowhere/instances.json does not exist: check data_root'),
    ('train.py', ['val_dataloader.dataset.split=dev'], " 'dev'; it has"),
    ('train.py', ['train_dataloader.batch_size=128',
                  'train_dataloader.drop_last=True'],
     'smaller than one batch: 2 samples, 1 process.*=128'),
    ('test.py', ['test_dataloader.dataset.split=dev'], " 'dev'; it has"),
    ('test.py', [], 'checkpoint .*a.pth does not exist'),
])
def test_data_that_cannot_be_used_ends_in_a_sentence(refer_set, tmp_path, name,
                                                     given, message):
    weights = [tmp_path / 'a.pth'] if name == 'test.py' else []
    if weights and given:
        torch.save(random_model().state_dict(), *weights)
    out = tool(name, CONFIG, *weights, '--work-dir', tmp_path / 'work',
               *options(refer_set.root), *given, ok=False)
    assert re.search(f'error: .*{message}', out) and 'Traceback' not in out
    assert not list(tmp_path.glob('work/**/*.pth'))


def train_an_epoch(data, work, *args):
    return tool('train.py', CONFIG, '--work-dir', work, *options(data.root),
                'train_cfg.max_epochs=1', *args)


def test_no_time_ends_in_a_sentence(refer_set, tmp_path):
    log = tool('train.py', CONFIG, '--work-dir', tmp_path, '--max-minutes', 0,
               *options(refer_set.root), ok=False)
    assert 'error: max_minutes=0.0 must be more than 0' in log
    assert 'Traceback' not in log


def test_learning_rate_follows_the_batch(refer_set, tmp_path):
    log = train_an_epoch(refer_set, tmp_path, 'param_scheduler=[]',
                         'default_hooks.logger.interval=1', '--auto-scale-lr')
    # The config's rate is for a batch of 8, the run's is 2.
    assert re.search(r'Epoch\(train\).* lr: 3.0000e-04', log)
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {str(CONFIG)!r}\nauto_scale_lr = '
                      'dict(_delete_=True, enable=False)\n')
    log = tool('train.py', config, '--auto-scale-lr', ok=False)
    assert 'the config has no auto_scale_lr' in log


def test_fine_tuning_begins_with_published_weights(refer_set, tmp_path):
    model = random_model()
    save_file(model.state_dict(), tmp_path / 'start.safetensors')
    train_an_epoch(refer_set, tmp_path, 'optim_wrapper.optimizer.lr=0.0',
                   f'load_from={tmp_path}/start.safetensors')
    trained = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    for name, value in model.named_parameters():
        assert torch.equal(trained['state_dict'][name], value), name
