# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import modelindex
import pytest
import torch
from conftest import REPO, tool
from mmengine.config import Config
from mmseg.registry import MODELS

import cris
from cris.apis.model_zoo import read_model_index

ZOO = read_model_index()
CONFIGS = sorted((REPO / 'configs/cris').glob('*.py'))
WITH_WEIGHTS = [name for name, model in ZOO.items() if 'Weights' in model]
WITHOUT = 'cris_tiny_1xb8-50e_refer-192x256'


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


def test_every_config_has_an_entry():
    assert sorted(ZOO) == [path.stem for path in CONFIGS]


@pytest.mark.parametrize('name', ZOO)
def test_entry_agrees_with_its_config(name):
    entry = ZOO[name]
    assert entry['Config'] == f'configs/cris/{name}.py'
    meta = entry['Metadata']
    cfg = Config.fromfile(REPO / entry['Config'])
    assert meta['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    assert meta['Epochs'] == cfg.train_cfg.max_epochs
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert meta['Parameters'] == sum(p.numel() for p in model.parameters())


def test_scores_are_the_papers_or_measured():
    """Results of models for 8 GPUs are the paper's."""
    head = {}
    for name, entry in ZOO.items():
        for result in entry.get('Results', ()):
            for metric, value in result['Metrics'].items():
                if entry['Metadata']['Training Resources'] == '8 GPUs':
                    assert '(paper' in metric, name
                    head.setdefault(name, []).append(value)
                else:
                    assert '(paper' not in metric, name
    for name, values in head.items():
        text = (REPO / ZOO[name]['Config']).read_text()
        assert ' / '.join(f'{v:.2f}' for v in values) in text
    r50 = head['cris_r50_8xb8-amp-50e_refcoco-416x416']
    assert r50 == [69.52, 72.72, 64.70]


def test_readme_has_every_model():
    readme = (REPO / 'configs/cris/README.md').read_text()
    for name, entry in ZOO.items():
        (row, ) = (line for line in readme.splitlines()
                   if line.startswith('|') and f'{name}.py' in line)
        assert f'{entry["Metadata"]["Parameters"] / 1e6:.2f}' in row
        for result in entry.get('Results', ()):
            for metric, value in result['Metrics'].items():
                if metric.startswith('mIoU'):
                    assert f'{value:.2f}' in row, (name, metric)


class TestWeights:

    def test_there_are_some(self):
        assert WITH_WEIGHTS

    @pytest.mark.parametrize('name', WITH_WEIGHTS)
    def test_file_is_the_one_that_was_measured(self, name):
        entry = ZOO[name]
        content = (REPO / entry['Weights']).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        assert sha256 == entry['SHA256']
        assert sha256[:8] in entry['Weights']
        assert len(content) < 10_000_000
        log = (REPO / entry['Training Log']).read_text()
        epochs = entry['Metadata']['Epochs']
        scores = re.findall(
            rf'Epoch\(val\) \[{epochs}\].* mIoU: ([\d.]+)', log)
        (val, ) = (r['Metrics']['mIoU'] for r in entry['Results']
                   if r['Dataset'].endswith('val'))
        # The weights were rounded to half precision after training.
        assert float(scores[-1]) == pytest.approx(val, abs=0.1)

    @pytest.mark.parametrize('name', WITH_WEIGHTS)
    def test_it_segments(self, name, tmp_path):
        """It scores on new images of its dataset."""
        data, out = tmp_path / 'data', tmp_path / 'scores.json'
        tool('dataset_converters/refshapes.py', '--out', data, '--num-train',
             1, '--num-eval', 20, '--seed', 7)
        tool('test.py', REPO / ZOO[name]['Config'],
             REPO / ZOO[name]['Weights'], '--work-dir', tmp_path, '--out', out,
             '--cfg-options', f'test_dataloader.dataset.data_root={data}',
             'test_dataloader.num_workers=0',
             'test_dataloader.persistent_workers=False')
        assert json.loads(out.read_text())['mIoU'] > 55


class TestInitModel:

    def test_list(self):
        assert cris.list_models() == sorted(ZOO)
        r101 = cris.list_models('*r101*')
        assert len(r101) == 4 and all('r101' in name for name in r101)
        assert cris.list_models('r101') == r101
        assert cris.list_models(pretrained=True) == WITH_WEIGHTS
        assert cris.list_models('nothing') == []

    def test_config_file_is_a_base(self, tmp_path):
        """From any folder."""
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

    def test_names_of_configs_are_unique(self):
        stems = [path.stem for path in (REPO / 'configs').rglob('*.py')]
        assert len(set(stems)) == len(stems)

    def test_weights_of_the_zoo(self):
        name = WITH_WEIGHTS[0]
        model = cris.init_model(name, device='cpu')
        assert not model.training
        assert model.cfg.image_size == 160
        from safetensors.torch import load_file
        weights = load_file(REPO / ZOO[name]['Weights'])
        for key, value in model.state_dict().items():
            assert torch.equal(value, weights[key].to(value.dtype)), key

    def test_other_weights_config_files_and_configs(self, tmp_path):
        path = REPO / 'configs/cris' / f'{WITHOUT}.py'
        random = cris.init_model(WITHOUT, pretrained=False, device='cpu')
        own = str(tmp_path / 'own.pth')
        torch.save(random.state_dict(), own)
        for model in (WITHOUT, path, str(path), Config.fromfile(path)):
            loaded = cris.init_model(model, own, 'cpu')
            for key, value in loaded.state_dict().items():
                assert torch.equal(value, random.state_dict()[key]), key

    def test_refusals(self, tmp_path):
        with pytest.raises(ValueError,
                           match=f'no model .* near it: {WITHOUT}'):
            cris.init_model(WITHOUT.replace('refer', 'refers'))
        with pytest.raises(
                ValueError,
                match=f'no weights come with {WITHOUT}.*{WITH_WEIGHTS[0]}'):
            cris.init_model(WITHOUT)
        with pytest.raises(FileNotFoundError, match='absent.py does not'):
            cris.init_model('absent.py')
        with pytest.raises(FileNotFoundError, match='absent.pth does not'):
            cris.init_model(WITHOUT, Path('absent.pth'))
        with pytest.raises(ValueError, match='this config defines no model'):
            cris.init_model(Config(dict(a=1)), pretrained=False)
        for device in ('gpu', 'cuda:99'):
            with pytest.raises(ValueError, match=f'{device}. cannot be used'):
                cris.init_model(WITHOUT, device=device, pretrained=False)


def pip(*args, cwd):
    subprocess.run([sys.executable, '-m', 'pip', *map(str, args)],
                   check=True,
                   cwd=cwd)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'  # the build leaves its folder there
    shutil.copytree(
        REPO,
        source,
        ignore=shutil.ignore_patterns('.*', 'data', 'work_dirs', 'build',
                                      '*.egg-info', '__pycache__'))
    pip('wheel', '-q', '--no-deps', '-w', folder, source, cwd=folder)
    (path, ) = folder.glob('mmseg_cris-*.whl')
    return path


def test_wheel_carries_configs_tools_index_and_weights(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ['git', 'ls-files', 'configs', 'tools', 'demo', 'checkpoints'],
        cwd=REPO,
        check=True,
        capture_output=True,
        text=True).stdout.split()
    for name in [*tracked, 'model-index.yml', ZOO[WITH_WEIGHTS[0]]['Weights']]:
        assert f'cris/.mim/{name}' in names, name
    assert not any('__pycache__' in name for name in names)
    assert 'cris_segment.py' in names
    (points, ) = (name for name in names if name.endswith('entry_points.txt'))
    text = zipfile.ZipFile(wheel).read(points).decode()
    assert 'cris-segment = cris_segment:main' in text


def test_wheel_without_the_repository(wheel, tmp_path):
    """Installed away from the checkout."""
    site = tmp_path / 'site'
    pip('install', '-q', '--no-deps', '--target', site, wheel, cwd=tmp_path)
    code = '''
import cris, torch
from cris.datasets.tokenizer import tokenize
(name,) = cris.list_models(pretrained=True)
assert len(cris.list_models()) > 15
model = cris.init_model(name)
logits = model.predict_logits(
    torch.zeros(1, 3, 160, 160), tokenize('the red circle', 17))
print(cris.__file__, tuple(logits.shape))
assert cris.config_file('own_coco').endswith(
    'cris/.mim/configs/_base_/datasets/own_coco.py')
import sys
from cris_segment import main
main([*sys.argv[1:], '--text', 'a circle', '--out-file', 'out.png'])
'''
    picture = site / 'cris/.mim/demo/shapes_1.jpg'
    done = subprocess.run([sys.executable, '-c', code, picture],
                          cwd=tmp_path,
                          capture_output=True,
                          text=True,
                          env=dict(os.environ, PYTHONPATH=str(site)))
    assert done.returncode == 0, done.stderr
    # Messages of the packages do not come before it.
    assert re.match(rf'{site}\S* \(1, 1, 40, 40\)\n', done.stdout)
    assert 'MultiScaleDeformableAttention' not in done.stderr
    assert (tmp_path / 'out.png').stat().st_size > 10_000
    tool = site / 'cris/.mim/tools/model_converters/official_cris.py'
    done = subprocess.run([
        sys.executable, tool, REPO / 'tests/data/golden/'
        'official_weights.safetensors', tmp_path / 'x.pth', '--num-heads=4',
        '--print-config'
    ],
                          cwd=tmp_path,
                          capture_output=True,
                          text=True,
                          env=dict(os.environ, PYTHONPATH=str(site)))
    assert "type='CRIS'" in done.stdout, done.stderr
