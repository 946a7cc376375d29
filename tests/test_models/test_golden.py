# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Numerical identity with the official code."""
import json
import runpy

import cv2
import numpy as np
import pytest
import torch
from conftest import GOLDEN, REPO
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmseg.registry import MODELS, TRANSFORMS
from mmseg.structures import SegDataSample
from safetensors.torch import load_file

from cris.engine import optimize_for_inference
from cris.models.losses import TextToPixelContrastiveLoss

META = json.loads((GOLDEN / 'golden.json').read_text())
STAGES = load_file(GOLDEN / 'eval_stages.safetensors')
TINY = Config.fromfile(REPO / 'configs/_base_/models/cris_tiny.py').model
official_cris = runpy.run_path(
    str(REPO / 'tools/model_converters/official_cris.py'))
to_ours = official_cris['to_ours']


@pytest.fixture
def model():
    weights = to_ours(load_file(GOLDEN / 'official_weights.safetensors'))
    cfg = official_cris['model_config'](weights, META['config']['num_head'])
    cfg.decode_head.dropout = META['config']['dropout']
    model = MODELS.build(cfg)
    model.load_state_dict(weights, strict=True)
    return model.eval()


@pytest.fixture
def inputs():
    return load_file(GOLDEN / 'inputs.safetensors')


@torch.no_grad()
def test_every_eval_stage(model, inputs):
    images, tokens = inputs['img'], inputs['tokens']
    c3, c4, c5 = model.backbone.encode_image(images)
    words, sentence = model.backbone.encode_text(tokens)
    order = torch.tensor([2, 0, 3, 1])
    fused = model.neck(c3[order], c4[order], c5[order], sentence=sentence,
                       image_index=order.argsort())
    decoded = model.decode_head.decoder(
        fused, words=words, padding_mask=tokens == 0)
    stages = dict(
        c3=c3, c4=c4, c5=c5, words=words, state=sentence, neck=fused,
        decoder=decoded.flatten(2),
        logits=model.predict_logits(images, tokens))
    assert stages.keys() == STAGES.keys()
    for name, stage in stages.items():
        torch.testing.assert_close(
            stage.reshape(STAGES[name].shape), STAGES[name], atol=1e-5, rtol=0,
            msg=lambda text, name=name: f'{name}: {text}')


@torch.no_grad()
def test_logits_of_the_optimized_model(model, inputs):
    optimize_for_inference(model)
    logits = model.predict_logits(inputs['img'], inputs['tokens'])
    torch.testing.assert_close(logits, STAGES['logits'], atol=1e-5, rtol=1e-4)


