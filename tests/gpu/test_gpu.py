# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The models of all configs on a GPU, a pretended one and a real one.

On the pretended GPU, torch's fake tensors, nothing is computed, but every
operator checks the devices and kinds of its inputs, and reports those of its
outputs. Where there is a GPU, the same tests also run on it, and others that
look at numbers.
"""
import copy
import json
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import REPO
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cris
from cris.engine import load_config, optimize_for_inference
from cris.models import fast_cpu

DEVICE = 'cuda'
CONFIGS = REPO / 'configs/cris'
R50 = 'cris_r50_8xb8-amp-50e_refcoco-416x416'
#: A config of every model.
NAMES = [R50, 'cris_r101_8xb8-amp-50e_refcoco-416x416',
         'cris_r50-static-dec0_8xb8-amp-50e_refcoco-416x416',
         'cris_tiny_1xb8-6e_refshapes-128x128',
         'cris_tiny_1xb8-50e_refer-192x256',
         *(f'cris_{model}_8xb8-amp-50e_refcoco-416x416'
           for model in ('r50-dec0', 'r50-dec1', 'r50-dec2', 'r50-dec4',
                         'r50-static-dec1', 'vit-b16', 'vit-l14-336',
                         'r50x16')),
         'cris_tiny-gen_1xb8-2e_refshapes-128x128',
         *(f'cris_{model}-exist_8xb8-amp-50e_grefcoco-416x416'
           for model in ('r50', 'r101'))]
QUICK = [R50, 'cris_tiny_1xb8-6e_refshapes-128x128']
#: What the base config proposes where memory is short.
WITH_CP = {'model.backbone.with_cp': True, 'model.decode_head.with_cp': True}
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)


def case(name, *values):
    """Arguments of a test, which is slow but for two models."""
    short = name.split('_8xb8')[0].split('_1xb8')[0]
    return pytest.param(
        name, *values, id='-'.join([short, *map(str, filter(None, values))]),
        marks=[] if name in QUICK else [pytest.mark.slow])


CASES = [case(R50, 'fp32'), case(R50, 'bf16'),
         *(case(name, 'fp16') for name in NAMES)]
SIDE, LENGTH = 96, 9


class Watch(TorchDispatchMode):
    """What happens to tensors.

    ``on_host``: operators of which a tensor is on the CPU, by name;
    ``moved``: tensors that went from or to the CPU, by place and dtype;
    ``turned_back``: concatenations that turn channels last into channels
    first; ``cast``: shapes of matrices among the weights that were cast;
    ``asked``: values that the host read, for which a GPU is waited.
    """

    def __init__(self):
        super().__init__()
        self.on_host, self.moved = Counter(), Counter()
        self.turned_back, self.cast, self.asked = 0, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.asked += 1
            if isinstance(args[0], FakeTensor):
                return True  # such as whether all are finite
        out = func(*args, **(kwargs or {}))
        before = tensors((args, kwargs))
        # Recomputation passes an empty tensor on.
        devices = {x.device.type for x in before + tensors(out) if x.numel()}
        if 'cpu' in devices and 'attention' not in str(func):
            # A real one also returns where it stands in the random numbers.
            self.on_host[str(func)] += 1
            if len(devices) > 1:
                to = tensors(out)[0].device.type
                self.moved[to, before[0].dtype] += 1
        if func is torch.ops.aten.cat.default and out.ndim == 4:
            self.turned_back += channels_last(args[0][0]) > channels_last(out)
        if (func is torch.ops.aten._to_copy.default and out.ndim > 1
                and isinstance(args[0], nn.Parameter)):
            self.cast.append(out.shape)
        return out


def tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def channels_last(x):
    return x.is_contiguous(memory_format=torch.channels_last)


@contextmanager
def watch_gpu(gpu):
    """Nothing is on the CPU, and a real GPU is not waited for."""
    if gpu == 'real':
        torch.cuda.set_sync_debug_mode('error')
    try:
        with Watch() as watch:
            yield watch
    finally:
        if gpu == 'real':
            torch.cuda.set_sync_debug_mode('default')
    assert not watch.on_host


def _apply(module, function, recurse=True):
    """nn.Module's cannot change fake parameters."""
    for child in module.children():
        child._apply(function)
    for key, weight in module._parameters.items():
        if weight is not None:
            module._parameters[key] = nn.Parameter(
                function(weight.detach()), weight.requires_grad)
    for key, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[key] = function(buffer)
    return module


@pytest.fixture
def pretended(monkeypatch):
    # Else autocast turns itself off.
    monkeypatch.setattr(torch.cuda.amp.common, 'amp_definitely_not_available',
                        lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: True)
    monkeypatch.setattr(nn.Module, '_apply', _apply)
    monkeypatch.setattr(FakeTensor, 'numpy',
                        lambda x: np.zeros(x.shape, np.float32))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield 'pretended'


