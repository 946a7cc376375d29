# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Several processes compute what one computes; restarts; launchers."""
import copy
import json
import os
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import REPO, launch, ranks_train, run, run_ranks, tool
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import STRATEGIES
from mmengine.utils import digit_version
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.multiprocessing.spawn import start_processes

from cris.engine.sharding import check_sharding
from cris.io.checkpoints import CheckpointError

SHARDED = next((REPO / 'configs/cris/sharded').iterdir())


@pytest.fixture(scope='module')
def config(ranks_config):
    return ranks_config


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


def needs(ranks):
    count = torch.cuda.device_count()
    if 0 < count < ranks:
        pytest.skip(f'there are only {count} GPU(s)')


@pytest.mark.slow
@pytest.mark.parametrize('ranks', [2, 4])
def test_losses_of_ranks_that_share_a_batch(config, alone, tmp_path, ranks):
    needs(ranks)
    ranks_train(config, tmp_path, ranks)
    one, shared = losses(alone, 1), losses(tmp_path, ranks)
    assert len(one) == 10
    print('largest difference of the losses:', np.abs(one - shared).max())
    np.testing.assert_allclose(shared, one, rtol=0, atol=1e-4)


needs_cpu_fsdp = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.2'),
    reason='FSDP of torch 2.1 needs CUDA streams')


@pytest.fixture(scope='module')
def sharded(config):
    """The first config, unclipped and sharded."""
    cfg = Config.fromfile(SHARDED)
    settings = {key: cfg[key] for key in ('runner_type', 'strategy')}
    settings['optim_wrapper'] = dict(clip_grad=None)
    path = config.parent / 'sharded.py'
    path.write_text(f'_base_ = {str(config)!r}\n' +
                    Config(settings).pretty_text)
    return path


@pytest.mark.slow
@needs_cpu_fsdp
def test_sharded_ranks_have_the_losses_of_one_of_8(
        config, sharded, tmp_path):
    """And what is computed again in the backward pass finds its weights."""
    needs(2)
    options = ('model.backbone.with_cp=True',
               'model.decode_head.with_cp=True')
    tool('train.py', config, '--work-dir', tmp_path / 'one', '--cfg-options',
         'optim_wrapper.clip_grad=None', *options)
    ranks_train(sharded, tmp_path / 'two', 2, *options)
    one, two = losses(tmp_path / 'one', 1), losses(tmp_path / 'two', 2)
    print('largest difference of the losses:', np.abs(one - two).max())
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-4)


@pytest.mark.slow
@needs_cpu_fsdp
def test_a_sharded_run_that_was_killed_goes_on(sharded, tmp_path):
    """From the middle of an epoch; and a checkpoint must fit the model."""
    config = tmp_path / 'config.py'
    config.write_text(f'''
_base_ = {str(sharded)!r}
custom_hooks = [dict(type='Probe', freeze_norm=True),
                dict(type='BetterEveryEpoch', before='val')]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=7))
train_cfg = dict(max_epochs=2)
train_dataloader = dict(batch_size=4)
''')
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    launch('dist_train.sh', config, 2, '--work-dir', whole)
    launch('dist_train.sh', config, 2, '--work-dir', killed, '--cfg-options',
           'custom_hooks.1.killed=1', ok=False)
    assert {f.name for f in killed.glob('*.pth')} == {'iter_7.pth'}
    log = launch('dist_train.sh', config, 2, '--work-dir', killed, '--resume')
    assert 'resumed epoch: 0, iter: 7' in log
    np.testing.assert_array_equal(losses(whole, 2)[7:], losses(killed, 2))
    a, b = (torch.load(work / 'iter_20.pth', weights_only=False)
            for work in (whole, killed))
    torch.testing.assert_close(
        (a['state_dict'], a['optimizer']['state']),
        (b['state_dict'], b['optimizer']['state']), rtol=0, atol=0)
    assert a['optimizer']['param_groups'] == b['optimizer']['param_groups']
    assert a['param_schedulers'] == b['param_schedulers']
    out = launch('dist_train.sh', config, 2, '--work-dir', tmp_path,
                 '--cfg-options', f'load_from={whole / "iter_20.pth"}',
                 'model.decode_head.num_layers=1', ok=False)
    assert 'iter_20.pth does not fit the model of this config' in out


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
torch.cuda.device_count = lambda: 2
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


@pytest.mark.slow
@pytest.mark.parametrize('faulty', [0, 1])
def test_all_ranks_end_when_one_cannot_download(
        monkeypatch, tmp_path, faulty):
    monkeypatch.setenv('FAULTY', str(faulty))
    statuses, outputs = run_ranks(FAILED_DOWNLOAD, [tmp_path] * 2)
    assert 0 not in statuses
    for out in outputs:
        assert "the weights 'openai' of RN50 could not be downloaded: " \
            'no route to the hub' in out, out


SHARED_CACHE = '''
import os, time
from pathlib import Path
import open_clip, torch.distributed
from cris.models.clip_weights import _download

def download(cfg):
    path = Path('RN50.pt')
    if not path.exists():
        path.touch()
        time.sleep(1)
        path.write_text('complete')
    assert path.read_text() == 'complete'
    return str(path)

os.environ['LOCAL_RANK'] = '0'  # each is the first of its node
open_clip.download_pretrained = download
torch.distributed.init_process_group('gloo')
print(_download('openai', 'RN50', True))
torch.distributed.destroy_process_group()
'''