def test_training_steps(model, inputs):
    keys = dict(
        backbone=dict(lr_mult=0.1), positional_embedding=dict(lr_mult=1.0))
    wrapper = build_optim_wrapper(model, ConfigDict(
        type='OptimWrapper',
        optimizer=dict(type='Adam', lr=META['config']['base_lr']),
        paramwise_cfg=dict(custom_keys=keys)))
    loss_fn = TextToPixelContrastiveLoss()
    norms = to_ours(META['grad_norms_step1'])
    model.train()
    # Adam's first steps amplify rounding, which differs between processors.
    for step, expected in enumerate(META['losses']):
        logits = model.predict_logits(inputs['img'], inputs['tokens'])
        loss = loss_fn(logits, inputs['mask'])
        assert loss.item() == pytest.approx(
            expected, rel=(1e-4, 1e-3, 1e-2, 1e-2)[step // 2]), step
        wrapper.zero_grad()
        loss.backward()
        if step == 0:
            grads = {n: p.grad.norm() for n, p in model.named_parameters()}
            # The gradient of a key's bias is zero up to rounding.
            assert grads == pytest.approx(norms, rel=1e-3, abs=1e-4)
        wrapper.step()
    with torch.no_grad():
        logits = model.eval().predict_logits(inputs['img'], inputs['tokens'])
    (expected, ) = load_file(GOLDEN / 'after_training.safetensors').values()
    assert (logits - expected).norm() < 5e-2 * expected.norm()


def test_loss_is_the_papers_formula():
    z = torch.linspace(-9, 9, 40).reshape(2, 1, 4, 5)
    referent = (torch.arange(40) % 3 == 0).reshape(z.shape)
    expected = -torch.where(referent, z.sigmoid().log(),
                            (1 - z.sigmoid()).log()).mean()
    loss = TextToPixelContrastiveLoss(loss_weight=2.0)
    torch.testing.assert_close(loss(z, referent), 2 * expected)


def test_target_is_resized_by_nearest(model):
    mask = torch.zeros(1, 8, 8)
    mask[0, 4, 0] = 1  # the pixel that nearest picks for (1, 0) of 2 x 2
    logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
    (loss, ) = model.decode_head.loss(logits, [mask]).values()
    loss.backward()
    target = torch.tensor([[0., 0.], [1., 0.]])
    torch.testing.assert_close(logits.grad[0, 0], (0.5 - target) / 4)


def one_expression(height, width):
    sample = SegDataSample(metainfo=dict(ori_shape=(height, width)))
    sample.tokens = torch.ones(1, 5, dtype=torch.long)
    return sample


@pytest.mark.parametrize('sample', range(6))
def test_predict_of_the_official_code(monkeypatch, sample):
    """From an image and made-up logits to the mask, with real parts."""
    size = json.loads((GOLDEN / 'prepost.json').read_text())['input_size']
    arrays = {
        name.removeprefix(f'{sample}_'): array
        for name, array in np.load(GOLDEN / 'prepost.npz').items()
        if name.startswith(f'{sample}_')
    }
    cfg = Config.fromfile(REPO / 'configs/_base_/datasets/refcoco.py')
    letterbox = dict(cfg.test_pipeline[2], size=size)
    assert letterbox['type'] == 'Letterbox'
    head = dict(TINY.decode_head, align_corners=True, target_resize='nearest',
                threshold=0.35)
    model = MODELS.build(dict(TINY, decode_head=head))
    bgr = arrays['image_rgb'][..., ::-1].copy()
    image = TRANSFORMS.build(letterbox)(dict(img=bgr))['img']
    logits = torch.from_numpy(arrays['logits']).float()
    seen = []

    def predict_logits(images, tokens, image_index):
        seen.extend(images)
        return logits.reshape(1, 1, size // 4, size // 4)

    monkeypatch.setattr(model, 'predict_logits', predict_logits)
    (out, ) = model.test_step(dict(
        inputs=[torch.from_numpy(image.transpose(2, 0, 1))],
        data_samples=[one_expression(*bgr.shape[:2])]))
    # OpenCV 4 differs, see test_geometry.py.
    opencv_5 = cv2.__version__ >= '5'
    difference = seen[0].numpy() - arrays['input'].reshape(seen[0].shape)
    assert np.abs(difference).max() < (1e-4 if opencv_5 else 0.016)
    prob = arrays['prob_original']
    difference = out.seg_logits.data[0].numpy() - prob
    assert np.abs(difference).max() < (1e-5 if opencv_5 else 0.01)
    mask = np.unpackbits(arrays['pred'])[:prob.size].astype(bool)
    different = out.pred_sem_seg.data[0].numpy().ravel() != mask
    assert different.mean() <= (0 if opencv_5 else 0.002)


def test_area_targets_and_unaligned_corners_fit_each_other(monkeypatch):
    """A mask that is predicted as it was taught stays where it is."""
    mask = torch.zeros(1, 160, 160)
    mask[0, 130:146, 132:148] = 1
    ious = []
    for target_resize, align_corners in (('area', False), ('nearest', True)):
        model = MODELS.build(dict(TINY, decode_head=dict(
            TINY.decode_head, target_resize=target_resize,
            align_corners=align_corners)))
        taught = []
        monkeypatch.setattr(
            model.decode_head.loss_decode[0], 'forward',
            lambda _, target, to=taught: to.append(target) or 0)
        model.decode_head.loss(torch.zeros(1, 1, 40, 40), [mask])
        logits = taught[0].clamp(1e-3, 1 - 1e-3).logit()
        prob = model.original_size(logits, (160, 160))
        pred, target = prob > model.decode_head.threshold, mask > 0
        ious.append((pred & target).sum() / (pred | target).sum())
    # Corners are rounded off either way.
    assert ious[0] > 0.8 > 0.7 > ious[1]
