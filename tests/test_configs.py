# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import re
import warnings

import numpy as np
import pytest
import torch
from conftest import REPO
from mmengine.config import Config
from mmseg.registry import METRICS, MODELS, TRANSFORMS

from cris.engine import avoid_fused, load_config
from cris.engine.hooks import DataTimeoutHook
from cris.geometry import letterbox

CONFIGS = sorted((REPO / 'configs/cris').glob('*.py'))
DATA_CONFIGS = sorted((REPO / 'configs/_base_/datasets').glob('*.py'))
NAME = re.compile(r'cris_(?P<model>[a-z0-9-]+)_(?P<gpus>\d+)xb(?P<batch>\d+)'
                  r'(?P<amp>-amp)?-(?P<epochs>\d+)e_(?P<data>[a-z0-9-]+)'
                  r'-(?P<height>\d+)x(?P<width>\d+)\.py')


def loaders(cfg):
    return [cfg[f'{part}_dataloader'] for part in ('train', 'val', 'test')]


def each(paths):
    return pytest.mark.parametrize('path', paths, ids=lambda path: path.stem)


@each(CONFIGS)
def test_config_does_what_its_name_says(path):
    name = NAME.fullmatch(path.name)
    assert name, path.name
    cfg = Config.fromfile(path)
    assert cfg.train_dataloader.batch_size == int(name['batch'])
    assert cfg.train_cfg.max_epochs == int(name['epochs'])
    assert cfg.auto_scale_lr.base_batch_size == (
        int(name['gpus']) * int(name['batch']))
    assert cfg.auto_scale_lr.get(
        'num_expressions', 1) == cfg.train_dataloader.dataset.get(
            'num_expressions', 1)
    amp = cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert amp == bool(name['amp'])
    size = (int(name['height']), int(name['width']))  # of training
    for loader in loaders(cfg):
        for transform in loader.dataset.pipeline:
            built = TRANSFORMS.build(transform)
            if transform.type == 'Letterbox' and (
                    loader is cfg.train_dataloader
                    or 'train_image_size' not in cfg):
                assert letterbox(np.zeros((9, 9)), built.size).shape == size
    assert not cfg.train_dataloader.dataset.get('test_mode')
    assert cfg.test_dataloader.dataset.test_mode
    assert size[0] % 32 == size[1] % 32 == 0
    # A stalled worker is named before the other processes give up.
    seconds = cfg.default_hooks.data_timeout.seconds
    assert 2 * seconds <= cfg.env_cfg.dist_cfg.timeout
    assert seconds == DataTimeoutHook().seconds
    check_data(name['data'], cfg)
    check_model(name['model'], cfg.model)


# Folder, split file and context length of the paper's data sets.
DATA = {
    'refcoco': ('data/refcoco', 'refs(unc).p', 17),
    'refcoco-plus': ('data/refcoco+', 'refs(unc).p', 17),
    'refcocog-umd': ('data/refcocog', 'refs(umd).p', 22),
    'refcocog-google': ('data/refcocog', 'refs(google).p', 22),
}
# Millions of parameters, decoder layers and text kernel of the paper's models.
MODEL = {
    'r50': (146.85, 3, True),
    'r101': (161.25, 3, True),
    'r50-lora': (147.68, 3, True),
    'r50-static-dec0': (131.86, 0, False),
    'r50-dec0': (134.22, 0, True),
    'r50-static-dec1': (136.07, 1, False),
    'r50-dec1': (138.43, 1, True),
    'r50-dec2': (142.64, 2, True),
    'r50-dec4': (151.06, 4, True),
    'r50-exist': (147.38, 3, True),
    'r101-exist': (161.65, 3, True),
}
OTHER_ENCODERS = {'vit-b16': 189.41, 'vit-l14-336': 471.01, 'r50x16': 338.70,
                  'convnext-b': 189.08, 'swin-t': 130.00}


def check_data(name, cfg):
    if name not in DATA:
        return
    for loader in loaders(cfg):
        data = loader.dataset
        (length, ) = (t.context_length for t in data.pipeline
                      if t.type == 'TokenizeExpressions')
        assert (data.data_root, data.split_file, length) == DATA[name]


