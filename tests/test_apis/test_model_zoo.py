# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import hashlib
import re
import shutil
import sys
import zipfile
from pathlib import Path

import modelindex
import pytest
import torch
from conftest import GOLDEN, REPO, run
from mmengine.config import Config
from mmseg.registry import MODELS
from safetensors.torch import load_file

import cris
from cris.apis.model_zoo import DEFAULT_MODEL, read_model_index

ZOO = read_model_index()
README = (REPO / 'configs/cris/README.md').read_text()
WITHOUT = 'cris_tiny_1xb8-50e_refer-192x256'
WITH_WEIGHTS = sorted(name for name in ZOO if 'Weights' in ZOO[name])


def test_index_is_openmmlabs():
    index = modelindex.load(str(REPO / 'model-index.yml'))
    # OpenMMLab's paths are relative to the top of the repository, but
    # modelindex looks beside the metafile.
    errors = [e for e in index.check(silent=True) if 'README' not in e]
    assert errors == []
    assert (REPO / index.collections[0].readme).is_file()
    assert sorted(m.name for m in index.models) == sorted(ZOO)
    assert all(model.in_collection == 'CRIS' for model in index.models)
    (collection, ) = index.collections
    assert collection.paper['URL'] == 'https://arxiv.org/abs/2111.15174'
    # Every config has an entry, and can be found by its name alone.
    configs = sorted((REPO / 'configs').rglob('*.py'))
    assert sorted(ZOO) == [
        path.stem for path in configs if path.parent.name == 'cris']
    assert len({path.stem for path in configs}) == len(configs)


@pytest.mark.parametrize('name', ZOO)
def test_entry_agrees_with_config_and_readme(name):
    entry = ZOO[name]
    assert entry['Config'] == f'configs/cris/{name}.py'
    meta = entry['Metadata']
    cfg = Config.fromfile(REPO / entry['Config'])
    assert meta['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    assert meta['Epochs'] == cfg.train_cfg.max_epochs
    if 'peft' in cfg.model.backbone:
        pytest.importorskip('peft')
    cfg.model.auxiliary_head = None  # for training only
    own = 'image_encoder' in cfg.model.backbone
    with torch.device('cpu' if own else 'meta'):
        model = MODELS.build(cfg.model)
    assert meta['Parameters'] == sum(p.numel() for p in model.parameters())
    (row, ) = (line for line in README.splitlines()
               if line.startswith('|') and f'{name}.py' in line)
    assert f'{meta["Parameters"] / 1e6:.2f}' in row
    scores = [score for result in entry.get('Results', ())
              for score in result['Metrics'].items()]
    # Results of models for 8 GPUs are the paper's, those of others are not.
    of_paper = meta['Training Resources'] == '8 GPUs'
    for metric, value in scores:
        assert ('(paper' in metric) == of_paper
        assert f'{value:.2f}' in row or not metric.startswith('mIoU')
    if of_paper:
        text = (REPO / entry['Config']).read_text()
        assert ' / '.join(f'{value:.2f}' for _, value in scores) in text
    if name == 'cris_r50_8xb8-amp-50e_refcoco-416x416':
        assert [value for _, value in scores] == [69.52, 72.72, 64.70]


@pytest.mark.parametrize('name', WITH_WEIGHTS)
def test_weights_are_those_that_were_measured(name):
    """test_inferencer.py measures the default model on other images."""
    entry = ZOO[name]
    content = (REPO / entry['Weights']).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    assert sha256 == entry['SHA256']
    assert sha256[:8] in entry['Weights']
    assert len(content) < 13_000_000
    log = (REPO / entry['Training Log']).read_text()
    assert not re.search('/(tmp|home|root|work)/', log)
    (val, ) = (r['Metrics'] for r in entry['Results']
               if r['Dataset'].endswith('val'))
    # The weights were rounded to half precision after training, and a model
    # that can abstain got another threshold.
    for metric in {'mIoU', 'gIoU'} & val.keys():
        scores = re.findall(rf'Epoch\(val\) .* {metric}: ([\d.]+)', log)
        assert float(scores[-1]) == pytest.approx(
            val[metric], abs=0.5 if 'gIoU' in val else 0.1)
    cris.init_model(name, device='cpu')


class TestInitModel:

    def test_list(self):
        assert cris.list_models() == sorted(ZOO)
        r101 = cris.list_models('*r101*')
        assert len(r101) == 5 and all('r101' in name for name in r101)
        assert cris.list_models('r101') == r101
        assert cris.list_models(pretrained=True) == WITH_WEIGHTS
        assert DEFAULT_MODEL in WITH_WEIGHTS
        assert cris.list_models('nothing') == []

    def test_config_file_is_a_base_from_any_folder(self, tmp_path):
        base = cris.config_file(WITHOUT)
        own = tmp_path / 'own.py'
        own.write_text(f'_base_ = {base!r}\n'
                       'model = dict(decode_head=dict(num_layers=1))\n')
        cfg = Config.fromfile(own)
        assert cfg.model.decode_head.pop('num_layers') == 1
        whole = Config.fromfile(base)
        whole.model.decode_head.pop('num_layers')
        assert cfg.to_dict() == whole.to_dict()

    @pytest.mark.parametrize('name', [
        'own_coco', 'datasets/own_coco', '_base_/datasets/own_coco',
        '_base_/datasets/own_coco.py'])
    def test_config_file_of_a_dataset(self, name):
        assert cris.config_file(name) == str(
            REPO / 'configs/_base_/datasets/own_coco.py')

    def test_unknown_config_file(self):
        for name, near in [('r101', 'cris_r101'), ('own-coco', 'own_coco'),
                           ('coco', 'refcoco')]:
            with pytest.raises(ValueError, match=f'no config .*[ ,]{near}'):
                cris.config_file(name)

    def test_weights_of_the_zoo(self):
        model = cris.init_model(DEFAULT_MODEL, device='cpu')
        assert not model.training
        assert model.cfg.image_size == 128
        weights = load_file(REPO / ZOO[DEFAULT_MODEL]['Weights'])
        torch.testing.assert_close(
            model.state_dict(), weights, rtol=0, atol=0, check_dtype=False)

    def test_alias(self):
        model = cris.init_model('street', pretrained=False, device='cpu')
        assert 'street' in model.cfg.train_dataloader.dataset.data_root
        with pytest.raises(ValueError, match='near it: street'):
            cris.init_model('streets')

    def test_other_weights_config_files_and_configs(self, tmp_path):
        path = REPO / 'configs/cris' / f'{WITHOUT}.py'
        random = cris.init_model(WITHOUT, pretrained=False, device='cpu')
        own = str(tmp_path / 'own.pth')
        torch.save(random.state_dict(), own)
        for model in (WITHOUT, path, str(path), Config.fromfile(path)):
            loaded = cris.init_model(model, own, 'cpu')
            torch.testing.assert_close(
                loaded.state_dict(), random.state_dict(), rtol=0, atol=0)

    @pytest.mark.parametrize('arguments, error, message', [
        ([WITHOUT.replace('refer', 'refers')], ValueError,
         f'no model .* near it: {WITHOUT}'),
        ([WITHOUT], ValueError,
         f'no weights come with {WITHOUT}.*{DEFAULT_MODEL}'),
        (['absent.py'], FileNotFoundError, 'absent.py does not'),
        ([WITHOUT, Path('absent.pth')], FileNotFoundError,
         'absent.pth does not'),
        ([Config(dict(a=1)), None, None, False], ValueError,
         'this config defines no model'),
        *(([WITHOUT, None, device, False], ValueError,
           f'{device}. cannot be used') for device in ('gpu', 'cuda:99')),
    ])
    def test_refusals(self, arguments, error, message):
        with pytest.raises(error, match=message):
            cris.init_model(*arguments)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'  # the build leaves its folder there
    shutil.copytree(
        REPO, source, ignore=shutil.ignore_patterns(
            '.*', 'data', 'work_dirs', 'build', '*.egg-info', '__pycache__'))
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', folder,
        source, cwd=folder)
    (path, ) = folder.glob('mmseg_cris-*.whl')
    return path


