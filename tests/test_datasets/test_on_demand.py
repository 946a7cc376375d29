# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Parquet files of any size: rows on demand, and the order of reading."""
import gc
import pickle
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hostile import large_png
from mmengine.dataset import ConcatDataset, DefaultSampler, pseudo_collate
from preparation.convert import convert
from preparation.locate import locate
from pyarrow import parquet
from test_published import build
from torch.utils.data import DataLoader

from cris.datasets import ShardBatchSampler
from cris.datasets.refcoco import _MANY_REFS

REFS = 3  # of an image


def write(root, shards=4, images=60, group=10, first=0, **change):
    """Images without pictures; ids count up over the shards."""
    (root / 'data').mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        rows = [dict(dict(
            image=None, file_name=f'{i}.jpg', img_id=i, height=40, width=50,
            split='val' if i % 10 == 9 else 'train',
            refs=[dict(ref_id=REFS * i + k, mask=None,
                       sentences=[f'thing {k}', f'number {i}'],
                       sent_ids=[10 * i + 2 * k, 10 * i + 2 * k + 1])
                  for k in range(REFS)]), **change)
            for i in range(first, first + images)]
        first += images
        parquet.write_table(
            pa.Table.from_pylist(rows), row_group_size=group,
            where=root / f'data/train-{shard:05d}-of-{shards:05d}.parquet')
    return root


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    return write(tmp_path_factory.mktemp('rows'))


def on_demand(root, **kwargs):
    return build('ReferParquetDataset', root, on_demand=True, **kwargs)


@pytest.fixture(params=[True, False], ids=['inside', 'folder'])
def converted(request, refer_set, tmp_path):
    """A set in our own form, pictures inside or in the source's folder."""
    root = refer_set.write()
    convert(locate(str(root), 'refer'), str(tmp_path / 'own'), 'parquet',
            with_images=request.param, shards=2)
    kwargs = {} if request.param else dict(
        data_prefix=dict(img_path=str(root / 'images')))
    return tmp_path / 'own', kwargs


@pytest.mark.parametrize('options', [
    dict(), dict(num_expressions=3), dict(test_mode=True),
    dict(exclude=['2.jpg']), dict(split=['train', 'val'])])
def test_same_samples_as_those_read_at_once(converted, options):
    root, kwargs = converted
    sets = [build('ReferParquetDataset', root, on_demand=way, **kwargs,
                  **options) for way in (False, True)]
    assert len(sets[0]) == len(sets[1]) > 0
    for dataset in sets:
        dataset.worker_state.set_epoch(3, 1)
    for a, b in zip(*sets, strict=True):
        assert np.array_equal(a['inputs'], b['inputs'])
        a, b = a['data_samples'], b['data_samples']
        assert a.metainfo == b.metainfo
        assert np.array_equal(a.tokens, b.tokens)
        assert np.array_equal(a.gt_sem_seg.data, b.gt_sem_seg.data)


@pytest.mark.parametrize('converted', [True], indirect=True)
def test_opening_reads_no_picture(converted):
    """Where they were, there is nonsense now; only using a row finds out."""
    root, _ = converted
    for path in root.glob('data/train-*'):
        file = parquet.ParquetFile(path)
        content = bytearray(path.read_bytes())
        for group in range(file.num_row_groups):
            column = file.metadata.row_group(group).column(0)
            assert column.path_in_schema == 'image.bytes'
            start, size = (column.data_page_offset,
                           column.total_compressed_size)
            content[start:start + size] = bytes(size)
        path.write_bytes(content)
    dataset = on_demand(root)
    assert len(dataset) == 4
    with pytest.raises(ValueError, match=r'train-00000.*parquet.* broken'):
        dataset[0]


@pytest.mark.parametrize('picture, message', [
    (b'', '0 bytes'), (b'not a picture', 'not an image'),
    (large_png(30_000), 'the limit of'),
    (cv2.imencode('.png', np.zeros((41, 50, 3)))[1].tobytes(),
     "size_mismatch='resize_image'")], ids=['empty', 'text', 'large', 'size'])
def test_bad_pictures(tmp_path, picture, message):
    write(tmp_path, shards=1, images=3)
    path = tmp_path / 'data/train-00000-of-00001.parquet'
    good = cv2.imencode('.png', np.zeros((40, 50, 3)))[1].tobytes()
    contents = [dict(bytes=b, path=None) for b in (good, picture, good)]
    parquet.write_table(parquet.read_table(path).drop_columns(
        'image').append_column('image', pa.array(contents)), path)
    dataset = on_demand(tmp_path)
    assert dataset.name_of(REFS) == f'{path}, row 1'
    with pytest.raises(ValueError, match=re.escape(message)):
        dataset[REFS]
    dataset = on_demand(tmp_path, on_error='skip')
    assert len(list(dataset)) == 9 and dataset.num_skipped >= REFS
    dataset = on_demand(tmp_path, size_mismatch='resize_image')
    if 'size_mismatch' in message:
        assert dataset[REFS]['data_samples'].ori_shape == (40, 50)


