# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Downloads, from a server on this machine that speaks the Hub's protocol."""
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import contextmanager, suppress

import pyarrow as pa
import pytest
from conftest import REPO, run
from hub_server import HubServer
from preparation.pictures import place
from pyarrow import parquet

import cris
from cris.apis.model_zoo import read_model_index
from cris.io.files import FileError

TINY = 'cris_tiny_1xb8-6e_refshapes-128x128'
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


@pytest.mark.slow
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


class Prepare:
    """prepare.py, imported once, runs command after command."""

    CODE = '''
import json, signal, sys, traceback
sys.path.insert(0, sys.argv[1])
import prepare
# A suite in the background of a script inherits that it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
for line in sys.stdin:
    sys.argv[1:] = json.loads(line)
    try:
        status = prepare.main()
    except BaseException:
        status = traceback.format_exc()
    print(f'\\nstatus: {status}', flush=True)
'''

    def __init__(self, **env):
        self.process = subprocess.Popen(
            [sys.executable, '-u', '-c', self.CODE, str(PREPARE.parent)],
            text=True,  # unbuffered, or errors would come first
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, OMP_NUM_THREADS='1', **env))

    def start(self, *args):
        json.dump([str(arg) for arg in args], self.process.stdin)
        print(file=self.process.stdin, flush=True)

    def finish(self):
        """The exit status and what was printed."""
        lines = []
        for line in self.process.stdout:
            if line.startswith('status: '):
                return line[8:].strip(), ''.join(lines)
            lines.append(line)
        raise AssertionError(''.join(lines))

    def error(self, *args):
        """The message of a command that must fail; one line."""
        self.start(*args)
        status, out = self.finish()
        assert status == '2', out
        return out[out.index('error: '):].strip()


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    """prepare.py and the server that it asks."""
    server = HubServer({})
    prepare = Prepare(**env(server, tmp_path_factory.mktemp('home')))
    yield prepare, server
    prepare.process.stdin.close()
    assert prepare.process.wait() == 0
    server.server.shutdown()


@pytest.fixture
def prepare(served):
    return served[0]


@pytest.fixture
def server(served):
    server = served[1]
    server.requests.clear()
    server.answers.clear()
    server.stalled.clear()
    server.go_on.clear()
    server.repos['jxu124/refcoco'] = {
        'data/train-00000-of-00001.parquet': table('train', 1),
        'data/validation-00000-of-00001.parquet': table('val', 2)}
    return server


@contextmanager
def disk(path, options='size=400k'):
    """A small disk, which a test can fill."""
    path.mkdir()
    if not shutil.which('mount') or subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', path],
            capture_output=True).returncode:
        pytest.skip('no disk can be mounted here')
    try:
        yield path
    finally:
        subprocess.run(['umount', path], check=True)


def fill(folder):
    with suppress(OSError), open(folder / 'full', 'wb', 0) as file:
        while file.write(bytes(4096)):
            pass


