# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Downloads, from a server on this machine that speaks the Hub's protocol."""
import hashlib
import io
import json
import sys
import zipfile

import pyarrow as pa
import pytest
from conftest import REPO, run
from hub_server import HubServer
from pyarrow import parquet

import cris
from cris.apis.model_zoo import read_model_index

TINY = 'cris_tiny_1xb8-3e_refshapes-160x160'
PREPARE = REPO / 'tools/dataset_converters/prepare.py'


def table(split, image_id):
    """A ref in the form of jxu124/refcoco."""
    ann = dict(id=7 + image_id, image_id=image_id, iscrowd=0,
               segmentation=[[5, 10, 20, 10, 20, 40, 5, 40]])
    name = f'COCO_train2014_{image_id:012d}.jpg'
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([dict(
        image_path=f'coco/train2014/{name}', split=split, ref_id=image_id,
        ann_id=7 + image_id, image_id=image_id, raw_anns=json.dumps(ann),
        sentences=[dict(sent_id=image_id, sent='a dog')],
        raw_image_info=json.dumps(dict(height=60, width=90)))]), file)
    return file.getvalue()


@pytest.fixture
def hub():
    server = HubServer({
        'jxu124/refcoco': {
            'data/train-00000-of-00001.parquet': table('train', 1),
            'data/validation-00000-of-00001.parquet': table('val', 2),
            'README.md': b'no data'},
        'o/r': {'large.bin': b'0123456789abcdef' * 1_500_000,
                'small.bin': b'small', 'wrong.bin': b'right'}})
    yield server
    server.server.shutdown()


def env(hub, tmp_path):
    return dict(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / 'hf'),
                HF_HUB_DISABLE_XET='1', no_proxy='127.0.0.1')


FAULTS = '''
import sys
from cris.io import hub

def attempt(function, *args, **kwargs):
    try:
        print(function(*args, **kwargs))
    except Exception as error:
        print(type(error).__name__, error)

attempt(hub.download, 'o/r', 'large.bin', folder=sys.argv[1])
attempt(hub.download, 'o/r', 'large.bin', folder=sys.argv[1])
attempt(hub.download, 'o/r', 'wrong.bin', folder=sys.argv[1])
attempt(hub.download, 'o/r', 'smal.bin')
attempt(hub.download, 'o/typo', 'small.bin')
attempt(hub.list_files, 'no name')
attempt(hub.fetch, 'hf://o/small.bin')
attempt(hub.fetch, 'hf://o/r@main/small.bin')
'''


def test_faults_of_the_network(hub, tmp_path):
    hub.cuts, hub.refusals = 2, 1
    hub.wrong['wrong.bin'] = b'wrong'
    out = run(sys.executable, '-c', FAULTS, tmp_path / 'out',
              **env(hub, tmp_path))
    lines = [line for line in out.splitlines()
             if line.startswith(('/', 'File', 'Connection', 'Value'))]
    assert lines[0] == lines[1] == str(tmp_path / 'out/large.bin')
    content = (tmp_path / 'out/large.bin').read_bytes()
    assert hashlib.sha256(content).digest() == hashlib.sha256(
        hub.repos['o/r']['large.bin']).digest()
    assert lines[2].startswith('FileError wrong.bin of o/r arrived with ano')
    assert not (tmp_path / 'out/wrong.bin').exists()
    assert lines[3].startswith(
        'FileNotFoundError o/r has no file smal.bin; near it: small.bin')
    assert lines[4].startswith('FileNotFoundError the Hub shows no dataset o/')
    assert lines[5].startswith("FileNotFoundError 'no name' is not a name")
    assert lines[6].startswith('ValueError ') and 'hf://OWNER/' in lines[6]
    assert open(lines[7]).read() == 'small'
    downloads = [path for command, path in hub.requests
                 if command == 'GET' and path.endswith('large.bin')]
    assert len(downloads) == 3  # cut, cut, rest; the second call none


def test_weights(hub, tmp_path):
    weights = REPO / read_model_index()[TINY]['Weights']
    hub.repos['o/r']['tiny.safetensors'] = weights.read_bytes()
    code = (f'import cris, sys; model = cris.init_model({TINY!r}, '
            "'hf://o/r/tiny.safetensors', 'cpu'); "
            'print(sum(p.double().sum().item() for p in model.parameters()))')
    out = run(sys.executable, '-c', code, **env(hub, tmp_path))
    expected = sum(p.double().sum().item() for p in cris.init_model(
        TINY, device='cpu').parameters())
    assert float(out.splitlines()[-1]) == expected
    out = run(sys.executable, '-c', code.replace('tiny.saf', 'tinny.saf'),
              ok=False, **env(hub, tmp_path))
    assert 'near it: tiny.safetensors' in out


def test_get(hub, tmp_path):
    archive = tmp_path / 'train2014.zip'
    with zipfile.ZipFile(archive, 'w') as file:
        for i in (1, 2, 3):
            file.writestr(f'train2014/COCO_train2014_{i:012d}.jpg', b'%d' % i)
    out = tmp_path / 'refcoco'
    command = (sys.executable, PREPARE, 'get', 'refcoco', '--out', out)
    printed = run(*command, '--images', archive, **env(hub, tmp_path))
    assert '2 images in the REFER layout. 2 pictures' in printed
    assert sorted(path.name for path in (out / 'train2014').iterdir()) == [
        f'COCO_train2014_{i:012d}.jpg' for i in (1, 2)]
    code = ("from cris.datasets.readers import READERS; print(*("
            "(i['file_name'], r['split'], r['area'], r['sentences']) for i in "
            f"READERS['refer']('{out}/instances.json', '{out}/refs(unc).p')"
            ".images for r in i['refs']), sep='\\n')")
    assert run(sys.executable, '-c', code).splitlines()[-2:] == [
        f"('COCO_train2014_{i:012d}.jpg', '{split}', 450, ['a dog'])"
        for i, split in ((1, 'train'), (2, 'val'))]
    hub.repos['jxu124/refcoco'] = {'other.txt': b''}
    out = run(*command, ok=False, **env(hub, tmp_path))
    assert 'jxu124/refcoco has no files data/*.parquet' in out
    out = run(sys.executable, PREPARE, 'get', 'grefcoco', '--out', tmp_path,
              ok=False)
    assert 'cannot be downloaded by a program' in out