@pytest.mark.slow
def test_nodes_that_share_a_cache_download_once(tmp_path):
    statuses, outputs = run_ranks(SHARED_CACHE, [tmp_path] * 2)
    assert statuses == [0, 0], outputs
    assert [out.splitlines()[-1] for out in outputs] == ['RN50.pt'] * 2


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


@pytest.mark.slow
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


def _train_with_an_overflow(rank, folder, optimizer):
    """Of rank 1, in the second of four steps."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    torch.manual_seed(0)
    model = FSDP(torch.nn.Linear(4, 4), device_id=torch.device('cpu'),
                 use_orig_params=True)
    optimizer = getattr(torch.optim, optimizer.pop('type'))(
        model.parameters(), **optimizer)
    scaler = ShardedGradScaler('cpu', init_scale=8.)
    history = []
    for step in range(4):
        loss = model(torch.ones(2, 4) * step).square().mean()
        scaler.scale(loss).backward()
        if step == 1 and rank == 1:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float('inf'))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        history.append((scaler.get_scale(), {
            name: weight.clone() for name, weight in
            model.state_dict().items()}))
    torch.save(history, f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


@needs_cpu_fsdp
def test_an_overflow_on_one_rank_is_skipped_by_all(tmp_path):
    optimizer = dict(Config.fromfile(SHARDED).optim_wrapper.optimizer)
    start_processes(_train_with_an_overflow, (str(tmp_path), optimizer),
                    nprocs=2, start_method='forkserver')
    one, two = (torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1))
    for (scale, weights), (other_scale, others) in zip(one, two, strict=True):
        assert scale == other_scale
        torch.testing.assert_close(weights, others, rtol=0, atol=0)
    assert [scale for scale, _ in one] == [8, 4, 4, 4]
    torch.testing.assert_close(one[1][1], one[0][1], rtol=0, atol=0)
    assert not torch.equal(one[2][1]['weight'], one[1][1]['weight'])


@pytest.mark.parametrize('kind, options, wanted', [
    ('ShardedStrategy', {}, None),
    ('ShardedStrategy', {'resume': True}, None),
    ('ShardedStrategy', {'optim_wrapper.optimizer.fused': True},
     'set optim_wrapper.optimizer.fused=False'),
    ('FSDPStrategy', {'optim_wrapper.optimizer.fused': True},
     'set optim_wrapper.optimizer.fused=False'),
    ('ShardedStrategy', {'optim_wrapper.clip_grad.max_norm': 1},
     'set optim_wrapper.clip_grad=None'),
    ('FSDPStrategy', {'resume': True}, 'set strategy.type=ShardedStrategy')])
def test_what_would_go_wrong_with_sharding_is_refused(kind, options, wanted):
    cfg = Config.fromfile(SHARDED)
    cfg.merge_from_dict({'strategy.type': kind, **options})
    with (pytest.raises(ValueError, match=wanted) if wanted
          else nullcontext()):
        check_sharding(cfg)


class Small(BaseModel):

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)).square().mean()


def _resume(rank, folder):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    os.environ['LOCAL_RANK'] = str(rank)
    settings = Config.fromfile(SHARDED).strategy
    settings.model_wrapper.device_id = torch.device('cpu')
    settings.update(work_dir=folder, env_kwargs=dict(launcher='pytorch'))
    whole, resumed = (
        STRATEGIES.build(copy.deepcopy(settings)) for _ in range(2))
    for strategy in (whole, resumed):
        strategy.prepare(Small(), optim_wrapper=ConfigDict(
            type='OptimWrapper', optimizer=dict(type='Adam', lr=0.1),
            paramwise_cfg=dict(custom_keys=dict(conv=dict(lr_mult=0.5)))))
        assert isinstance(strategy.model.module.norm, torch.nn.SyncBatchNorm)
        strategy.model.eval()  # it has no kernel for CPUs

    def step(strategy):
        loss = strategy.model(torch.ones(1, 3, 2, 2))
        strategy.optim_wrapper.update_params(loss)
        return loss.item()

    for _ in range(3):
        step(whole)
    whole.save_checkpoint(f'{folder}/a.pth', extra_ckpt=dict(
        meta=dict(iter=3)))
    torch.distributed.barrier()
    saved = torch.load(f'{folder}/a.pth')['optimizer']
    assert 'base_param_settings' in saved  # as the loss scale in fp16
    resumed.resume(f'{folder}/a.pth')
    assert [step(whole) for _ in range(3)] == [step(resumed) for _ in range(3)]
    states = [s.optim_wrapper.state_dict() for s in (whole, resumed)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    torch.save(torch.nn.Conv2d(3, 4, 1).state_dict(), f'{folder}/{rank}.pth')
    with pytest.raises(CheckpointError, match='missing: conv.weight'):
        resumed.load_checkpoint(f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


@needs_cpu_fsdp
def test_the_strategy_resumes_checks_weights_and_has_sync_bn(tmp_path):
    start_processes(_resume, (str(tmp_path), ), nprocs=2,
                    start_method='forkserver')
