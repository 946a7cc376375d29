# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import re

import numpy as np
import pytest
from conftest import REPO
from mmengine.config import Config
from mmseg.registry import MODELS, TRANSFORMS

from cris.geometry import letterbox

CONFIGS = sorted((REPO / 'configs/cris').glob('*.py'))
NAME = re.compile(r'cris_(?P<model>[a-z0-9]+)_(?P<gpus>\d+)xb(?P<batch>\d+)'
                  r'(?P<amp>-amp)?-(?P<epochs>\d+)e_(?P<data>[a-z]+)'
                  r'-(?P<height>\d+)x(?P<width>\d+)\.py')


def test_there_are_configs():
    assert len(CONFIGS) >= 3


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_does_what_its_name_says(path):
    name = NAME.fullmatch(path.name)
    assert name, path.name
    cfg = Config.fromfile(path)
    assert cfg.train_dataloader.batch_size == int(name['batch'])
    assert cfg.train_cfg.max_epochs == int(name['epochs'])
    assert cfg.auto_scale_lr.base_batch_size == (
        int(name['gpus']) * int(name['batch']))
    amp = cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert amp == bool(name['amp'])
    size = (int(name['height']), int(name['width']))
    for loader in (cfg.train_dataloader, cfg.val_dataloader,
                   cfg.test_dataloader):
        for transform in loader.dataset.pipeline:
            built = TRANSFORMS.build(transform)
            if transform.type == 'Letterbox':
                assert letterbox(np.zeros((9, 9)), built.size).shape == size
    assert not cfg.train_dataloader.dataset.get('test_mode')
    assert cfg.test_dataloader.dataset.test_mode
    assert size[0] % 32 == size[1] % 32 == 0
    MODELS.build(cfg.model)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_says_how_to_run_it(path):
    head = path.read_text().split('_base_')[0]
    assert f'configs/cris/{path.name}' in head
    assert 'mIoU' in head


def test_inheritance_is_shallow():

    def depth(path):
        bases = Config._get_base_files(str(path))
        return 1 + max((depth(path.parent / b) for b in bases), default=-1)

    assert max(depth(path) for path in CONFIGS) <= 3


def test_the_papers_recipe():
    """Facts of the official code: groups, rates, steps."""
    from mmengine.optim import build_optim_wrapper
    cfg = Config.fromfile(
        REPO / 'configs/cris/cris_r50_8xb8-amp-50e_refcoco-416x416.py')
    cfg.model.backbone.update(
        model_name=None,
        embed_dim=1024,
        vision_cfg=dict(image_size=224, layers=[1, 1, 1, 1], width=64),
        text_cfg=dict(
            context_length=77, vocab_size=512, width=512, heads=8, layers=1))
    model = MODELS.build(cfg.model)
    cfg.optim_wrapper.type = 'OptimWrapper'
    groups = build_optim_wrapper(model,
                                 cfg.optim_wrapper).optimizer.param_groups
    rates = {id(p): g['lr'] for g in groups for p in g['params']}
    assert all(g['weight_decay'] == 0 for g in groups)
    for name, p in model.named_parameters():
        clip = name.startswith('backbone') and (
            'positional_embedding' not in name)
        assert rates[id(p)] == pytest.approx(1e-5 if clip else 1e-4), name
    (step, ) = cfg.param_scheduler
    assert (step.type, step.milestones, step.gamma) == ('MultiStepLR', [35],
                                                        0.1)
    assert cfg.sync_bn == 'torch'
