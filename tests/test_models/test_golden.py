# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Numerical identity with the official code."""
import importlib.util
import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN, REPO
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmseg.registry import MODELS, TRANSFORMS
from mmseg.structures import SegDataSample
from safetensors.torch import load_file

from cris.engine import optimize_for_inference
from cris.models.losses import TextToPixelContrastiveLoss

_spec = importlib.util.spec_from_file_location(
    'official_cris', REPO / 'tools/model_converters/official_cris.py')
official_cris = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(official_cris)

META = json.loads((GOLDEN / 'golden.json').read_text())


@pytest.fixture
def model():
    c = META['config']
    model = MODELS.build(
        dict(
            type='CRIS',
            backbone=dict(
                type='CLIPBackbone',
                embed_dim=c['embed_dim'],
                vision_cfg=dict(
                    image_size=c['image_resolution'],
                    layers=c['vision_layers'],
                    width=c['vision_width']),
                text_cfg=dict(
                    context_length=77,
                    vocab_size=c['vocab_size'],
                    width=c['text_width'],
                    heads=c['text_width'] // 64,
                    layers=c['text_layers'])),
            neck=dict(
                type='CrossModalFPN',
                in_channels=c['fpn_in'],
                out_channels=c['fpn_out'],
                sentence_channels=c['embed_dim']),
            decode_head=dict(
                type='VisionLanguageDecoderHead',
                in_channels=c['vis_dim'],
                word_channels=c['text_width'],
                sentence_channels=c['embed_dim'],
                num_layers=c['num_layers'],
                num_heads=c['num_head'],
                feedforward_channels=c['dim_ffn'],
                dropout=c['dropout'])))
    official = load_file(GOLDEN / 'official_weights.safetensors')
    model.load_state_dict(official_cris.to_ours(official), strict=True)
    return model


@pytest.fixture
def inputs():
    return load_file(GOLDEN / 'inputs.safetensors')


@torch.no_grad()
def test_every_eval_stage(model, inputs):
    model.eval()
    images, tokens = inputs['img'], inputs['tokens']
    c3, c4, c5 = model.backbone.encode_image(images)
    words, sentence = model.backbone.encode_text(tokens)
    fused = model.neck(
        c3, c4, c5, sentence=sentence, image_index=torch.arange(4))
    decoded = model.decode_head.decoder(
        fused, words=words, padding_mask=tokens == 0)
    logits = model.predict_logits(images, tokens)
    stages = dict(
        c3=c3,
        c4=c4,
        c5=c5,
        words=words,
        state=sentence,
        neck=fused,
        decoder=decoded.flatten(2),
        logits=logits)
    expected = load_file(GOLDEN / 'eval_stages.safetensors')
    assert stages.keys() == expected.keys()
    for name, stage in stages.items():
        torch.testing.assert_close(
            stage.reshape(expected[name].shape),
            expected[name],
            atol=1e-5,
            rtol=0,
            msg=lambda text, name=name: f'{name}: {text}')


@torch.no_grad()
def test_logits_of_the_optimized_model(model, inputs):
    optimize_for_inference(model)
    logits = model.predict_logits(inputs['img'], inputs['tokens'])
    expected = load_file(GOLDEN / 'eval_stages.safetensors')['logits']
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_training_steps(model, inputs):
    base_lr = META['config']['base_lr']
    wrapper = build_optim_wrapper(
        model,
        ConfigDict(
            type='OptimWrapper',
            optimizer=dict(type='Adam', lr=base_lr),
            paramwise_cfg=dict(
                custom_keys={
                    'backbone': dict(lr_mult=0.1),
                    'positional_embedding': dict(lr_mult=1.0)
                })))
    loss_fn = TextToPixelContrastiveLoss()
    norms = official_cris.to_ours(META['grad_norms_step1'])
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
            grads = dict(model.named_parameters())
            assert norms.keys() == grads.keys()
            for name, norm in norms.items():
                # The gradient of a key's bias is zero up to rounding.
                assert grads[name].grad.norm().item() == pytest.approx(
                    norm, rel=1e-3, abs=1e-4), name
        wrapper.step()
    model.eval()
    with torch.no_grad():
        logits = model.predict_logits(inputs['img'], inputs['tokens'])
    after = load_file(GOLDEN / 'after_training.safetensors')
    (expected, ) = after.values()
    torch.testing.assert_close(logits, expected, atol=2e-2, rtol=1e-2)


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
    torch.testing.assert_close(
        logits.grad[0, 0], (F.sigmoid(torch.zeros(2, 2)) - target) / 4)