@pytest.mark.parametrize('change, message', [
    (dict(file_name='../a.jpg'), 'leaves the folder'),
    (dict(height=0), 'not a positive integer'),
    (dict(refs=[dict(ref_id=1000 + i, sentences=[], mask=None)
                for i in range(REFS)]), 'no sentence')])
def test_bad_rows(tmp_path, change, message):
    write(tmp_path, shards=1)
    path = tmp_path / 'data/train-00000-of-00001.parquet'
    rows = parquet.read_table(path).to_pylist()
    rows[1] = dict(rows[1], **change)
    parquet.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(ValueError, match=message) as error:
        on_demand(tmp_path).get_data_info(REFS)
    assert 'row 1' in str(error.value)


def test_shards_with_the_same_ids(tmp_path):
    write(tmp_path, shards=2)
    write(tmp_path, shards=3, first=100)  # 100 to 119 of 2 are there, too
    with pytest.raises(ValueError, match='54 ids of refs .*00000-of-00003.* '
                       'and .*00001-of-00002'):
        on_demand(tmp_path)
    assert on_demand(tmp_path, ann_file='data/*-of-00003.parquet')


def test_what_cannot_be_read_on_demand(rows, tmp_path):
    with pytest.raises(ValueError, match='group_by_image=False needs'):
        on_demand(rows, test_mode=True, group_by_image=False)
    with pytest.raises(ValueError, match=r"no split 'test'.*train \(216 rows"):
        on_demand(rows, split='test')
    with pytest.raises(ValueError, match='no image left'):
        on_demand(rows, exclude=list(range(240)))
    write(tmp_path, refs=None)
    with pytest.raises(ValueError, match='not in the form that prepare'):
        on_demand(tmp_path)


def test_large_sets_are_read_on_demand(rows, tmp_path):
    """Small ones are not: see test_published.py."""
    row, *_ = parquet.read_table(
        rows / 'data/train-00000-of-00004.parquet').to_pylist()
    (tmp_path / 'data').mkdir()
    ids = iter(range(101_000))
    table = pa.Table.from_pylist([
        dict(row, refs=[dict(row['refs'][0], ref_id=next(ids))
                        for _ in range(1000)]) for _ in range(101)])
    parquet.write_table(table, tmp_path / 'data/train-0.parquet')
    dataset = build('ReferParquetDataset', tmp_path)
    assert len(dataset) == 101_000 > _MANY_REFS
    info = dataset.get_data_info(100_999)
    assert info['refs'][0]['ref_id'] == 100_999 and not dataset.serialize_data


def test_subsets_and_copies(rows):
    dataset = on_demand(rows)
    ids = [dataset.get_data_info(i)['refs'][0]['ref_id']
           for i in range(len(dataset))]
    assert sorted(ids) == [
        REFS * i + k for i in range(240) if i % 10 != 9 for k in range(REFS)]
    last = on_demand(rows, indices=-10)
    assert [last.get_data_info(i)['refs'][0]['ref_id']
            for i in range(10)] == ids[-10:]
    copy = pickle.loads(pickle.dumps(dataset))  # as for a spawned worker
    assert copy.get_data_info(7)['refs'] == dataset.get_data_info(7)['refs']
    assert len(pickle.dumps(on_demand(rows))) < 40 * len(dataset)


