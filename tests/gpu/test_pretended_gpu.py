# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The paper's configs on a pretended GPU: torch's fake tensors.

Nothing is computed, but every operator checks the devices and kinds of its
inputs, and reports those of its outputs.
"""
from collections import Counter

import pytest
import torch
from conftest import REPO
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cris  # noqa: F401  registers the model
from cris.engine import load_config

CONFIGS = ['cris_r50_8xb8-amp-50e_refcoco-416x416',
           'cris_r101_8xb8-amp-50e_refcoco-416x416',
           'cris_r50-dec0_8xb8-amp-50e_refcoco-416x416',
           'cris_r50-static-dec1_8xb8-amp-50e_refcoco-416x416']
CASES = [(CONFIGS[0], None), (CONFIGS[0], torch.bfloat16),
         *((name, torch.float16) for name in CONFIGS)]
SIDE, LENGTH = 96, 9


class Watch(TorchDispatchMode):
    """What happens to tensors.

    ``on_host``: operators of which a tensor is on the CPU, by name;
    ``turned_back``: concatenations that turn channels last into channels
    first.
    """

    def __init__(self):
        super().__init__()
        self.on_host = Counter()
        self.turned_back = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out))
                   if isinstance(x, torch.Tensor)]
        if any(x.device.type == 'cpu' for x in tensors):
            self.on_host[str(func)] += 1
        if func is torch.ops.aten.cat.default and out.ndim == 4:
            self.turned_back += channels_last(args[0][0]) > channels_last(out)
        return out


def channels_last(x):
    return x.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def fake(monkeypatch):
    # Else autocast turns itself off.
    monkeypatch.setattr(torch.cuda.amp.common, 'amp_definitely_not_available',
                        lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: True)
    with FakeTensorMode() as mode:
        yield mode


def build(name, device):
    cfg = load_config(f'{REPO}/configs/cris/{name}.py',
                      [f'image_size={SIDE}'])
    cfg.model.backbone.init_cfg = None
    cfg.model.data_preprocessor = None
    init_default_scope('mmseg')
    with torch.device(device):  # fake modules cannot be moved there
        return MODELS.build(cfg.model)


def batch(device):
    samples = []
    for count in (2, 1):
        sample = SegDataSample(metainfo=dict(ori_shape=(50, 70)))
        sample.tokens = torch.ones(
            count, LENGTH, dtype=torch.int64, device=device)
        sample.gt_sem_seg = PixelData(
            data=torch.ones(count, SIDE, SIDE, device=device))
        samples.append(sample)
    return torch.ones(2, 3, SIDE, SIDE, device=device), samples


@pytest.mark.parametrize('name, dtype', CASES)
def test_training(fake, name, dtype):
    model = build(name, 'cuda').train()
    with Watch() as watch, torch.autocast(
            'cuda', dtype, enabled=dtype is not None):
        losses = model.loss(*batch('cuda'))
    assert not watch.on_host
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert watch.turned_back == 0


@pytest.mark.parametrize('name', CONFIGS)
def test_gradients(fake, name):
    """On the CPU: without a GPU, autograd refuses to work for one."""
    model = build(name, 'cpu').train()
    sum(model.loss(*batch('cpu')).values()).backward()
    missing = [name for name, parameter in model.named_parameters()
               if parameter.requires_grad and parameter.grad is None]
    assert not missing


@pytest.mark.parametrize('name, dtype', CASES)
def test_evaluation(fake, name, dtype):
    model = build(name, 'cuda').eval()
    model.inference_dtype = dtype
    with Watch() as watch, torch.no_grad():
        logits = model._forward(*batch('cuda'))
    assert not watch.on_host
    assert logits.dtype == torch.float32
    assert logits.shape == (3, 1, SIDE // 4, SIDE // 4)
    assert watch.turned_back == 0
