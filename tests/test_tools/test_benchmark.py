# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""tools/analysis_tools/benchmark.py: every subcommand at toy size."""
import json
import pickle
import re

import benchmark
import pytest
from benchmarking import index, scale
from conftest import CONFIG, options, tool

from cris.datasets import RefCOCODataset
from cris.deploy import BACKENDS
from cris.engine import PRECISIONS

TOOL = 'analysis_tools/benchmark.py'


def measure(tmp_path, *args):
    """What was printed, and the tables."""
    file = tmp_path / 'figures.json'
    out = tool(TOOL, *args, '--json', file)
    tables = json.loads(file.read_text())
    machine = tables.pop('machine')
    assert machine in out
    for rows in tables.values():
        for row in rows:
            assert f'| {" | ".join(rows[0])} |' in out
            words = [v for v in row.values() if isinstance(v, (str, int))]
            assert re.search('.*'.join(rf'\| {w} ' for w in words), out)
            assert min(v for v in row.values() if isinstance(v, float)) > 0
    return out, tables


def test_choices_are_those_of_the_package():
    """They are written out, for --help must not import the package."""
    assert benchmark.PRECISIONS == PRECISIONS
    assert benchmark.BACKENDS == tuple(BACKENDS)


@pytest.mark.slow
def test_model(tmp_path):
    out, tables = measure(tmp_path, 'model', CONFIG, '--expressions', 1, 3,
                          '--runs', 1, '--train-batch', 2, '--cfg-options',
                          'image_size=64', 'model.decode_head.num_layers=1')
    assert '64 x 64 pixels' in out
    one, three = tables['inference']
    assert [one['expressions'], three['expressions']] == [1, 3]
    assert one.keys() >= {
        'ratio', 'image, ms', 'text, ms', 'neck, ms', 'decoder, ms',
        'head, ms', 'masks, ms', 'peak memory, GB'}
    (training, ) = tables['training']
    assert training['step, s'] and training['ratio']
    assert training['peak memory, GB'] > training['before the model, GB'] > .1
    assert len(re.findall(r'^\| fp32 ', out, re.MULTILINE)) == 3


@pytest.mark.slow
def test_api(tmp_path):
    _, tables = measure(tmp_path, 'model', CONFIG, '--api', 4, '--runs', 1)
    (row, ) = tables['calls']
    # Which is faster depends on the machine's load.
    assert row['share of 4 single calls'] == pytest.approx(
        row['with 4, s'] / row['one call with 1, s'] / 4)


@pytest.mark.slow
def test_evaluation(shapes, tmp_path):
    out, tables = measure(tmp_path, 'test', CONFIG, '--images', 2,
                          '--expressions', 3, *options(shapes))
    slow, fast = tables['tests']
    assert slow['expressions'] == 3 and fast['expressions'] == 2 * 7
    assert re.search(r'\d times as many', out)


@pytest.mark.slow
def test_export(tmp_path):
    pytest.importorskip('onnxruntime')
    _, tables = measure(tmp_path, 'export', CONFIG, '--expressions', 2,
                        '--runs', 1, '--backend', 'onnxruntime')
    (row, ) = tables['exported']
    assert row['ratio'] and row['backend'] == 'onnxruntime'


def test_data(refer_set, tmp_path):
    out, tables = measure(tmp_path, 'data', CONFIG, '--num', 30,
                          *options(refer_set.write()))
    assert re.search(r'sample [\d.]+ ms: \d+ samples/s', out)
    assert {row['part'] for row in tables['parts']} >= {
        'get_data_info', 'LoadReferMasks', 'PackReferInputs'}
    out = tool(TOOL, 'data', ok=False)
    assert 'needs either a config, --index DIR or --scale DIR' in out


def test_generated_set(tmp_path):
    index.generate(tmp_path, share=0.01)
    out = tool('dataset_converters/prepare.py', 'check', tmp_path,
               '--dataset', 'refer', '--out', tmp_path / 'out')
    assert re.search(r'train +424 +1206 +170\n', out)
    assert 'usable: 0 errors' in out
    row = index.measure(tmp_path, 'cold')
    assert (row['train, samples'], row['val, samples']) == (424, 38)


def test_workers_share_the_records(tmp_path):
    """They are in arrays: Python's counts of references copy no page."""
    index.generate(tmp_path, share=0.01)
    dataset = RefCOCODataset(data_root=str(tmp_path),
                             data_prefix=dict(img_path='train2014'))
    assert len(dataset) == 424 < len(dataset.data_bytes) / 100
    dataset.data_bytes = dataset.data_address = None
    assert len(pickle.dumps(dataset)) < 5000


@pytest.mark.slow
def test_generated_parquet_files(tmp_path):
    index.generate(tmp_path, share=0.01)
    index.as_parquet(tmp_path)
    for folder in ('own', 'hub'):
        row = index.measure(tmp_path, folder, dict(
            type='ReferParquetDataset', data_root=str(tmp_path / folder)))
        assert (row['train, samples'], row['testB, samples']) == (424, 18)


@pytest.mark.slow
def test_scale(tmp_path):
    """As the benchmark does it, with fewer images."""
    scale.generate(tmp_path / 'set', 200, (64, 64), 3)
    assert scale.measure_opening(tmp_path / 'set')['refs'] == 800
    ours, shuffled = scale.measure_order(tmp_path / 'set')
    assert 1 <= ours['reads'] <= shuffled['reads']
    tool('dataset_converters/prepare.py', 'convert', tmp_path / 'set',
         '--dataset', 'hub', '--to', 'jsonl', '--out', tmp_path / 'folder')
    parquet, folder = scale.measure_speed(
        tmp_path / 'set', tmp_path / 'folder', '64x64')
    assert folder['to the folder'] == 1 and parquet['ms of a sample'] > 0


@pytest.mark.slow
def test_index_of_the_true_size(tmp_path):
    """Memory and counts; the times are for the benchmark to print."""
    _, tables = measure(tmp_path, 'data', '--index', tmp_path)
    for row in tables['index']:
        assert (row['train, samples'], row['val, samples']) == (42404, 3811)
        assert row['peak memory, GiB'] - row['after the imports, GiB'] < 1