class TestPredictOfTheOfficialCode:
    """From an image and made-up logits to the mask, with real parts."""

    def predict(self, monkeypatch, sample, **head):
        meta = json.loads((GOLDEN / 'prepost.json').read_text())
        arrays = np.load(GOLDEN / 'prepost.npz')
        cfg = Config.fromfile(REPO / 'configs/_base_/datasets/refcoco.py')
        size = meta['input_size']
        letterbox = dict(cfg.test_pipeline[2], size=size)
        assert letterbox['type'] == 'Letterbox'
        model_cfg = Config.fromfile(
            REPO / 'configs/_base_/models/cris_tiny.py').model
        model_cfg.decode_head.update(
            align_corners=True, target_resize='nearest', **head)
        model = MODELS.build(model_cfg)
        bgr = arrays[f'{sample}_image_rgb'][..., ::-1].copy()
        results = TRANSFORMS.build(letterbox)(dict(img=bgr))
        data_sample = SegDataSample(metainfo=dict(ori_shape=bgr.shape[:2]))
        data_sample.tokens = torch.ones(1, 5, dtype=torch.long)
        seen = []

        def logits(images, tokens, image_index):
            seen.append(images)
            return torch.from_numpy(
                arrays[f'{sample}_logits']).float().reshape(
                    1, 1, size // 4, size // 4)

        monkeypatch.setattr(model, 'predict_logits', logits)
        (out, ) = model.test_step(
            dict(
                inputs=[torch.from_numpy(results['img'].transpose(2, 0, 1))],
                data_samples=[data_sample]))
        return seen[0][0], out, arrays

    @pytest.mark.parametrize('sample', range(6))
    def test_input_probabilities_and_mask(self, monkeypatch, sample):
        seen, out, arrays = self.predict(monkeypatch, sample)
        expected = torch.from_numpy(arrays[f'{sample}_input']).reshape(
            seen.shape)
        # OpenCV 4 differs, see test_geometry.py.
        opencv_5 = cv2.__version__ >= '5'
        tolerance = 1e-4 if opencv_5 else 0.016
        assert (seen - expected).abs().max() < tolerance
        prob = arrays[f'{sample}_prob_original']
        tolerance = 1e-5 if opencv_5 else 0.01
        assert np.abs(out.seg_logits.data[0].numpy() - prob).max() < tolerance
        bits = np.unpackbits(arrays[f'{sample}_pred'])[:prob.size]
        pred = out.pred_sem_seg.data[0].numpy().ravel()
        different = (pred != bits.astype(bool)).mean()
        assert different <= (0 if opencv_5 else 0.002)

    def test_threshold(self, monkeypatch):
        _, out, arrays = self.predict(monkeypatch, 0, threshold=0.6)
        assert np.array_equal(out.pred_sem_seg.data[0].numpy(),
                              out.seg_logits.data[0].numpy() > 0.6)


def test_area_targets_and_unaligned_corners_fit_each_other():
    """A mask that is predicted as it was taught stays where it is."""
    cfg = Config.fromfile(REPO / 'configs/_base_/models/cris_tiny.py').model
    mask = torch.zeros(1, 160, 160)
    mask[0, 130:146, 132:148] = 1
    ious = {}
    for pair in (('area', False), ('nearest', True)):
        cfg.decode_head.update(target_resize=pair[0], align_corners=pair[1])
        model = MODELS.build(cfg)
        taught = []
        model.decode_head.loss_decode.forward = (
            lambda logits, target, taught=taught: taught.append(target))
        model.decode_head.loss(torch.zeros(1, 1, 40, 40), [mask])
        model.predict_logits = lambda *_, taught=taught: (
            taught[0].clamp(1e-3, 1 - 1e-3).logit())
        data_sample = SegDataSample(metainfo=dict(ori_shape=(160, 160)))
        data_sample.tokens = torch.ones(1, 5, dtype=torch.long)
        (out, ) = model.predict(torch.zeros(1, 3, 160, 160), [data_sample])
        pred, target = out.pred_sem_seg.data[0], mask[0] > 0
        ious[pair] = ((pred & target).sum() / (pred | target).sum()).item()
    # Corners are rounded off either way.
    assert ious['area', False] > 0.8 > 0.7 > ious['nearest', True]
