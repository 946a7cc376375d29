# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import json
import os
import pickle
from pathlib import Path

import pytest
from mmseg.registry import DATASETS
from PIL import Image
from test_preparation import own_jsonl

from cris.datasets import base, cache


def build(data, type='RefCOCODataset', **kwargs):
    """A dataset of the files as they are; ReferSet or a folder."""
    root = data if isinstance(data, Path) else data.root
    return DATASETS.build(dict(type=type, data_root=str(root), **kwargs))


@pytest.fixture
def reads(monkeypatch):
    """How often the annotation files were really read."""
    calls = []
    read = base.READERS['refer']
    monkeypatch.setitem(
        base.READERS, 'refer',
        lambda **kwargs: calls.append(kwargs) or read(**kwargs))
    return calls


@pytest.fixture
def messages(monkeypatch):
    """What is logged."""
    logged = []
    for module in (base, cache):
        monkeypatch.setattr(
            module, 'print_log',
            lambda message, *args, **kwargs: logged.append(message))
    return logged


def samples(dataset):
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def cache_files(refer_set):
    return sorted((refer_set.root / '.cris_cache').iterdir())


def test_the_second_time_is_the_same(refer_set, reads):
    first, second = samples(build(refer_set)), samples(build(refer_set))
    assert first == second and len(reads) == 1
    for path in cache_files(refer_set):  # no pickle in it
        for line in path.read_bytes().split(b'\n'):
            json.loads(line)
    build(refer_set, split='val')
    build(refer_set, split=['train', 'val'])
    assert len(reads) == 3
    build(refer_set, cache_dir=False)
    assert len(reads) == 4
    with pytest.raises(ValueError, match='cache_dir=True must be a folder'):
        build(refer_set, cache_dir=True)


def test_another_folder(refer_set, reads, tmp_path):
    for _ in range(2):
        build(refer_set, cache_dir=str(tmp_path / 'cache'))
    assert len(reads) == 1
    assert not (refer_set.root / '.cris_cache').exists()


@pytest.mark.parametrize('name, old, new', [
    ('instances.json', b'[5, 10', b'[6, 10'),
    ('refs(unc).p', b'thing 2 left', b'thing 2 LEFT')])
def test_a_change_of_one_byte_with_the_same_size_and_time(
        refer_set, reads, name, old, new):
    build(refer_set)
    path = refer_set.root / name
    state = path.stat()
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert new.decode() in str(samples(build(refer_set)))
    assert len(reads) == 2


@pytest.mark.parametrize('damage', [
    lambda content: content[:-30],
    lambda content: content.replace(b'thing 2 left', b'thing 2 evil'),
    lambda content: b'{' + content,
    lambda content: b'[1]\n' + content,
    lambda content: pickle.dumps(dict(a=1)),
    lambda content: b''
], ids=['end', 'middle', 'head', 'other', 'pickle', 'empty'])
def test_a_broken_cache_is_not_used(refer_set, reads, damage):
    expected = samples(build(refer_set))
    for path in cache_files(refer_set):
        path.write_bytes(damage(path.read_bytes()))
    assert samples(build(refer_set)) == expected and len(reads) == 2
    build(refer_set)
    assert len(reads) == 2  # it was rewritten


def test_faults_come_from_the_cache_too(refer_set, reads):
    refer_set.refs[2]['ann_id'] = 999
    refer_set.write()
    for _ in range(2):
        with pytest.raises(ValueError, match='ref 2: its ann_id 999'):
            build(refer_set)
        assert len(build(refer_set, on_error='skip').faults) == 1
    assert len(reads) == 1


def test_notes_are_logged_and_kept(refer_set, messages):
    content = json.loads((refer_set.root / 'instances.json').read_text())
    for ann in content['annotations'][1:]:
        ann['expressions'] = 'it'
    (refer_set.root / 'train.json').write_text(json.dumps(content))
    for _ in range(2):
        dataset = build(refer_set, 'ReferCOCODataset')
        assert '1 of 6 annotations have no expressions' in messages[0]
        assert dataset.read().notes == messages[:1]
        messages.clear()


def test_images_are_looked_at_each_time(refer_set):
    build(refer_set)
    path = refer_set.root / 'images/1.jpg'
    content = path.read_bytes()
    path.write_bytes(content[:500])
    with pytest.raises(ValueError, match='1.jpg cannot be decoded'):
        build(refer_set)
    path.unlink()
    with pytest.raises(ValueError, match='1.jpg does not exist'):
        build(refer_set)
    path.write_bytes(content)
    build(refer_set)


def test_mask_files_count(tmp_path):
    root = own_jsonl(tmp_path / 'own')
    assert len(build(root, 'ReferJSONLDataset')) == 3
    Image.new('L', (60, 40)).save(root / 'masks/0.png')
    with pytest.raises(ValueError, match='0.png|is empty'):
        build(root, 'ReferJSONLDataset')


@pytest.mark.parametrize('on_error', ['raise', 'skip'])
def test_a_file_that_is_mended_is_used(tmp_path, on_error):
    root = own_jsonl(tmp_path / 'own')
    args = root, 'ReferJSONLDataset'
    image = (root / 'images/1.jpg').rename(root / 'elsewhere.jpg')
    if on_error == 'raise':
        with pytest.raises(ValueError, match='1.jpg does not exist'):
            build(*args)
    else:
        assert len(build(*args, on_error=on_error)) == 2
    image.rename(root / 'images/1.jpg')
    assert len(build(*args, on_error=on_error)) == 3


def test_a_folder_that_cannot_be_written(tmp_path, messages):
    (tmp_path / 'file').write_text('')
    value = cache.cached(
        str(tmp_path / 'file/cache'), ['x'], [], lambda: ([1], []))
    assert value == [1] and 'no cache is written' in messages[0]
