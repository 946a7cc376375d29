# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The official LMDB, good and bad, becomes the official JSON."""
import io
import json
import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, tool
from PIL import Image
from preparation.locate import locate
from preparation.official_lmdb import convert_lmdb, parse_value

lmdb = pytest.importorskip('lmdb')
PREPARE = 'dataset_converters/prepare.py'


def dumps_msgpack(value, **kwargs):
    return pytest.importorskip('msgpack').packb(value, **kwargs)


def encode(array, format):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format)
    return file.getvalue()


def mask(k):
    mask = np.zeros((40, 60), np.uint8)
    mask[5:20, 10 * k:10 * k + 9] = 255
    return mask


def refs():
    """Three refs in two images."""
    rng = np.random.default_rng(0)
    images = [encode(rng.integers(0, 255, (40, 60, 3), np.uint8), 'JPEG')
              for _ in range(2)]
    return [
        dict(img=images[i], mask=encode(mask(k), 'PNG'), cat=3, seg_id=100 + k,
             img_name=f'sub/{i} ä.jpg', num_sents=2,
             sents=[f'thing {k}', 'größe']) for k, i in enumerate((0, 0, 1))]


FILES = ['anns/train.json', 'images/sub/0 ä.jpg', 'images/sub/1 ä.jpg',
         'masks/100.png', 'masks/101.png', 'masks/102.png']


def write_lmdb(root, refs, dumps=pickle.dumps, change=None, split='train'):
    """The LMDB of refs; ``change`` replaces stored values by their keys."""
    root.mkdir(parents=True, exist_ok=True)
    values = {str(i): dumps(ref) for i, ref in enumerate(refs)}
    values.update(change or {})
    with lmdb.open(
            str(root / f'{split}.lmdb'), subdir=False, lock=False,
            map_size=1 << 24) as file, file.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
        transaction.put(b'__keys__', dumps([k.encode() for k in values]))
        transaction.put(b'__len__', dumps(len(values)))
    return root


def convert(src, dst):
    return convert_lmdb(str(src), str(dst))