def check_model(name, cfg):
    if 'peft' in cfg.backbone:
        pytest.importorskip('peft')
    # mmpretrain's cannot be built without content.
    with torch.device('cpu' if 'image_encoder' in cfg.backbone else 'meta'):
        model = MODELS.build(cfg)
    head = model.decode_head
    assert (head.existence is not None) == name.endswith(('-gen', '-exist'))
    if name in ('tiny', 'tiny-gen', 'efficientnet-lite0'):
        return
    if name in OTHER_ENCODERS:
        assert count(model) / 1e6 == pytest.approx(
            OTHER_ENCODERS[name], abs=0.005)
        return
    millions, layers, text_kernel = MODEL[name]
    assert count(model) / 1e6 == pytest.approx(millions, abs=0.005)
    assert len(head.decoder.layers if head.decoder else ()) == layers
    assert hasattr(head.projector, 'kernel_proj') == text_kernel
    # CLIP's weights are loaded unless the user says otherwise.
    assert cfg.backbone.init_cfg.checkpoint == 'openai'


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_the_papers_models_and_data_are_all_there():
    names = [NAME.fullmatch(path.name) for path in CONFIGS]
    pairs = {(name['model'], name['data']) for name in names}
    assert pairs >= {(m, d) for m in ('r50', 'r101') for d in DATA}
    assert pairs >= {
        (m, 'grefcoco' if m.endswith('-exist') else 'refcoco') for m in MODEL}


@pytest.mark.parametrize('model', ['r50', 'r50-exist', 'r101-exist'])
def test_the_best_checkpoint_of_grefcoco_is_by_giou(model):
    cfg = Config.fromfile(
        REPO / f'configs/cris/cris_{model}_8xb8-amp-50e_grefcoco-416x416.py')
    assert cfg.model.backbone.model_name == 'RN' + model[1:].split('-')[0]
    hook = cfg.default_hooks.checkpoint
    assert (hook.type, hook.save_best, hook.rule) == (
        'SafeCheckpointHook', 'gIoU', 'greater')
    assert cfg.val_evaluator.generalized
    for loader in loaders(cfg):
        assert loader.dataset.split_file == 'grefs(unc).json'


def test_refcoco_m_is_the_test_set_of_a_model_of_refcoco():
    path = 'configs/cris/cris_r50_8xb8-amp-50e_refcoco{}-416x416.py'
    cfg, other = (
        Config.fromfile(REPO / path.format(m)) for m in ('-m', ''))
    data = cfg.test_dataloader.pop('dataset')
    pipeline = other.test_dataloader.pop('dataset').pipeline
    assert cfg.to_dict() == other.to_dict()
    assert data == dict(
        type='ReferParquetDataset', data_root='data/refcoco-m/hub',
        split='validation', test_mode=True, pipeline=pipeline)


@each(CONFIGS)
def test_images_are_padded_with_the_mean(path):
    cfg = load_config(str(path))
    colours = values_of(cfg.to_dict(), 'Letterbox', 'border_value')
    for colour in colours:
        assert colour == cfg.model.data_preprocessor.mean[::-1]  # BGR


@each(CONFIGS)
def test_config_says_how_to_run_it(path):
    head = path.read_text().split('_base_')[0]
    assert f'configs/cris/{path.name}' in head
    assert 'mIoU' in head and 'TODO' not in head


def test_inheritance_is_shallow():

    def depth(path):
        bases = Config._get_base_files(str(path))
        return 1 + max((depth(path.parent / b) for b in bases), default=-1)

    assert max(depth(path) for path in REPO.glob('configs/**/*.py')) <= 3


