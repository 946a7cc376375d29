# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import json
import multiprocessing
import os
import pickle
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import cris
from cris.apis.model_zoo import DEFAULT_MODEL
from cris.datasets.refcoco import RefCOCODataset
from cris.datasets.refshapes import write_refshapes

GOLDEN = Path(__file__).parent / 'data' / 'golden'
REPO = Path(__file__).parents[1]
# Forks of a process that has asked CUDA for its GPUs cannot use them.
os.environ.setdefault('PYTORCH_NVML_BASED_CUDA_CHECK', '1')
# What the tools keep beside themselves.
sys.path[:0] = [
    str(REPO / 'tools' / folder)
    for folder in ('dataset_converters', 'analysis_tools', 'model_converters')
]
CONFIG = next((REPO / 'configs/cris').glob('cris_tiny_*_refer-*.py'))
GEN = next((REPO / 'configs/cris').glob('cris_tiny-gen_*.py'))


@pytest.fixture
def golden() -> Path:
    return GOLDEN


class ReferSet:
    """A small set in the REFER layout, to be written after changes."""

    def __init__(self, root: Path):
        self.root = root
        rng = np.random.default_rng(0)
        self.images = [
            dict(id=i, file_name=f'{i}.jpg', height=h, width=w)
            for i, (h, w) in enumerate([(60, 90), (80, 50), (64, 64)])
        ]
        self.anns = []
        self.refs = []
        (root / 'images').mkdir(parents=True)
        for image in self.images:
            picture = rng.integers(
                0, 255, (image['height'], image['width'], 3), np.uint8)
            cv2.imwrite(str(root / 'images' / image['file_name']), picture)
            for k in range(2):
                self.add_ref(image['id'], [[
                    5 + 20 * k, 10, 20 + 20 * k, 10, 20 + 20 * k, 40,
                    5 + 20 * k, 40
                ]], ['val', 'train', 'train'][image['id']])

    def add_ref(self, image_id, segmentation, split, sentences=None):
        n = len(self.refs)
        self.anns.append(
            dict(id=100 + n, image_id=image_id, category_id=1, iscrowd=0,
                 segmentation=segmentation))
        sentences = sentences or [
            f'thing {n} {word}' for word in ('left', 'right', 'top', 'low')
        ]
        self.refs.append(dict(
            ref_id=n, ann_id=100 + n, image_id=image_id, category_id=1,
            split=split, file_name='not_the_image_100.jpg',
            sent_ids=[10 * n + j for j in range(len(sentences))],
            sentences=[
                dict(sent_id=10 * n + j, sent=s, raw=s, tokens=s.split())
                for j, s in enumerate(sentences)
            ]))

    def write(self) -> Path:
        (self.root / 'instances.json').write_text(json.dumps(dict(
            images=self.images, annotations=self.anns,
            categories=[dict(id=1, name='thing')])))
        with open(self.root / 'refs(unc).p', 'wb') as file:
            pickle.dump(self.refs, file)
        return self.root


@pytest.fixture
def refer_set(tmp_path) -> ReferSet:
    refer_set = ReferSet(tmp_path / 'refer')
    refer_set.write()
    return refer_set


def run(*command, cwd=REPO, ok=True, **env):
    """What a process printed; it must succeed, or fail, as said."""
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, capture_output=True, text=True,
        env=dict(
            os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable, **env),
        stdin=subprocess.DEVNULL)
    out = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, out[-3000:]
    return out


def launch(script, *args, ok=True, **env):
    """What tools/dist_*.sh printed; the config may use training_probes."""
    return run('bash', REPO / 'tools' / script, *args, ok=ok,
               MASTER_PORT=str(20000 + os.getpid() % 9000),
               PYTHONPATH=os.pathsep.join(filter(None, sys.path)), **env)


def ranks_train(config, work, ranks, *options, ok=True, **env):
    log = launch('dist_train.sh', config, ranks, '--work-dir', work,
                 '--cfg-options',
                 f'train_dataloader.batch_size={8 // ranks}', *options,
                 ok=ok, **env)
    assert not (ok and 'Traceback' in log and 'MAX_RESTARTS' not in env), log
    return log


def run_ranks(script, folders, timeout=60):
    """Exit statuses and outputs of gloo ranks, each in a folder of its own."""
    port = str(20000 + (os.getpid() + 4500) % 9000)
    ranks = [
        subprocess.Popen(
            [sys.executable, '-c', script], cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=dict(os.environ, OMP_NUM_THREADS='1', RANK=str(rank),
                     LOCAL_RANK=str(rank), WORLD_SIZE=str(len(folders)),
                     MASTER_ADDR='127.0.0.1', MASTER_PORT=port))
        for rank, folder in enumerate(folders)
    ]
    try:
        outputs = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], outputs


def children(pid):
    tasks = Path(f'/proc/{pid}/task')
    return [
        int(child) for task in tasks.iterdir()
        for child in (task / 'children').read_text().split()
    ]


# Importing torch and the OpenMMLab packages takes as long as many a test: a
# server imports them once, and every tool runs in a fork of it.
_SERVER = multiprocessing.get_context('forkserver')
_SERVER.set_forkserver_preload(['cris', 'mmengine.runner', 'tqdm'])


