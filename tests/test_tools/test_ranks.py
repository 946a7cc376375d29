# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Several processes compute what one computes; restarts; launchers."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPO, ReferSet, launch, probed, run, tool
from mmengine.config import Config
from mmengine.utils import digit_version


@pytest.fixture(scope='module')
def config(tmp_path_factory):
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


@pytest.fixture(scope='module')
def alone(config):
    """The work dir of a run of one process."""
    work = config.parent / 'alone'
    tool('train.py', config, '--work-dir', work)
    return work


def losses(work, ranks):
    """Of every iteration, the mean over the ranks."""
    return np.mean([
        json.loads((work / f'probe_rank{rank}.json').read_text())
        for rank in range(ranks)
    ], axis=0)[:, 0]


def ranks_train(config, work, ranks, *options):
    return launch('dist_train.sh', config, ranks, '--work-dir', work,
                  '--cfg-options',
                  f'train_dataloader.batch_size={8 // ranks}', *options)


@pytest.mark.slow
def test_two_ranks_of_4_have_the_losses_of_one_of_8(config, alone, tmp_path):
    ranks_train(config, tmp_path, 2)
    one, two = losses(alone, 1), losses(tmp_path, 2)
    assert len(one) == 10
    print('largest difference of the losses:', np.abs(one - two).max())
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.2'),
    reason='FSDP of torch 2.1 needs CUDA streams')
def test_sharded_ranks_have_the_losses_of_one_of_8(config, tmp_path):
    """And what is computed again in the backward pass finds its weights."""
    unclipped, sharded = tmp_path / 'unclipped.py', tmp_path / 'sharded.py'
    unclipped.write_text(f'''
_base_ = {str(config)!r}
model = dict(backbone=dict(with_cp=True), decode_head=dict(with_cp=True))
optim_wrapper = dict(clip_grad=None)
''')
    cfg = Config.fromfile(next((REPO / 'configs/cris/sharded').iterdir()))
    settings = {key: cfg[key] for key in ('runner_type', 'strategy')}
    sharded.write_text(f'_base_ = {str(unclipped)!r}\n' +
                       Config(settings).pretty_text)
    tool('train.py', unclipped, '--work-dir', tmp_path / 'one')
    ranks_train(sharded, tmp_path / 'two', 2)
    one, two = losses(tmp_path / 'one', 1), losses(tmp_path / 'two', 2)
    print('largest difference of the losses:', np.abs(one - two).max())
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-4)
    # mmengine would clip every shard by its own norm.
    clipped = tmp_path / 'clipped.py'
    clipped.write_text(sharded.read_text().replace(
        str(unclipped), str(config)))
    out = tool('train.py', clipped, '--work-dir', tmp_path, ok=False)
    assert 'optim_wrapper.clip_grad=None' in out


@pytest.mark.slow
def test_ranks_with_unequal_numbers_of_batches_to_validate(config, tmp_path):
    """Two, and of the single picture of val one has none."""
    log = ranks_train(config, tmp_path, 2,
                      'val_dataloader.sampler.round_up=False')
    assert 'mIoU' in log


@pytest.mark.slow
def test_one_two_and_three_ranks_score_the_same(config, alone, tmp_path):
    scores = []
    for ranks in (1, 2, 3):
        out = tmp_path / f'{ranks}.json'
        launch('dist_test.sh', config, alone / 'epoch_1.pth', ranks,
               '--work-dir', tmp_path, '--out', out)
        scores.append(json.loads(out.read_text()))
    assert scores[0] == scores[1] == scores[2]
    assert scores[0]['mIoU'] > 0
    print(scores[0])


LAUNCHED = '''
import os, sys, torch
from mmengine.config import Config
from cris.engine.ranks import init_ranks
torch.cuda.is_available = lambda: True  # the runner makes the group then
os.environ.setdefault('LOCAL_RANK', '0')  # as the tools do
init_ranks(Config(dict(launcher=sys.argv[1])))
print([os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')])
'''


@pytest.mark.parametrize('launcher, names', [
    ('mpi', ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE',
             'OMPI_COMM_WORLD_LOCAL_RANK')),
    ('slurm', ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID')),
    ('pytorch', ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'))])
def test_on_gpus_each_rank_knows_its_own_gpu(launcher, names):
    given = dict(zip(names, ('5', '8', '1'), strict=True))
    out = run(sys.executable, '-c', LAUNCHED, launcher,
              MASTER_ADDR='127.0.0.1', **given)
    assert out.splitlines()[-1] == "['5', '8', '1']"


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


FAILED_DOWNLOAD = '''
import os, open_clip, torch.distributed
from cris.models.clip_weights import read_clip_weights

def download(cfg):
    if os.environ['LOCAL_RANK'] == os.environ['FAULTY']:
        raise OSError('no route to the hub')
    return 'cached.pt'

open_clip.download_pretrained = download
torch.distributed.init_process_group('gloo')
read_clip_weights('open_clip://RN50/openai', {})
'''


@pytest.mark.parametrize('faulty', [0, 1])
def test_all_ranks_end_when_one_cannot_download(
        monkeypatch, tmp_path, faulty):
    monkeypatch.setenv('FAULTY', str(faulty))
    statuses, outputs = run_ranks(FAILED_DOWNLOAD, [tmp_path] * 2)
    assert 0 not in statuses
    for out in outputs:
        assert "the weights 'openai' of RN50 could not be downloaded: " \
            'no route to the hub' in out, out


LATE = '''
import os, time, torch.distributed
from mmengine.config import Config
from cris.engine.ranks import init_ranks
init_ranks(Config(dict(
    launcher='pytorch', env_cfg=dict(dist_cfg=dict(timeout=2)))))
start = time.time()
if os.environ['RANK'] == '0':
    try:
        torch.distributed.barrier()
    except RuntimeError:
        print('waited', time.time() - start)
time.sleep(max(0, start + 8 - time.time()))
'''


def test_the_timeout_of_the_config_holds_on_cpus(tmp_path):
    _, outputs = run_ranks(LATE, [tmp_path] * 2)
    assert float(outputs[0].split('waited')[1].split()[0]) < 5, outputs


SCORED = '''
import os, torch, torch.distributed
from cris.evaluation.refseg_metric import RefSegMetric

rank, world_size = (int(os.environ[n]) for n in ('RANK', 'WORLD_SIZE'))
torch.distributed.init_process_group('gloo')
metric = RefSegMetric()
for i in range(rank, 8, world_size):  # 7 samples, the last is padding
    masks = torch.rand(
        2, 1 + i % 3, 9, 9, generator=torch.Generator().manual_seed(i % 7))
    metric.process({}, [dict(
        pred_sem_seg=dict(data=masks[0] > 0.3),
        gt_sem_seg=dict(data=masks[1] > 0.3))])
print(metric.evaluate(7))
torch.distributed.destroy_process_group()
'''


def test_ranks_without_a_shared_folder_score_as_one(tmp_path):
    scores = []
    for ranks in (1, 2):
        folders = [tmp_path / f'{ranks}_{rank}' for rank in range(ranks)]
        for folder in folders:
            folder.mkdir()
        statuses, outputs = run_ranks(SCORED, folders)
        assert statuses == [0] * ranks, outputs
        scores += [out.splitlines()[-1] for out in outputs]
        assert not any(any(folder.iterdir()) for folder in folders)
    assert "'n_expressions': 13" in scores[0]
    assert scores[0] == scores[1] == scores[2]
