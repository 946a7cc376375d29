# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""tools/analysis_tools/benchmark.py: every subcommand at toy size."""
import json
import re

import benchmark
import pytest
from benchmarking import index
from conftest import CONFIG, options, tool

from cris.deploy import BACKENDS
from cris.engine import PRECISIONS

TOOL = 'analysis_tools/benchmark.py'


def measure(tmp_path, *args):
    """What was printed, and the figures."""
    file = tmp_path / 'figures.json'
    out = tool(TOOL, *args, '--json', file)
    return out, json.loads(file.read_text())


def test_choices_are_those_of_the_package():
    """They are written out, for --help must not import the package."""
    assert benchmark.PRECISIONS == PRECISIONS
    assert benchmark.BACKENDS == tuple(BACKENDS)


def test_model(tmp_path):
    out, figures = measure(tmp_path, 'model', CONFIG, '--expressions', 1, 3,
                           '--runs', 1, '--train-batch', 2, '--cfg-options',
                           'image_size=64', 'model.decode_head.num_layers=1')
    assert figures['case']['size'] == [64, 64]
    result = figures['inference']['fp32']
    assert [row['expressions'] for row in result['rows']] == [1, 3]
    for row in result['rows']:
        assert all(
            row[key] > 0 for key in ('seconds', 'ratio', 'image', 'text',
                                     'neck', 'decoder', 'head', 'masks'))
    flops = result['flops']
    assert flops['official'] > flops['official head'] > 0
    training = figures['training']['fp32']
    assert training['peak_bytes'] > training['bytes_before_the_model'] > 1e8
    assert len(re.findall(r'^\| fp32 ', out, re.MULTILINE)) == 3


def test_api(tmp_path):
    _, figures = measure(tmp_path, 'model', CONFIG, '--api', 4, '--picture',
                         60, 80, '--runs', 1)
    (row, ) = figures['rows']
    assert row['single'] > 0  # which is faster depends on the machine's load
    assert row['share'] == pytest.approx(row['many'] / row['single'] / 4)


@pytest.mark.slow
def test_growth(tmp_path):
    picture = tmp_path / 'growth.png'
    out, figures = measure(
        tmp_path, 'model', CONFIG, '--growth', picture, '--expressions', 1,
        '--sizes', 64, '--batches', 2, '--runs', 1)
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert len(re.findall(r'^fp32, .* ratio', out, re.MULTILINE)) == 3
    assert figures['results']['fp32']['size'][0]['x'] == 64


def test_evaluation(shapes, tmp_path):
    out, figures = measure(tmp_path, 'test', CONFIG, '--images', 2,
                           '--expressions', 3, *options(shapes))
    slow, fast = figures['rows'].values()
    assert slow['expressions'] == 3 and fast['expressions'] == 2 * 7
    assert re.search(r'\d times as many', out)


@pytest.mark.slow
def test_export(tmp_path):
    pytest.importorskip('onnxruntime')
    _, figures = measure(tmp_path, 'export', CONFIG, '--expressions', 2,
                         '--runs', 1, '--backend', 'onnxruntime')
    (row, ) = figures['rows']
    assert row['ratio'] > 0 and row['backend'] == 'onnxruntime'


def test_data(refer_set, tmp_path):
    out, figures = measure(tmp_path, 'data', CONFIG, '--num', 30,
                           *options(refer_set.write()))
    assert re.search(r'sample [\d.]+ ms: \d+ samples/s', out)
    assert figures['milliseconds'].keys() >= {
        'record', 'decode', 'LoadReferMasks', 'PackReferInputs'}


def test_generated_set(tmp_path):
    index.generate(str(tmp_path), share=0.01)
    out = tool('dataset_converters/prepare.py', 'check', tmp_path,
               '--dataset', 'refer', '--out', tmp_path / 'out')
    assert re.search(r'train +424 +1206 +170\n', out)
    assert 'usable: 0 errors' in out
    figures = index.measure_index(str(tmp_path))
    assert (figures['train_samples'], figures['val_samples']) == (424, 38)
    workers = index.measure_workers(str(tmp_path), 1)
    assert workers['workers'] == 1
    assert workers['last_mib'][0] >= workers['first_mib'][0] > 0


@pytest.mark.slow
def test_index_of_the_true_size(tmp_path):
    """Memory and counts; the times are for the benchmark to print."""
    out, figures = measure(tmp_path, 'data', '--index', tmp_path)
    assert re.search(r'^4 workers share [\d.]+ MiB', out, re.M)
    for case in (figures['cold'], figures['cached']):
        assert (case['train_samples'], case['val_samples']) == (42404, 3811)
        assert case['peak_gib'] < 2e9 / 2**30
    workers = figures['workers']
    assert workers['workers'] == 4
    for first, last in zip(workers['first_mib'], workers['last_mib'],
                           strict=True):
        assert last - first < 50


def test_data_needs_a_config_or_a_folder():
    out = tool(TOOL, 'data', ok=False)
    assert 'needs either a config or --index DIR' in out
