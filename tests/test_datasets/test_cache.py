# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import json
import os
import pickle

import pytest
from mmseg.registry import DATASETS

from cris.datasets import base as refcoco
from cris.datasets import cache


def build(refer_set, **kwargs):
    return DATASETS.build(
        dict(
            type='RefCOCODataset', data_root=str(refer_set.root), **kwargs))


@pytest.fixture
def reads(monkeypatch):
    """How often the annotation files were really read."""
    calls = []
    read = refcoco.READERS['refer']
    monkeypatch.setitem(
        refcoco.READERS, 'refer',
        lambda **kwargs: calls.append(kwargs) or read(**kwargs))
    return calls


def samples(dataset):
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def cache_files(refer_set):
    return sorted((refer_set.root / '.cris_cache').iterdir())


def test_the_second_time_is_the_same(refer_set, reads):
    first, second = samples(build(refer_set)), samples(build(refer_set))
    assert first == second and len(reads) == 1
    build(refer_set, split='val')
    build(refer_set, split=['train', 'val'])
    assert len(reads) == 3
    build(refer_set, cache_dir=False)
    assert len(reads) == 4
    with pytest.raises(ValueError, match='cache_dir=True must be a folder'):
        build(refer_set, cache_dir=True)


@pytest.mark.parametrize('name', ['instances.json', 'refs(unc).p'])
def test_a_change_of_one_byte_with_the_same_size_and_time(
        refer_set, reads, name):
    build(refer_set)
    path = refer_set.root / name
    state = path.stat()
    content = path.read_bytes()
    old, new = ((b'thing 2 left', b'thing 2 LEFT')
                if name.startswith('refs') else (b'[5, 10', b'[6, 10'))
    assert old in content
    path.write_bytes(content.replace(old, new))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    dataset = build(refer_set)
    assert len(reads) == 2
    assert ('LEFT' in str(samples(dataset)) or '[6, 10' in str(
        samples(dataset)))


def damage_end(content):
    return content[:-30]


def damage_middle(content):
    return content.replace(b'thing 2 left', b'thing 2 evil')


def damage_head(content):
    return b'{' + content


def other_json(content):
    return b'[1]\n' + content


def a_pickle(content):
    return pickle.dumps(dict(a=1))


@pytest.mark.parametrize(
    'damage', [damage_end, damage_middle, damage_head, other_json, a_pickle,
               lambda content: b''])
def test_a_broken_cache_is_not_used(refer_set, reads, damage):
    expected = samples(build(refer_set))
    for path in cache_files(refer_set):
        path.write_bytes(damage(path.read_bytes()))
    assert samples(build(refer_set)) == expected and len(reads) == 2
    build(refer_set)
    assert len(reads) == 2  # it was rewritten


def test_no_pickle_in_it(refer_set):
    build(refer_set)
    for path in cache_files(refer_set):
        for line in path.read_bytes().split(b'\n'):
            json.loads(line)


def test_faults_come_from_the_cache_too(refer_set, reads):
    refer_set.refs[2]['ann_id'] = 999
    refer_set.write()
    for _ in range(2):
        with pytest.raises(ValueError, match='ref 2: its ann_id 999'):
            build(refer_set)
        assert len(build(refer_set, on_error='skip').faults) == 1
    assert len(reads) == 1


def test_notes_are_logged_and_kept(refer_set, monkeypatch):
    content = dict(json.loads((refer_set.root / 'instances.json').read_text()))
    for ann in content['annotations'][1:]:
        ann['expressions'] = 'it'
    (refer_set.root / 'train.json').write_text(json.dumps(content))
    messages = []
    monkeypatch.setattr(
        refcoco, 'print_log',
        lambda message, *args, **kwargs: messages.append(message))
    for _ in range(2):
        dataset = DATASETS.build(
            dict(type='ReferCOCODataset', data_root=str(refer_set.root)))
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
    from PIL import Image
    from test_preparation import own_jsonl
    root = own_jsonl(tmp_path / 'own')
    config = dict(type='ReferJSONLDataset', data_root=str(root))
    assert len(DATASETS.build(config)) == 3
    Image.new('L', (60, 40)).save(root / 'masks/0.png')
    with pytest.raises(ValueError, match='0.png|is empty'):
        DATASETS.build(config)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr(
        cache, 'print_log', lambda message, logger: notes.append(message))
    (tmp_path / 'file').write_text('')
    value = cache.cached(
        str(tmp_path / 'file/cache'), ['x'], [], lambda: ([1], []))
    assert value == [1] and 'no cache is written' in notes[0]


def test_another_folder(refer_set, reads, tmp_path):
    for _ in range(2):
        build(refer_set, cache_dir=str(tmp_path / 'cache'))
    assert len(reads) == 1
    assert not (refer_set.root / '.cris_cache').exists()


@pytest.mark.parametrize('on_error', ['raise', 'skip'])
def test_a_file_that_is_mended_is_used(tmp_path, on_error):
    from test_preparation import own_jsonl
    root = own_jsonl(tmp_path / 'own')
    image = (root / 'images/1.jpg').rename(root / 'elsewhere.jpg')
    cfg = dict(
        type='ReferJSONLDataset', data_root=str(root), on_error=on_error)
    if on_error == 'raise':
        with pytest.raises(ValueError, match='1.jpg does not exist'):
            DATASETS.build(cfg)
    else:
        assert len(DATASETS.build(cfg)) == 2
    image.rename(root / 'images/1.jpg')
    assert len(DATASETS.build(cfg)) == 3