def test_the_papers_recipe():
    """Facts of the official code: groups, rates, steps."""
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import init_default_scope
    init_default_scope('mmseg')
    cfg = Config.fromfile(
        REPO / 'configs/cris/cris_r50_8xb8-amp-50e_refcoco-416x416.py')
    cfg.model.backbone.update(
        model_name=None, embed_dim=1024,
        vision_cfg=dict(image_size=224, layers=[1, 1, 1, 1], width=64),
        text_cfg=dict(
            context_length=77, vocab_size=512, width=512, heads=8, layers=1))
    model = MODELS.build(cfg.model)
    cfg.optim_wrapper.type = 'OptimWrapper'
    avoid_fused(cfg)
    groups = build_optim_wrapper(model,
                                 cfg.optim_wrapper).optimizer.param_groups
    rates = {id(p): g['lr'] for g in groups for p in g['params']}
    assert len(groups) == 3  # those with a key of their own, and the rest
    assert all(g['weight_decay'] == 0 for g in groups)
    for name, p in model.named_parameters():
        clip = name.startswith('backbone') and (
            'positional_embedding' not in name)
        assert rates[id(p)] == pytest.approx(1e-5 if clip else 1e-4), name
    (step, ) = cfg.param_scheduler
    assert [step.type, step.milestones, step.gamma] == [
        'MultiStepLR', [35], 0.1]
    assert cfg.sync_bn == 'torch'


@each(DATA_CONFIGS)
def test_data_configs_have_an_evaluator(path):
    cfg = Config.fromfile(path)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        metric = METRICS.build(evaluator)
        assert metric.scoring['generalized'] == (
            path.stem in ('grefcoco', 'saco'))


TINY = str(REPO / 'configs/cris/cris_tiny_1xb8-6e_refshapes-128x128.py')


def test_options_are_strings_or_a_dict():
    strings = load_config(TINY, [
        'train_dataloader.batch_size=2', 'data_root=x=y',
        'vis_backends=[(1,a),None]', 'work_dir=there'
    ])
    assert strings.train_dataloader.batch_size == 2
    assert strings.data_root == 'x=y'
    assert strings.vis_backends == [(1, 'a'), None]
    assert strings.work_dir == 'there'
    options = {'train_dataloader.batch_size': 2}
    assert load_config(TINY, options).train_dataloader.batch_size == 2
    assert load_config(TINY).work_dir == load_config(TINY, []).work_dir


@pytest.mark.parametrize('option, message', [('amp', 'form key=value'),
                                             ('a=[1,(2]', 'mbalanced')])
def test_option_that_cannot_be_parsed(option, message):
    with pytest.raises(ValueError, match=message):
        load_config(TINY, ['a=1', option])


def values_of(node, kind, argument):
    """The argument's values in all transforms of a kind, wherever."""
    if isinstance(node, dict):
        if node.get('type') == kind:
            yield node[argument]
        node = node.values()
    if not isinstance(node, (str, int, float, bool, type(None))):
        for child in node:
            yield from values_of(child, kind, argument)


def sizes(cfg):
    return list(values_of(cfg.to_dict(), 'Letterbox', 'size'))


@each([*CONFIGS, *DATA_CONFIGS])
def test_pipelines_agree_with_image_size(path):
    """Also for a plain Runner, which does not use load_config."""
    cfg = Config.fromfile(path)
    train = cfg.get('train_image_size', cfg.image_size)
    for name in ('train_dataloader', 'train_pipeline'):
        assert set(sizes(Config(dict(a=cfg.pop(name))))) == {train}
    assert set(sizes(cfg)) == {cfg.image_size}
    lengths = values_of(cfg.to_dict(), 'TokenizeExpressions', 'context_length')
    assert set(lengths) == {cfg.context_length}


@each(sorted(REPO.glob('configs/**/*.py')))
def test_nothing_is_mutated_by_index(path):
    assert not re.search(r'\w\[\d+\]', path.read_text())


def child(tmp_path, text, base='datasets/refcoco_mixed.py'):
    path = tmp_path / 'child.py'
    base = (REPO / 'configs/_base_' / base).as_posix()
    path.write_text(f'_base_ = {base!r}\n{text}')
    return str(path)


def test_image_size_is_said_once(tmp_path):
    """Of a child and of options; in ConcatDataset and test pipelines, too."""
    path = child(tmp_path, 'image_size = 320\ncontext_length = 30')
    cfg = load_config(path)
    train, *others = (loader.dataset for loader in loaders(cfg))
    datasets = [*train.datasets, *others]
    assert len(datasets) == 5
    for data in datasets:
        assert sizes(Config(data)) == [320]
        assert list(
            values_of(data, 'TokenizeExpressions', 'context_length')) == [30]
    assert set(sizes(cfg)) == {320}
    cfg = load_config(path, ['image_size=192,256', 'context_length=17'])
    assert {tuple(size) for size in sizes(cfg)} == {(192, 256)}
    lengths = values_of(cfg.to_dict(), 'TokenizeExpressions', 'context_length')
    assert set(lengths) == {17}