@pytest.fixture
def real():
    if not torch.cuda.is_available():
        pytest.skip('there is no GPU')
    before = torch.backends.cudnn.allow_tf32  # that of matmul is off
    torch.backends.cudnn.allow_tf32 = False
    yield 'real'
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(params=['pretended', 'real'])
def gpu(request):
    return request.getfixturevalue(request.param)


def build(name, device, options=None):
    """A model of a config, with random weights and its config."""
    cfg = load_config(f'{CONFIGS}/{name}.py',
                      dict(options or {}, image_size=SIDE))
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).to(device)
    model.cfg = cfg
    return model


def batch(device):
    torch.manual_seed(0)
    samples = []
    for count in (2, 1):
        sample = SegDataSample(metainfo=dict(
            ori_shape=(50, 70), img_shape=(SIDE, SIDE)))
        sample.tokens = torch.randint(1, 999, (count, LENGTH)).to(device)
        sample.tokens[:, -3] = 49407  # the end of the text
        sample.tokens[:, -2:] = 0
        sample.gt_sem_seg = PixelData(
            data=torch.rand(count, SIDE, SIDE).gt(0.5).to(device))
        samples.append(sample)
    return torch.randn(2, 3, SIDE, SIDE).to(device), samples


def raw_batch():
    """What a data loader gives."""
    torch.manual_seed(1)
    images = [torch.randint(256, (3, SIDE, SIDE), dtype=torch.uint8)
              for _ in range(2)]
    return dict(inputs=images, data_samples=batch('cpu')[1])


def model_of(path):
    return json.dumps(load_config(str(path)).model, sort_keys=True)


def test_every_model_is_here():
    """Among them that of the sharded config, which is R50's. Not adapters, and
    not encoders of timm: they cannot be built without content."""
    named = [model_of(CONFIGS / f'{name}.py') for name in NAMES]
    assert len(named) == len(set(named))
    models = {model_of(path) for path in CONFIGS.rglob('*.py')}
    left_out = ('mmpretrain.', 'convnext_', 'EfficientNetLite0', '"peft"')
    assert {model for model in models
            if not any(word in model for word in left_out)} == set(named)


def check_gradients(model, losses):
    sum(losses.values()).backward()
    missing = [name for name, weight in model.named_parameters()
               if weight.requires_grad and weight.grad is None]
    assert not missing


@pytest.mark.parametrize('name, precision', [
    *CASES, case(R50, 'fp16-with_cp')])
