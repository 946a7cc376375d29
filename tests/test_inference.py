# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""optimize_for_inference, and what tools/test.py makes of it."""
import copy
import json
import re

import pytest
import torch
from conftest import CONFIG, REPO, options, tool
from mmengine.model import MMDistributedDataParallel
from mmengine.utils import digit_version
from torch import nn

import cris
from cris.datasets.tokenizer import tokenize
from cris.engine import optimize_for_inference
from cris.engine.precision import before_torch_2_4, has_bfloat16

ZOO = 'cris_tiny_1xb8-6e_refshapes-128x128'
needs_bfloat16 = pytest.mark.skipif(
    not has_bfloat16(), reason='this processor emulates bfloat16')


@pytest.fixture(scope='module')
def model():
    return cris.init_model(ZOO, device='cpu')


@pytest.fixture
def batch(model):
    torch.manual_seed(0)
    sentences = ['the red circle', 'the leftmost square', 'a blue star']
    tokens = tokenize(sentences, model.cfg.context_length)
    return torch.randn(2, 3, 160, 160), tokens, torch.tensor([0, 0, 1])


def same_logits(fast, model, batch, tolerance=1e-4):
    torch.testing.assert_close(
        fast.predict_logits(*batch), model.predict_logits(*batch),
        rtol=tolerance, atol=tolerance)


@torch.inference_mode()
def test_fp32_differs_by_rounding(model, batch):
    fast = optimize_for_inference(copy.deepcopy(model))
    # Those that follow no convolution are left.
    norms = [
        name for name, module in fast.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    assert norms == ['neck.sentence_proj.1', 'neck.norm5.0']
    same_logits(fast, model, batch)


@needs_bfloat16
@torch.inference_mode()
def test_bf16_keeps_logits_in_fp32(model, batch):
    fast = optimize_for_inference(copy.deepcopy(model), 'bf16')
    projector = fast.decode_head.projector
    assert projector.kernel_proj.weight.dtype == torch.float32
    assert projector.pixel_proj.weight.dtype == torch.float32
    assert fast.neck.proj4[0].weight.dtype == torch.bfloat16
    assert fast.encode_image(batch[0])[0].dtype == torch.bfloat16
    logits = fast.predict_logits(*batch)
    expected = model.predict_logits(*batch)
    assert logits.dtype == torch.float32
    error = (logits - expected).abs().mean()
    assert 0 < error < 0.03 * expected.abs().mean()


@torch.inference_mode()
def test_many_expressions_are_decoded_in_parts(model, batch):
    fast = optimize_for_inference(copy.deepcopy(model))
    batch = batch[0], batch[1].repeat(7, 1)[:20], torch.arange(20) % 2
    seen = []
    fast.decode_head.register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0])))
    same_logits(fast, model, batch)
    assert seen == [4] * 5


@pytest.mark.slow
@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.4'),
    reason='no torch.compile for this')
@torch.inference_mode()
def test_compile(model, batch):
    fast = optimize_for_inference(copy.deepcopy(model), compile=True)
    for count in (3, 2):
        same_logits(fast, model, (batch[0], batch[1][:count],
                                  batch[2][:count]), 1e-3)


def test_wrapped_for_ranks(model, tmp_path):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        wrapped = MMDistributedDataParallel(copy.deepcopy(model))
        assert optimize_for_inference(wrapped) is wrapped
        assert isinstance(wrapped.module.backbone.visual.bn1, nn.Identity)
    finally:
        torch.distributed.destroy_process_group()


def test_wrong_precision(model):
    for precision, said in (('fp8', 'must be one of fp32, bf16, fp16'),
                            ('fp16', 'needs a GPU')):
        with pytest.raises(ValueError, match=said):
            optimize_for_inference(model, precision)


def test_scores_of_all_ways(shapes, tmp_path):
    (weights, ) = (REPO / 'checkpoints').glob(f'{ZOO}-*.safetensors')
    ways = dict(plain=('--no-optimize', ), fast=())
    if not before_torch_2_4():
        ways['bf16'] = '--precision', 'bf16'
    scores = {}
    for way, flags in ways.items():
        out = tmp_path / f'{way}.json'
        # The slowest way also encodes the image for every sentence.
        grouped = f'test_dataloader.dataset.group_by_image={way != "plain"}'
        tool('test.py', REPO / f'configs/cris/{ZOO}.py', weights, '--out', out,
             '--work-dir', tmp_path, *flags, *options(shapes), grouped)
        scores[way] = json.loads(out.read_text())
    assert scores['fast'] == pytest.approx(scores['plain'], abs=0.01)
    if 'bf16' in scores:  # of 12 pictures
        assert abs(scores['bf16']['mIoU'] - scores['plain']['mIoU']) < 1.5
    assert scores['plain']['mIoU'] > 40


def test_contradicting_flags():
    out = tool(
        'test.py', CONFIG, 'x.pth', '--no-optimize', '--compile', ok=False)
    assert re.search('--no-optimize goes with neither', out)