def test_training_at_a_size_of_its_own(tmp_path):
    path = child(tmp_path, 'train_image_size = 224')
    cfg = load_config(path, ['image_size=320'])
    assert set(sizes(Config(dict(train=cfg.train_dataloader)))) == {224}
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert set(sizes(Config(dict(loader=loader)))) == {320}
    cfg = load_config(path, ['image_size=320', 'train_image_size=None'])
    assert set(sizes(cfg)) == {320}
    with pytest.raises(ValueError, match="train_image_size='big' must be"):
        load_config(path, ['train_image_size=big'])


def test_loaders_pin_their_memory_where_there_is_a_gpu(monkeypatch):
    assert 'pin_memory' not in load_config(str(CONFIGS[0])).train_dataloader
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    cfg = load_config(str(CONFIGS[0]), ['val_dataloader.pin_memory=False'])
    assert cfg.train_dataloader.pin_memory
    assert not cfg.val_dataloader.pin_memory


def test_option_of_one_transform_has_the_last_word():
    cfg = load_config(TINY, [
        'image_size=96', 'test_dataloader.dataset.pipeline.2.size=128'
    ])
    assert [sizes(loader) for loader in loaders(cfg)] == [[96], [96], [128]]


def test_alternative_sizes_are_kept(tmp_path):
    choice = '''
several = dict(
    type='RandomChoice',
    transforms=[[dict(type='mmseg.Letterbox', size=s)] for s in (320, 512)])
always = dict(
    type='RandomApply', transforms=[dict(type='mmseg.Letterbox', size=320)])
train_dataloader = dict(dataset=dict(pipeline=[several, always]))
'''
    cfg = load_config(child(tmp_path, choice, 'datasets/refcoco.py'))
    several, always = cfg.train_dataloader.dataset.pipeline
    assert [t[0].size for t in several.transforms] == [320, 512]
    assert always.transforms[0].size == 416


def test_config_without_image_size(tmp_path):
    path = tmp_path / 'own.py'
    path.write_text("pipeline = [dict(type='Letterbox', size=96)]")
    assert load_config(str(path)).pipeline[0].size == 96


@pytest.mark.parametrize('size, warned', [('64', True), ('88', True),
                                          ('96', False), ('128,224', False),
                                          ('416', True)])
def test_image_size_far_from_the_models_is_warned_of(size, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        load_config(TINY, [f'image_size={size}'])
    assert ['model_image_size=128' in str(w.message)
            for w in caught] == [True] * warned


@pytest.mark.parametrize('size', ['big', '0', '64,64,3', '64,x', 'None'])
def test_image_size_that_is_not_one(size):
    with pytest.raises(ValueError, match='height, width'):
        load_config(TINY, [f'image_size={size}'])


@pytest.mark.parametrize('data', ['refer', 'street'])
def test_pretrained_layers_learn_slowly(data):
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import init_default_scope
    init_default_scope('mmseg')
    cfg = Config.fromfile(
        REPO / 'configs/cris'
        / f'cris_efficientnet-lite0_1xb8-50e_{data}-192x256.py')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    avoid_fused(cfg)
    groups = build_optim_wrapper(model,
                                 cfg.optim_wrapper).optimizer.param_groups
    assert len(groups) == 2
    rates = {id(p): g['lr'] for g in groups for p in g['params']}
    for name, p in model.named_parameters():
        if name.startswith('backbone.visual.'):
            late = name.startswith(('backbone.visual.trunk.blocks.5.',
                                    'backbone.visual.trunk.blocks.6.'))
            assert p.requires_grad == late  # strides 2 to 16 are frozen
            assert not late or rates[id(p)] == pytest.approx(6e-4)
        else:
            assert rates[id(p)] == pytest.approx(1.2e-3), name