def sampler(dataset, batch_size, rank=0, ranks=1, epoch=0, **kwargs):
    order = DefaultSampler(dataset, seed=5)
    order.rank, order.world_size = rank, ranks
    order.num_samples = -(-len(dataset) // ranks)
    order.total_size = order.num_samples * ranks
    order.set_epoch(epoch)
    return ShardBatchSampler(order, batch_size, **kwargs)


@pytest.mark.parametrize('ranks', [1, 2, 3, 5])
@pytest.mark.parametrize('batch_size, streams', [(4, 4), (7, 3), (400, 4)])
def test_ranks_share_the_samples(rows, ranks, batch_size, streams):
    dataset = on_demand(rows)
    parts = []
    for rank in range(ranks):
        batches = sampler(dataset, batch_size, rank, ranks, streams=streams)
        found = list(batches)
        assert len(found) == len(batches)
        assert all(len(b) == batch_size for b in found[:-streams])
        parts.append([i for batch in found for i in batch])
    assert len({len(part) for part in parts}) == 1
    every = sorted(i for part in parts for i in part)
    assert set(every) == set(range(len(dataset)))
    assert len(every) - len(dataset) < ranks


def test_order_of_batches(rows):
    dataset = on_demand(rows)
    first = list(sampler(dataset, 4))
    assert first == list(sampler(dataset, 4))
    assert first != list(sampler(dataset, 4, epoch=1))
    resumed = sampler(dataset, 4)
    resumed.skip(11)
    iter(resumed)  # DataLoader asks for two iterators and uses one
    assert list(resumed) == first[11:]
    assert list(resumed) == first  # the next epoch begins at its start
    cut = sampler(dataset, 7, drop_last=True)
    assert {len(batch) for batch in cut} == {7}
    assert len(list(cut)) == len(cut) == len(dataset) // 7
    with pytest.raises(ValueError, match='must be positive'):
        sampler(dataset, 4, streams=0)
    order = DefaultSampler(dataset, shuffle=False)
    assert [i for batch in ShardBatchSampler(order, 4, streams=1)
            for i in batch] == list(range(len(dataset)))


@pytest.mark.parametrize('window', [1, 4])
def test_each_worker_reads_its_own_row_groups(rows, window):
    dataset = on_demand(rows)
    sizes = dataset.data_list.group_sizes()
    assert sizes.tolist() == [9 * REFS] * 24
    group = np.repeat(np.arange(24), sizes)
    batches = list(sampler(dataset, 4, streams=3, window=window))
    read = [[set(group[batch].tolist()) for batch in batches[worker::3]]
            for worker in range(3)]
    # A row group is cut where a stream ends.
    assert sum(len(set.union(*of_worker)) for of_worker in read) <= 24 + 2
    for of_worker in read:
        for i in set.union(*of_worker):
            using = [k for k, groups in enumerate(of_worker) if i in groups]
            assert using[-1] - using[0] <= window * sizes[0] / 4 + 1
        mixed = np.mean([len(groups) for groups in of_worker])
        assert mixed > (2 if window > 1 else 0.9)


def test_other_datasets_are_mixed_freely(rows, refer_set):
    small = build('RefCOCODataset', refer_set.write(),
                  data_prefix=dict(img_path='images'))
    order = [i for batch in sampler(small, 2) for i in batch]
    assert sorted(order) == list(range(4))
    both = ConcatDataset([on_demand(rows), small])
    places = {tuple(np.flatnonzero(np.concatenate(list(sampler(
        both, 2, epoch=epoch))) >= len(both) - 4)) for epoch in range(5)}
    assert len(places) == 5 and all(len(p) == 4 for p in places)


class Collect:
    """A transform that gives a worker's own memory after a collection."""

    def __call__(self, results):
        gc.collect()
        text = Path('/proc/self/smaps_rollup').read_text()
        return sum(map(int, re.findall(r'Private_\w+: +(\d+)', text)))


@pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(),
                    reason='Linux only')
def test_workers_share_the_objects_of_the_process(rows):
    dataset = on_demand(rows)
    ballast = [[i] for i in range(1_000_000)]  # 90 MB, seen by the collector
    dataset.pipeline.transforms = [Collect()]
    loader = DataLoader(dataset, num_workers=1, collate_fn=pseudo_collate,
                        multiprocessing_context='fork')
    kib, *_ = next(iter(loader))
    assert kib < 60_000 and len(ballast) == 1_000_000


def test_images_in_random_order(rows, tmp_path):
    """``convert --shuffle``: always the same order, the same images."""
    orders = []
    for name, shuffle in (('a', True), ('b', True), ('c', False)):
        convert(locate(str(rows), 'hub'), str(tmp_path / name), 'parquet',
                with_images=False, shards=2, shuffle=shuffle)
        orders.append([i for path in sorted(
            (tmp_path / name / 'data').glob('train-*'))
            for i in parquet.read_table(path)['img_id'].to_pylist()])
    assert orders[0] == orders[1] != orders[2] == sorted(orders[2])
    assert sorted(orders[0]) == orders[2]
    assert abs(np.corrcoef(orders[0], orders[2])[0, 1]) < 0.2


def test_files_of_different_forms(tmp_path):
    write(tmp_path, shards=1)
    other = dict(file_name='1.jpg', image=None, samples=[])
    parquet.write_table(pa.Table.from_pylist([other]),
                        tmp_path / 'data/train-1.parquet')
    with pytest.raises(ValueError, match='train-1.* of another form than'):
        on_demand(tmp_path)


def test_without_pyarrow(rows, refer_set, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)  # import fails
    located = locate(str(refer_set.write()), 'refer')
    for use in (lambda: on_demand(rows),
                lambda: convert(located, str(tmp_path / 'out'), 'parquet')):
        with pytest.raises(ImportError, match='pip install pyarrow'):
            use()