def contents(folder):
    """Files but those of the Hub's client."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob('*')
            if path.is_file() and '.cache' not in path.parts}


def write_zip(path, *members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


PICTURES = [f'COCO_train2014_{i:012d}.jpg' for i in (1, 2)]
VAL = 'data/validation-00000-of-00001.parquet'


def test_the_disk_fills_up(prepare, server, tmp_path):
    archive = write_zip(tmp_path / 'a.zip', *(
        (name, bytes(100_000)) for name in PICTURES))
    with disk(tmp_path / 'disk') as out:
        command = 'get', 'refcoco', '--out', out, '--images', archive
        (out / 'instances.json').write_bytes(b'precious')
        server.stalls.add(VAL)
        prepare.start(*command)
        assert server.stalled.wait(60)
        fill(out)  # another process does
        server.go_on.set()
        status, printed = prepare.finish()
        assert status == '2'
        assert f'error: [Errno 28] the disk of {out} is full' in printed
        assert 'MiB are needed and 0.00 MiB are free' in printed
        train = 'hub/data/train-00000-of-00001.parquet'
        assert contents(out).keys() == {'full', 'instances.json', train}
        assert 'MiB are needed and 0.00' in prepare.error(*command)

        (out / 'full').unlink()
        prepare.start('get', 'refcoco', '--out', out, '--to', 'parquet')
        assert prepare.finish()[0] == '0'
        fill(out)  # now the REFER files have no room
        error = prepare.error(*command)
        assert f'the disk of {out} is full' in error
        assert '\n' not in error
        assert contents(out).keys() == {
            'full', 'instances.json', train, f'hub/{VAL}'}
        assert (out / 'instances.json').read_bytes() == b'precious'

        os.truncate(out / 'full', os.path.getsize(out / 'full') - 150_000)
        error = prepare.error(*command)  # for one picture, not for both
        assert '0.19 MiB are needed' in error
        assert 'refs(unc).p' in contents(out)
        assert not any(name in PICTURES for name in contents(out))
        (out / 'full').unlink()
        prepare.start(*command)
        assert prepare.finish()[0] == '0'
        assert contents(out / 'train2014') == dict.fromkeys(
            PICTURES, bytes(100_000))
    downloads = [path for method, path in server.requests if method == 'GET'
                 and path.endswith('.parquet')]
    assert len(downloads) == 3  # train once, val twice


def test_interrupted(prepare, server, tmp_path):
    server.stalls.add(VAL)
    command = 'get', 'refcoco', '--out', tmp_path / 'out'
    prepare.start(*command)
    assert server.stalled.wait(60)
    prepare.process.send_signal(signal.SIGINT)
    status, printed = prepare.finish()
    server.go_on.set()
    assert status == '130'
    assert 'stopped; the same command goes on' in printed
    assert 'Traceback' not in printed
    assert contents(tmp_path / 'out').keys() == {
        'hub/data/train-00000-of-00001.parquet'}
    prepare.start(*command)
    assert prepare.finish()[0] == '0'
    assert sum(method == 'GET' and 'resolve' in path and 'train' in path
               for method, path in server.requests) == 1


@pytest.mark.parametrize('answer, expected', [
    ((200, b'<html>Accept our terms</html>', {}), 'does not answer as the Hu'),
    ((200, b'[]', {}), 'does not answer as the Hub does'),
    ((200, b'{"id": "o/r"}', {}), 'does not answer as the Hub does'),
    ((401, b'', {}), 'token in HF_TOKEN'),
    ((403, b'', dict(X_Error_Code='GatedRepo')), 'token in HF_TOKEN'),
    ((500, b'failed', {}), '500 Internal Server Error'),
])
def test_answers_of_the_hub(answer, expected, prepare, server, tmp_path):
    server.answers['jxu124/refcoco'] = answer
    error = prepare.error('get', 'refcoco', '--out', tmp_path)
    assert expected in error and '\n' not in error


def test_no_hub(tmp_path):
    out = run(sys.executable, PREPARE, 'get', 'refcoco', '--out', tmp_path,
              ok=False, HF_ENDPOINT='http://127.0.0.1:9', no_proxy='127.0.0.1')
    assert out.splitlines()[-1].startswith(
        'error: http://127.0.0.1:9 does not serve jxu124/refcoco: ')


def test_folders(prepare, server, tmp_path):
    file = tmp_path / 'file'
    file.touch()
    command = 'get', 'refcoco', '--out'
    assert f'--out {file} is no folder' in prepare.error(*command, file)
    assert '--images nothing does not exist' in prepare.error(
        *command, tmp_path / 'a', '--images', 'nothing')
    assert f'{file} is neither a folder nor' in prepare.error(
        *command, tmp_path / 'a', '--images', file)
    assert not server.requests
    error = prepare.error(*command, tmp_path / 'a', '--images', tmp_path)
    assert f'{tmp_path} lacks 2 of the 2 pictures' in error
    assert ', '.join(PICTURES) in error
    assert not os.path.lexists(tmp_path / 'a/train2014')
    with disk(tmp_path / 'disk', 'ro') as out:
        assert f'--out {out} is no folder that can be written to' in (
            prepare.error(*command, out))


def test_linked_folder(tmp_path):
    for name in ('coco', 'other'):
        (tmp_path / name).mkdir()
        (tmp_path / name / PICTURES[0]).touch()
    folder = tmp_path / 'train2014'
    for _ in range(2):
        place(str(tmp_path / 'coco'), str(folder), PICTURES[:1])
    assert folder.resolve() == tmp_path / 'coco'
    with pytest.raises(FileExistsError, match='exists and is not .*other'):
        place(str(tmp_path / 'other'), str(folder), PICTURES[:1])


def test_a_picture_cannot_be_written(tmp_path):
    archive = write_zip(tmp_path / 'a.zip', (PICTURES[0], b'small'),
                        (PICTURES[1], bytes(100_000)))
    folder = tmp_path / 'train2014'
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match=f'the disk of {folder} is full'):
            place(str(archive), str(folder), PICTURES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(folder) == {PICTURES[0]: b'small'}
    place(str(archive), str(folder), PICTURES)
    assert contents(folder).keys() == set(PICTURES)


def test_broken_zip(tmp_path):
    good, bad = PICTURES
    archive, folder = tmp_path / 'a.zip', tmp_path / 'train2014'

    def refused(error, match):
        with pytest.raises(error, match=match) as info:
            place(str(archive), str(folder), PICTURES)
        assert str(archive) in str(info.value)
        found = contents(folder) if folder.exists() else {}
        assert found in ({}, {good: b'good'})
        shutil.rmtree(folder, ignore_errors=True)

    def change(old, new):
        content = archive.read_bytes()
        assert content.count(old) == 1
        archive.write_bytes(content.replace(old, new))

    first = good, b'good'
    archive.write_bytes(b'no zip')
    refused(FileError, 'is broken: File is not a zip file')
    write_zip(archive, first, (bad, b'picture'))
    archive.write_bytes(archive.read_bytes()[:-30])
    refused(FileError, 'is broken')
    write_zip(archive, first, (bad, b'picture'))
    change(b'picture', b'pixture')
    refused(FileError, f'{bad} of .* cannot be unpacked: Bad CRC-32')
    write_zip(archive, first)
    refused(FileNotFoundError, f'lacks 1 of the 2 .* e.g. {bad}')
    write_zip(archive, first, (f'../{bad}', b'picture'))
    refused(FileError, 'leaves the folder')
    for header, flags in ((b'PK\3\4', 6), (b'PK\1\2', 8)):
        if header == b'PK\3\4':
            write_zip(archive, first, (bad, b'picture'))
        content = bytearray(archive.read_bytes())
        content[content.rindex(header) + flags] |= 1
        archive.write_bytes(content)
    refused(FileError, f'{bad} of .* cannot be unpacked: .*encrypted')
    write_zip(archive, first, (bad, bytes(100 << 20)),
              method=zipfile.ZIP_DEFLATED)
    refused(FileError, f'{bad} of .* more than the limit of .* for a picture')
    # The same, but its size is a lie: it must not be inflated.
    content = archive.read_bytes()
    archive.write_bytes(content.replace(
        (100 << 20).to_bytes(4, 'little'), (9).to_bytes(4, 'little')))
    refused(FileError, f'{bad} of .* cannot be unpacked: Bad CRC-32')
    write_zip(archive, first, (bad, b'1'), method=zipfile.ZIP_LZMA)
    refused(FileError, 'compressed by another method than deflate')
