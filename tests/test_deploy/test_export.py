# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import json
import os
import re
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import REPO, options, run, tool
from mmengine.config import Config
from mmengine.utils import digit_version
from mmseg.structures import SegDataSample

import cris
from cris.datasets.tokenizer import tokenize  # noqa: E402

# Not only because it is slow: a worker of the whole suite once ended when
# these libraries were loaded, for an unknown reason.
pytestmark = pytest.mark.slow
if find_spec('onnxruntime') is None or find_spec('openvino') is None:
    pytest.skip('requirements/deploy.txt', allow_module_level=True)
if digit_version(torch.__version__) < digit_version('2.6'):
    pytest.skip('the export needs torch >= 2.6', allow_module_level=True)

from cris.deploy import ExportedCRIS, export_onnx, files  # noqa: E402
from cris.deploy.runtime import open_graph  # noqa: E402

CONFIG = REPO / 'configs/cris/cris_tiny_1xb8-6e_refshapes-128x128.py'
(WEIGHTS, ) = (REPO / 'checkpoints').glob('cris_tiny_*.safetensors')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('exported')
    out = tool('deployment/export_onnx.py', CONFIG, WEIGHTS, folder)
    assert "outputs differ from PyTorch's by at most" in out
    return folder


@pytest.fixture(scope='module')
def model():
    return cris.init_model(str(CONFIG), str(WEIGHTS), 'cpu')


def ask(model, images, expressions, seed=1):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, 3, 128, 128, generator=generator)
    texts = ['the red star', 'a circle left of the small blue square',
             'it'] * expressions
    index = torch.randint(images, (expressions, ), generator=generator)
    with torch.no_grad():
        return model.predict_logits(
            pixels, tokenize(texts[:expressions], 17), index)


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('images, expressions', [(1, 1), (1, 9), (4, 3)])
def test_logits_are_pytorchs(folder, model, backend, images, expressions):
    exported = ExportedCRIS(str(folder), backend)
    own = ask(exported, images, expressions)
    wanted = ask(model, images, expressions)
    assert own.shape == (expressions, 1, 40, 40)
    torch.testing.assert_close(
        own, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def test_one_graph_does_what_three_do(folder):
    images = torch.randn(2, 3, 128, 128)
    tokens = tokenize(['the red star', 'a circle', 'it'], 17)
    index = torch.tensor([1, 0, 1])
    (fused, ) = open_graph(files.graph_file(folder, 'cris'))(dict(
        images=images.numpy(), tokens=tokens.numpy(),
        image_index=index.numpy()))
    three = ExportedCRIS(str(folder)).predict_logits(images, tokens, index)
    np.testing.assert_allclose(fused, three, atol=1e-4)


def test_scores_are_those_of_the_checkpoint(folder, shapes, tmp_path):
    scores = []
    for what, ranks in ((WEIGHTS, 1), (folder, 1), (folder, 2)):
        out = tmp_path / 'scores.json'
        args = (CONFIG, what, '--work-dir', tmp_path, '--out', out,
                *options(shapes)[:-2])
        if ranks == 1:
            tool('test.py', *args)
        else:
            run('bash', REPO / 'tools/dist_test.sh', *args[:2], ranks,
                *args[2:], MASTER_PORT=str(29600 + os.getpid() % 300))
        scores.append(json.loads(out.read_text()))
    assert scores[0] == pytest.approx(scores[1], abs=0.05)
    assert scores[0]['mIoU'] > 40
    assert scores[1] == scores[2]
    log = tool('test.py', CONFIG, folder, '--compile', ok=False)
    assert re.search('--compile .* are for a checkpoint', log)


def test_inferencer_of_an_exported_model(folder, inferencer, questions):
    path, texts = next(iter(questions.items()))
    own = cris.CRISInferencer(ExportedCRIS(str(folder), 'openvino'))
    (a, ), (b, ) = (
        i(path, texts)['predictions'] for i in (own, inferencer))
    assert (a['masks'] != b['masks']).mean() < 1e-4
    np.testing.assert_allclose(a['scores'], b['scores'], atol=1e-3)


@torch.no_grad()
def test_an_exported_model_abstains_as_its_own(tmp_path):
    cfg = Config.fromfile(
        next(CONFIG.parent.glob('cris_tiny-gen_*_refshapes-*.py')))
    torch.manual_seed(0)
    model = cris.init_model(cfg, pretrained=False, device='cpu')
    export_onnx(model, str(tmp_path))
    images = torch.randn(2, 3, 128, 128)
    tokens = tokenize(['the red star', 'a circle', 'all small ones'], 17)
    index = torch.tensor([1, 0, 1])
    exported = ExportedCRIS(str(tmp_path))
    found, wanted = (m.answer(m.encode_image(images), tokens, index)
                     for m in (exported, model))
    torch.testing.assert_close(
        found.existence, wanted.existence, atol=1e-4, rtol=0)
    _, fused = open_graph(files.graph_file(tmp_path, 'cris'))(dict(
        images=images.numpy(), tokens=tokens.numpy(),
        image_index=index.numpy()))
    np.testing.assert_allclose(fused, wanted.existence, atol=1e-4)
    between = wanted.existence.sigmoid().sort().values[:2].mean().item()
    exported.decode_head.existence_threshold = between
    model.decode_head.existence_threshold = between
    empty = []
    for m in (exported, model):
        m.decode_head.threshold = 0.0
        sample = SegDataSample(metainfo=dict(ori_shape=(60, 80)))
        sample.tokens = tokens
        (sample, ) = m.predict(images[1:], [sample])
        assert sample.existence_threshold == between
        empty.append((~sample.pred_sem_seg.data.flatten(1).any(1)).tolist())
    assert empty[0] == empty[1] and len(set(empty[0])) == 2
    # The folder of a model that always answers says so.
    about = json.loads((tmp_path / 'cris.json').read_text())
    assert about['existence_threshold'] == 0.5
    del about['existence_threshold']  # as before there was one
    (tmp_path / 'cris.json').write_text(json.dumps(about))
    assert ExportedCRIS(str(tmp_path)).decode_head.existence is None