def _run_file(path, args, cwd, output, start_method, env):
    os.environ.update(env)
    multiprocessing.set_start_method(start_method, force=True)
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    sys.stdout, sys.stderr = (
        open(descriptor, 'w', buffering=1, closefd=False)
        for descriptor in (1, 2))
    os.chdir(cwd)
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(path).parent))
    sys.argv = [str(path), *args]
    runpy.run_path(str(path), run_name='__main__')


def start_tool(name, *args, output, cwd=REPO, **env):
    """A file in tools/ as a process of its own; it prints to output."""
    process = _SERVER.Process(
        target=_run_file,
        args=(REPO / 'tools' / name, [str(a) for a in args], cwd, output,
              multiprocessing.get_start_method(), env))
    process.start()
    return process


def tool(name, *args, cwd=REPO, ok=True):
    """What a file in tools/ printed, run as a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / 'output'
        process = start_tool(name, *args, output=output, cwd=cwd)
        process.join()
        out = output.read_text(errors='replace')
    assert (process.exitcode == 0) == ok, out[-3000:]
    return out


def options(root):
    """What a user with an own folder gives, and nothing else but speed."""
    out = ['--cfg-options']
    for part in ('train', 'val', 'test'):
        out += [
            f'{part}_dataloader.dataset.data_root={root}',
            f'{part}_dataloader.num_workers=0',
            f'{part}_dataloader.persistent_workers=False'
        ]
    return out + ['train_dataloader.batch_size=2', 'train_cfg.max_epochs=2']


def probed(path, text, base=CONFIG):
    """Write a config that changes another and may use training_probes."""
    path.write_text(f'''
_base_ = {str(base)!r}
custom_imports = dict(imports=['cris', 'training_probes'],
                      allow_failed_imports=False)
{text}
''')
    return path


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """Folder of a small RefShapes."""
    root = tmp_path_factory.mktemp('shapes') / 'refshapes'
    write_refshapes(root, 1, 12, seed=7)
    return root


@pytest.fixture(scope='session')
def questions(shapes):
    """Pictures of val, by path, and all that is asked about each."""
    records = RefCOCODataset(
        data_root=str(shapes), data_prefix=dict(img_path='images'),
        split='val', test_mode=True)
    return {
        record['img_path']:
        [s for ref in record['refs'] for s in ref['sentences']]
        for record in (records.get_data_info(i) for i in range(len(records)))
    }


@pytest.fixture(scope='session')
def inferencer():
    return cris.CRISInferencer(device='cpu')


@pytest.fixture(scope='session')
def abstainer():
    """The default model with a classifier of existence, untrained."""
    default = cris.init_model(DEFAULT_MODEL, device='cpu')
    model = cris.init_model(str(GEN), device='cpu', pretrained=False)
    missing, unexpected = model.load_state_dict(
        default.state_dict(), strict=False)
    assert not unexpected
    assert all('existence' in name for name in missing)
    return cris.CRISInferencer(model)


def existence_is(model, *probabilities):
    """In a with block: what the model says of its first expressions."""
    logits = torch.tensor(probabilities).logit()
    return model.decode_head.existence.register_forward_hook(
        lambda module, inputs, output: logits[:len(output)])


@pytest.fixture(scope='session')
def ranks_config(tmp_path_factory):
    """80 refs to train on, 7 images to test: no number of ranks divides 7."""
    root = tmp_path_factory.mktemp('ranks')
    refer_set = ReferSet(root / 'refer')
    for k in range(76):  # four are there
        refer_set.add_ref(1 + k % 2, [[5, 20, 30, 20, 30, 45]], 'train')
    for i in range(3, 9):  # one is there
        picture = (root / 'refer/images' / f'{i % 3}.jpg').read_bytes()
        (root / 'refer/images' / f'{i}.jpg').write_bytes(picture)
        refer_set.images.append(
            dict(refer_set.images[i % 3], id=i, file_name=f'{i}.jpg'))
        refer_set.add_ref(i, [[5, 5 + i, 30, 20, 30, 45]], 'val')
    data = str(refer_set.write())
    return probed(root / 'config.py', f'''
custom_hooks = [dict(type='Probe', freeze_norm=True)]
image_size = 64
model = dict(decode_head=dict(threshold=0.1))
train_cfg = dict(max_epochs=1, val_interval=1)
train_dataloader = dict(
    batch_size=8, num_workers=1,
    dataset=dict(data_root={data!r}, num_expressions=1))
val_dataloader = dict(
    batch_size=1, num_workers=1,
    dataset=dict(data_root={data!r}))
test_dataloader = val_dataloader
''')


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_same_run(work, other):
    """Weights, EMA, optimizer, schedules and the best, bit for bit."""
    names = [sorted(f.name for f in w.glob('*.pth')) for w in (work, other)]
    assert names[0] == names[1]
    for name in names[0]:
        a, b = (torch.load(w / name, weights_only=False)
                for w in (work, other))
        for key in ('state_dict', 'ema_state_dict', 'optimizer',
                    'param_schedulers'):
            assert equal(a.get(key), b.get(key)), (name, key)
        info = [c['message_hub']['runtime_info'] for c in (a, b)]
        assert info[0]['best_score'] == info[1]['best_score']
        assert a['meta']['iter'] == b['meta']['iter']