def files(folder):
    return sorted(str(path.relative_to(folder))
                  for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize('dumps', [
    pickle.dumps, dumps_msgpack, partial(dumps_msgpack, use_bin_type=False)])
def test_the_same_refs_come_out(tmp_path, dumps):
    source, dst = refs(), tmp_path / 'json'
    root = write_lmdb(tmp_path / 'own', source, dumps)
    content = (root / 'train.lmdb').read_bytes()
    out = tool('dataset_converters/lmdb_to_json.py', root, dst)
    assert 'train: 3 refs\n' in out and '0 broken entries' in out
    assert (root / 'train.lmdb').read_bytes() == content
    assert files(root) == ['train.lmdb']  # no lock file
    assert files(dst) == FILES
    records = locate(str(dst), 'official-json').read()
    assert not records.faults and len(records.images) == 2
    found = [(image, ref) for image in records.images for ref in image['refs']]
    assert [ref['sent_ids'] for _, ref in found] == [[0, 1], [2, 3], [4, 5]]
    for (image, ref), expected in zip(found, source, strict=True):
        name = image['file_name']
        assert dict(
            expected, img_name=name, img=(dst / 'images' / name).read_bytes(),
            mask=Path(ref['segmentation']['mask_file']).read_bytes(),
            seg_id=ref['ann_id'], cat=ref['category'],
            sents=ref['sentences']) == dict(expected, cat='3')
    entry = json.loads((dst / 'anns/train.json').read_text())[1]
    assert entry['bbox'] == [10, 5, 9, 15] and entry['segment_id'] == 101
    assert entry['sentences_num'] == 2


def test_names_and_ids_that_occur_twice(tmp_path):
    first, second, _ = refs()
    other = encode(np.zeros((40, 60, 3), np.uint8), 'JPEG')
    changed = dict(second, seg_id=100, img=other)
    root = write_lmdb(tmp_path / 'own', [first, changed])
    write_lmdb(root, [first, dict(second, seg_id='../x'),
                      dict(first, seg_id=2**70)], split='val')
    dst = tmp_path / 'json'
    counts, faults = convert(root, dst)
    assert counts == dict(train=2, val=3) and not faults
    entries = [(entry['img_name'], entry['segment_id'], entry['ann_id'])
               for split in counts for entry in json.loads(
                   (dst / f'anns/{split}.json').read_text())]
    name = 'sub/0 ä.jpg'
    assert entries == [
        (name, 100, 100), (f'train_1/{name}', 'train_1', 100),
        (name, 'val_0', 100), (name, 'val_1', '../x'), (name, 'val_2', 2**70)]
    assert not locate(str(dst), 'official-json').read().faults
    assert (dst / f'images/train_1/{name}').read_bytes() == other


def test_a_folder_as_lmdb_writes_it_by_default(tmp_path):
    root = write_lmdb(tmp_path, refs())
    (root / 'train.lmdb').rename(root / 'data.mdb')
    (root / 'train.lmdb').mkdir()
    (root / 'data.mdb').rename(root / 'train.lmdb/data.mdb')
    for name in 'ab':  # LMDB refuses a file that is still open in the process
        counts, faults = convert(f'{root}/train.lmdb/', tmp_path / name)
        assert counts == dict(train=3) and not faults
    assert files(root / 'train.lmdb') == ['data.mdb']


def test_prepare_works_through_it(tmp_path):
    root = write_lmdb(tmp_path / 'own', refs())

    def prepare(command, out, *more, ok=True):
        return tool(PREPARE, command, root, '--dataset', 'official-lmdb',
                    '--out', tmp_path / out, *more, ok=ok)

    out = prepare('check', 'a', '--decode-images')
    assert 'usable: 0 errors, 0 warnings' in out
    page = (tmp_path / 'a/report.html').read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 3
    assert 'train: 2 images, 3 refs' in prepare('stats', 'b')
    out = prepare('convert', 'c', '--to', 'jsonl', '--no-images')
    assert 'train: 3 refs' in out and 'img_path' not in out
    assert len(files(tmp_path / 'c')) == 4
    out = prepare('split', 'd')
    assert ' refs of 1 images' in out and 'img_path' not in out
    assert len(files(tmp_path / 'd/images')) == 2
    # A broken entry, a broken file and no file are findings.
    write_lmdb(root, [], change={'7': pickle.dumps([1])})
    out = prepare('check', 'a', ok=False)
    assert 'train.lmdb, entry 7: it is not a dict' in out
    out = prepare('convert', 'e', '--to', 'jsonl', ok=False)
    assert 'entry 7: it is not a dict' in out and 'Traceback' not in out
    (root / 'train.lmdb').write_bytes(b'no lmdb' * 1000)
    out = prepare('check', 'a', ok=False)
    assert 'ERROR broken-file: 1' in out and 'is not an LMDB' in out
    (root / 'train.lmdb').unlink()
    assert 'ERROR missing-file: 1' in prepare('check', 'a', ok=False)


def test_pyarrow_serialize():
    pytest.importorskip('pyarrow')
    # Written by pyarrow.serialize of pyarrow 10.0.1.
    content = (REPO / 'tests/data/pyarrow_serialize.bin').read_bytes()
    (value, ) = parse_value(content, 'x')
    assert value == dict(
        img_name='0.jpg', n=None, f=1.5, sents=['é', 'b'], img=b'\xff\x00',
        seg_id=7)
    for cut in (20, 100, 600):
        with pytest.raises(ValueError, match='x was written by pyarrow'):
            parse_value(content[:cut], 'x')


def test_a_pickle_bomb(tmp_path):
    marker = tmp_path / 'marker'

    class Evil:

        def __reduce__(self):
            return os.mkdir, (str(marker), )

    change = {
        str(9 + protocol): pickle.dumps(dict(img=Evil()), protocol)
        for protocol in range(6)
    }
    root = write_lmdb(tmp_path / 'own', refs(), change=change)
    counts, faults = convert(root, tmp_path / 'json')
    assert counts == dict(train=3) and len(faults) == 6
    assert all('mkdir' in fault.message for fault in faults)
    assert not marker.exists()


GOOD = refs()[1]


@pytest.mark.parametrize('value, kind, message', [
    ([1], 'bad-entry', 'not a dict'),
    (dict(img=b''), 'bad-entry', 'has no mask, img_name, sents'),
    (dict(GOOD, img='text'), 'bad-entry', 'its img is a str, not bytes'),
    (dict(GOOD, img_name='../a'), 'unsafe-name', 'leaves the folder'),
    (dict(GOOD, img_name='/a'), 'unsafe-name', 'leaves the folder'),
    (dict(GOOD, img_name=['a']), 'unsafe-name', "['a']"),
    (dict(GOOD, img_name='\ud800.jpg'), 'unsafe-name', 'not a file name'),
    (dict(GOOD, img_name=9 * 'long name ' * 9), 'bad-entry', 'too long'),
    (dict(GOOD, seg_id=10**5000), 'bad-entry', 'its seg_id'),
    (dict(GOOD, seg_id=b'1'), 'bad-entry', 'its seg_id'),
    (dict(GOOD, cat={1}), 'bad-entry', 'its cat'),
    (dict(GOOD, img_name='b.jpg', img=b'x'), 'bad-image', 'image, or broken'),
    (dict(GOOD, img_name='b.jpg', img=GOOD['img'][:700]), 'bad-image',
     'ends too early'),
    (dict(GOOD, mask=b'x'), 'bad-mask', 'cannot be decoded'),
    (dict(GOOD, mask=encode(mask(0)[:30], 'PNG')), 'mask-size',
     'but the image is'),
    (dict(GOOD, mask=encode(mask(0) * 0, 'PNG')), 'empty-mask', 'is empty'),
    (dict(GOOD, sents=[]), 'no-sentence', 'no sentence'),
    (dict(GOOD, sents=[5]), 'bad-sentence', '5'),
])
def test_broken_entries_are_named_and_leave_no_files(tmp_path, value, kind,
                                                     message):
    root = write_lmdb(tmp_path / 'own', refs(),
                      change={'1': pickle.dumps(value)})
    counts, (fault, ) = convert(root, tmp_path / 'json')
    assert counts == dict(train=2)
    assert (fault.kind, fault.where) == (kind, f'{root}/train.lmdb, entry 1')
    assert message in fault.message
    assert files(tmp_path / 'json') == [
        name for name in FILES if '101' not in name]


def test_other_files(tmp_path):
    (tmp_path / 'a.lmdb').write_bytes(b'no lmdb' * 1000)
    with pytest.raises(ValueError, match='a.lmdb is not an LMDB, or broken'):
        convert(tmp_path / 'a.lmdb', tmp_path / 'a')
    lmdb.open(str(tmp_path / 'b.lmdb'), subdir=False).close()
    with pytest.raises(ValueError, match='no entry __keys__'):
        convert(tmp_path / 'b.lmdb', tmp_path / 'b')
    with pytest.raises(FileNotFoundError, match='c.lmdb does not exist'):
        convert(tmp_path / 'c.lmdb', tmp_path / 'c')
    root = write_lmdb(tmp_path / 'own', refs(), change={'1': b'\xc1nothing'})
    with pytest.raises(FileExistsError, match='not empty'):
        convert(root, root)
    pytest.importorskip('msgpack')
    out = tool('dataset_converters/lmdb_to_json.py', root, tmp_path / 'json',
               ok=False)
    assert 'entry 1' in out and 'train: 2 refs' in out
    assert 'neither pyarrow.serialize nor pickle nor msgpack' in out
