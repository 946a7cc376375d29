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
from cris.datasets.refcoco import RefCOCODataset
from cris.datasets.refshapes import write_refshapes

GOLDEN = Path(__file__).parent / 'data' / 'golden'
REPO = Path(__file__).parents[1]
# What the tools keep beside themselves.
sys.path[:0] = [
    str(REPO / 'tools' / folder)
    for folder in ('dataset_converters', 'analysis_tools', 'model_converters')
]
CONFIG = next((REPO / 'configs/cris').glob('cris_tiny_*_refer-*.py'))


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