def test_training(gpu, name, precision):
    precision, _, with_cp = precision.partition('-')
    model = build(name, DEVICE, WITH_CP if with_cp else {}).train()
    inputs = batch(DEVICE)
    with watch_gpu(gpu) as watch, torch.autocast(
            DEVICE, DTYPES[precision], enabled=precision != 'fp32'):
        losses = model.loss(*inputs)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert watch.turned_back == 0
    if gpu == 'real':
        check_gradients(model, losses)
        assert all(weight.grad.isfinite().all()
                   for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize('name, with_cp', [
    *(case(name, '') for name in NAMES), case(R50, 'with_cp')])
def test_gradients(pretended, name, with_cp):
    """On the CPU: without a GPU, autograd refuses to work for one."""
    model = build(name, 'cpu', WITH_CP if with_cp else {}).train()
    check_gradients(model, model.loss(*batch('cpu')))


def test_a_step_of_training_reads_no_value(pretended):
    """On the CPU, for the same reason. With GPUs, only the log waits."""
    model = build(R50, 'cpu').train()
    wrapper = build_optim_wrapper(
        model, dict(model.cfg.optim_wrapper, type='OptimWrapper'))
    with Watch() as watch:
        model.train_step(raw_batch(), wrapper)
    assert watch.asked == 0


@pytest.mark.parametrize('name, precision', CASES)
def test_evaluation(gpu, name, precision):
    model = build(name, DEVICE).eval()
    if precision != 'fp32':
        model.inference_dtype = DTYPES[precision]
    inputs = batch(DEVICE)
    with watch_gpu(gpu) as watch, torch.no_grad():
        logits = model._forward(*inputs)
    check_logits(model, logits, watch)


def check_logits(model, logits, watch):
    assert logits.dtype == torch.float32
    side = SIDE // model.logit_stride
    assert logits.shape == (3, 1, side, side)
    assert watch.turned_back == 0


@pytest.mark.parametrize('name, precision', CASES)
def test_optimized_evaluation(gpu, name, precision):
    """Of the matrices, only the sentence's small one is still cast."""
    model = build(name, DEVICE)
    inputs = batch(DEVICE)
    with watch_gpu(gpu):
        optimize_for_inference(model, precision)
    with watch_gpu(gpu) as watch, torch.no_grad():
        logits = model._forward(*inputs)
    check_logits(model, logits, watch)
    if precision != 'fp32':
        assert watch.cast == [model.backbone.text.text_projection.shape]
    assert not any(type(module).__module__ == fast_cpu.__name__
                   for module in model.modules())


def check_moves(watch, back):
    # With an index of each image mmseg's preprocessor turns BGR to RGB. That
    # it is moved is not seen where torch has found a GPU.
    integers = watch.moved.pop((DEVICE, torch.int64))
    assert integers in (2, 2 + 2)
    assert watch.moved == {
        (DEVICE, torch.uint8): 2, ('cpu', torch.float32): back}


def test_the_inferencer_moves_inputs_and_logits_only(gpu):
    """Of two images the bytes; tokens, and whose they are."""
    inferencer = cris.CRISInferencer(
        optimize_for_inference(build(R50, DEVICE), 'fp16'))
    texts = [['a dog', 'a cat'], ['a man']]
    (inputs, ) = inferencer.preprocess(
        [np.zeros((50, 70, 3), np.uint8)] * 2, 2, texts)
    with Watch() as watch:
        answer = inferencer.answer(inferencer.encode(inputs), sum(texts, []),
                                   torch.tensor([0, 0, 1]))
    assert answer.logits.device.type == 'cpu'
    check_moves(watch, 1)


def test_truth_and_masks_stay_on_the_host(gpu):
    """As tools/test.py runs it. Probabilities are moved image by image."""
    model = optimize_for_inference(build(R50, DEVICE), 'fp16')
    data = raw_batch()
    with Watch() as watch, torch.no_grad():
        samples = model.test_step(data)
    for sample, count in zip(samples, (2, 1), strict=True):
        masks = sample.pred_sem_seg.data
        assert (masks.dtype, masks.shape) == (torch.bool, (count, 50, 70))
        assert masks.device.type == 'cpu'
        assert sample.gt_sem_seg.data.device.type == 'cpu'
    check_moves(watch, 2)


@torch.no_grad()
@pytest.mark.parametrize('name', NAMES[:2])
@pytest.mark.parametrize('precision, tolerance', [
    ('fp32', 1e-3), ('bf16', 0.3), ('fp16', 0.05)])
def test_logits_are_those_of_the_cpu(real, name, precision, tolerance):
    """Their standard deviation is 1.2 (R50) and 2.3 (R101). On a CPU, fp16
    differs by 0.011 at most, bf16 by 0.084.
    """
    model = build(name, 'cpu').eval()
    expected = model._forward(*batch('cpu'))
    model.to(DEVICE)
    if precision != 'fp32':
        model.inference_dtype = DTYPES[precision]
    plain = model._forward(*batch(DEVICE)).cpu()
    optimize_for_inference(model, precision)
    optimized = model._forward(*batch(DEVICE)).cpu()
    for a, b in ((plain, expected), (optimized, expected),
                 (optimized, plain)):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize('precision, tolerance', [
    ('fp32', 1e-4), ('bf16', 0.002), ('fp16', 0.001)])
def test_the_inferencer_finds_what_it_does_on_the_cpu(
        real, inferencer, questions, precision, tolerance):
    """With trained weights; of the probabilities, the mean difference."""
    on_gpu = cris.CRISInferencer(device=DEVICE, precision=precision)
    for image, texts in questions.items():
        a, b = (i(image, texts, return_probs=True)['predictions'][0]['probs']
                for i in (on_gpu, inferencer))
        assert np.abs(a - b).mean() < tolerance


def test_steps_of_training(real):
    """The optimizer and the loss scale of the config."""
    model = build(R50, DEVICE).train()
    before = copy.deepcopy(model.state_dict())
    wrapper = build_optim_wrapper(model, model.cfg.optim_wrapper)
    losses = [model.train_step(raw_batch(), wrapper)['loss'].item()
              for _ in range(60)]
    assert np.isfinite(losses).all()
    # First nothing, until the loss scale fits; then it rises before it falls.
    assert np.mean(losses[-5:]) < losses[0] / 2
    assert wrapper.loss_scaler.get_scale() >= 1
    weights = dict(model.named_parameters())
    assert all(weight.isfinite().all() for weight in weights.values())
    # Attention does not depend on the bias of its keys.
    assert {name for name, weight in weights.items()
            if torch.equal(weight, before[name])} <= {
                'backbone.visual.attnpool.k_proj.bias'}