def test_wheel_carries_configs_tools_index_and_weights(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = run('git', 'ls-files', 'configs', 'tools', 'demo',
                  'checkpoints').split()
    for name in [*tracked, 'model-index.yml', ZOO[DEFAULT_MODEL]['Weights']]:
        assert f'cris/.mim/{name}' in names, name
    assert not any('__pycache__' in name for name in names)
    assert 'cris_segment.py' in names
    (points, ) = (name for name in names if name.endswith('entry_points.txt'))
    text = zipfile.ZipFile(wheel).read(points).decode()
    assert 'cris-segment = cris_segment:main' in text


def test_wheel_without_the_repository(wheel, tmp_path):
    """Installed away from the checkout."""
    site = tmp_path / 'site'
    run(sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target',
        site, wheel, cwd=tmp_path)
    code = '''
import cris, runpy, sys, torch
from cris.datasets.tokenizer import tokenize
name = 'cris_tiny_1xb8-6e_refshapes-128x128'
assert name in cris.list_models(pretrained=True)
assert len(cris.list_models()) > 15
model = cris.init_model(name)
logits = model.predict_logits(
    torch.zeros(1, 3, 128, 128), tokenize('the red circle', 17))
print(cris.__file__, tuple(logits.shape))
assert cris.config_file('own_coco').endswith(
    'cris/.mim/configs/_base_/datasets/own_coco.py')
from cris_segment import main
picture, tool, weights = sys.argv[1:]
main([picture, '--text', 'a circle', '--out-file', 'out.png'])
sys.argv = [tool, weights, 'x.pth', '--num-heads=4', '--print-config']
runpy.run_path(tool, run_name='__main__')
'''
    mim = site / 'cris/.mim'
    out = run(
        sys.executable, '-c', code, mim / 'demo/shapes_1.jpg',
        mim / 'tools/model_converters/official_cris.py',
        GOLDEN / 'official_weights.safetensors', cwd=tmp_path,
        PYTHONPATH=str(site))
    # Messages of the packages do not come before it.
    assert re.match(rf'{site}\S* \(1, 1, 64, 64\)\n', out)
    assert (tmp_path / 'out.png').stat().st_size > 10_000
    assert "type='CRIS'" in out
    assert 'MultiScaleDeformableAttention' not in out
