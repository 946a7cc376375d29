# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The command line, as processes, on a small set on disk."""
import json
import os
import pickle
import re
import runpy
import shutil
import sys

import pytest
import torch
from conftest import (
    CONFIG,
    REPO,
    ReferSet,
    launch,
    options,
    probed,
    run,
    start_tool,
    tool,
)
from mmengine.config import Config
from mmengine.utils import digit_version

from cris.deploy.runtime import BACKENDS
from cris.engine.config import load_config
from cris.engine.inference import PRECISIONS
from cris.engine.precision import has_bfloat16


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp('trained')
    data = ReferSet(root / 'refer').write()
    work = root / 'work'
    log = tool('train.py', CONFIG, '--work-dir', work, '--amp',
               '--max-minutes', 600, *options(data))
    return data, work, log


def test_train_writes_checkpoints_and_validates(trained):
    _, work, log = trained
    assert (work / 'epoch_2.pth').is_file()
    assert list(work.glob('best_mIoU_epoch_*.pth'))
    assert re.search(r'Epoch\(val\) .*mIoU: [\d.]+ .*Pr@90', log)
    dumped = (work / CONFIG.name).read_text()
    assert ('BFloat16OptimWrapper' in dumped) == has_bfloat16()
    lines = [line for line in log.splitlines()
             if 'only emulate bfloat16' not in line]  # some processors
    assert f'INFO - {CONFIG.stem}' in lines[0] and 'train' in lines[1]
    assert len(lines) < 20 and 'deprecated' not in log


@pytest.mark.slow
@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.4'),
    reason='no torch.compile for this')
def test_compiled_training_has_the_same_losses(trained, tmp_path):
    data, _, _ = trained
    config = probed(tmp_path / 'config.py',
                    "custom_hooks = [dict(type='Probe')]")
    losses = []
    for compile in (False, True):
        work = tmp_path / str(compile)
        tool('train.py', config, '--work-dir', work, *options(data),
             f'compile={compile}')
        probe = json.loads((work / 'probe_rank0.json').read_text())
        losses.append([loss for loss, _ in probe])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_choices_of_test_py():
    names = runpy.run_path(str(REPO / 'tools/test.py'))
    assert names['PRECISIONS'] == PRECISIONS
    assert names['BACKENDS'] == tuple(BACKENDS)


def test_test_scores_and_draws(trained, tmp_path):
    data, work, log = trained
    out, show = tmp_path / 'scores.json', tmp_path / 'show'
    tool('test.py', CONFIG, work / 'epoch_2.pth', '--work-dir', tmp_path,
         '--out', out, '--show-dir', show, *options(data))
    scores = json.loads(out.read_text())
    assert scores['n_expressions'] == 8
    assert scores.keys() >= {'mIoU', 'oIoU', 'Pr@50', 'Pr@90'}
    logged = re.findall(r'Epoch\(val\) .*mIoU: ([\d.]+)', log)[-1]
    assert scores['mIoU'] == pytest.approx(float(logged), abs=1e-4)
    assert [f.name for f in show.iterdir()] == ['test_0_0.jpg']


def test_two_ranks_score_the_same(trained, tmp_path):
    data, work, _ = trained
    config = probed(tmp_path / 'config.py', '')
    files = [tmp_path / '1.json', tmp_path / '2.json']
    args = [*options(data), 'test_dataloader.dataset.split=train']
    tool('test.py', CONFIG, work / 'epoch_2.pth', '--work-dir', tmp_path,
         '--out', files[0], *args)
    log = launch('dist_test.sh', config, work / 'epoch_2.pth', 2,
                 '--work-dir', tmp_path, '--out', files[1], *args)
    assert log.count('at exit the group is left, 0 of its threads run') == 2
    scores = [json.loads(file.read_text()) for file in files]
    assert scores[0] == scores[1]
    assert scores[0]['n_expressions'] == 16


def test_two_ranks_train_and_resume(trained, tmp_path):
    """Also after one has failed while the other waited for it.

    In real processes, as forks of the tests' server skip what is done at exit.
    """
    data, _, _ = trained
    config = probed(tmp_path / 'config.py',
                    "custom_hooks = [dict(type='LostDisk')]")
    args = ['--work-dir', tmp_path, '--max-minutes', 600, *options(data)]
    log = launch('dist_train.sh', config, 2, *args, ok=False)
    assert log.count('error: the disk of rank 1 is lost') == 1
    assert 'at exit the group is left' in log
    assert (tmp_path / 'epoch_1.pth').is_file()
    port = str(29900 + os.getpid() % 90)
    ranks = [
        start_tool('train.py', CONFIG, '--launcher', 'pytorch', '--resume',
                   *args,
                   output=tmp_path / f'rank{rank}', RANK=str(rank),
                   LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_PORT=port,
                   MASTER_ADDR='127.0.0.1') for rank in range(2)
    ]
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    log = (tmp_path / 'rank0').read_text()
    assert 'resumed epoch: 1' in log
    assert re.findall(r'Epoch\(val\) \[(\d)\]', log) == ['2']
    assert (tmp_path / 'epoch_2.pth').is_file()


def test_checkpoint_of_another_size(trained, tmp_path):
    data, work, _ = trained
    cfg = options(data) + ['model.decode_head.num_layers=1']
    for command in (('test.py', CONFIG, work / 'epoch_2.pth'),
                    ('train.py', CONFIG, '--resume', work / 'epoch_2.pth')):
        out = tool(*command, '--work-dir', tmp_path, *cfg, ok=False)
        assert 'does not fit the model of this config' in out
        assert 'not in the model: decode_head.decoder.layers.1' in out
        assert f'the config it was trained with, {CONFIG.stem} (' in out
        assert 'Traceback' not in out


def test_a_checkpoint_takes_the_place_of_clip(trained, tmp_path):
    """CLIP is not read then, and the checkpoint no more than it must be."""
    data, work, _ = trained
    newest = tmp_path / 'work/epoch_2.pth'
    newest.parent.mkdir()
    shutil.copy(work / 'epoch_2.pth', newest)
    config = tmp_path / 'config.py'
    config.write_text(f'''
_base_ = {str(CONFIG)!r}
custom_imports = dict(imports=['cris', 'count_reads'])
model = dict(backbone=dict(init_cfg=dict(
    _delete_=True, type='Pretrained', checkpoint='clip.pt')))
''')
    args = ['train.py', config, '--work-dir', newest.parent]
    cfg = options(data)
    out = tool(*args, *cfg, ok=False)
    assert 'error: checkpoint clip.pt does not exist' in out
    assert 'Traceback' not in out
    for choice, reads in ((['--resume'], ['mapped', 'whole']),
                          (['--resume', newest], ['whole'])):
        out = tool(*args, *choice, *cfg)
        assert 'resumed epoch: 2' in out
        assert re.findall(rf'READ (\w+) {newest}', out) == reads
    out = tool(*args, *cfg, f'load_from={newest}', 'train_cfg.max_epochs=1')
    assert re.findall(rf'READ (\w+) {newest}', out) == ['whole']


@pytest.mark.parametrize('arguments, message', [
    (['nowhere.py'], 'nowhere.py'),
    ([CONFIG, '--cfg-options', 'lr'], 'key=value'),
    ([CONFIG, '--resume', 'weights.pth'], 'weights, not the state of a run'),
])
def test_errors_of_train_py_are_sentences(trained, tmp_path, arguments,
                                          message):
    data, work, _ = trained
    checkpoint = torch.load(work / 'epoch_2.pth', weights_only=False)
    torch.save(checkpoint['state_dict'], tmp_path / 'weights.pth')
    if arguments[-1] == 'weights.pth':
        arguments = [*arguments, *options(data)]
    out = tool('train.py', *arguments, cwd=tmp_path, ok=False)
    assert re.search(f'error: .*{message}', out) and 'Traceback' not in out


def test_a_fault_in_the_data_ends_the_run_before_training(refer_set, tmp_path):
    refer_set.refs[4]['ann_id'] = 999
    log = tool('train.py', CONFIG, '--work-dir', tmp_path,
               *options(refer_set.write()), ok=False)
    assert 'ref 4: its ann_id 999 does not exist' in log
    assert 'Epoch(train)' not in log


def test_a_corrupt_image_ends_the_run_with_its_name(refer_set, tmp_path):
    data = refer_set.root
    image = data / 'images/2.jpg'
    image.write_bytes(image.read_bytes()[:900])
    log = tool('train.py', CONFIG, '--work-dir', tmp_path, *options(data),
               ok=False)
    assert re.search(r'images/2.jpg cannot be decoded', log)
    assert 'Traceback' not in log
    log = tool('train.py', CONFIG, '--work-dir', tmp_path, *options(data),
               'train_dataloader.dataset.check_images=False',
               'train_dataloader.num_workers=1', 'log_level=DEBUG', ok=False)
    assert re.search(r'^error: .*images/2.jpg cannot be decoded', log, re.M)
    for detail in ('Traceback', 'System environment:', 'Config:',
                   'Hooks will be executed in the following order'):
        assert detail in log


@pytest.mark.slow
def test_specks_that_are_all_called_alike(refer_set, tmp_path):
    """A mask of one pixel and one sentence for each picture and batch."""
    refer_set.anns, refer_set.refs = [], []
    for image_id, split in enumerate(['val', 'train', 'train']):
        refer_set.add_ref(
            image_id, [[20, 20, 21, 20, 21, 21, 20, 21]], split, ['the cell'])
    log = tool('train.py', CONFIG, '--work-dir', tmp_path / 'work', '--amp',
               *options(refer_set.write()), 'train_dataloader.batch_size=1')
    losses = re.findall(r'Epoch\(train\).* loss: ([\d.]+)', log)
    assert len(losses) == 2 and all(0 < float(x) < 5 for x in losses)
    assert re.search(r'Epoch\(val\) .*mIoU: 0.0000 .*n_expressions: 1', log)


def test_mmengines_runner_in_another_project(refer_set, tmp_path):
    """Only an installed package and a config: no path of this repository."""
    data = refer_set.root
    cfg = load_config(CONFIG, ['image_size=64', *options(data)[1:]])
    own = Config({key: cfg[key] for key in (
        'custom_imports', 'default_scope', 'model', 'train_dataloader',
        'val_dataloader', 'val_cfg')})
    own.merge_from_dict(dict(
        val_evaluator=dict(type='RefSegMetric', prefix='mine'),
        train_cfg=dict(by_epoch=True, max_epochs=1), work_dir='work',
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1))))
    own.dump(tmp_path / 'config.py')
    code = ('from mmengine.config import Config\n'
            'from mmengine.runner import Runner\n'
            "Runner.from_cfg(Config.fromfile('config.py')).train()\n")
    log = run(sys.executable, '-c', code, cwd=tmp_path)
    assert str(REPO) not in (tmp_path / 'config.py').read_text()
    assert re.search(r'Epoch\(val\) \[1\].*mine/mIoU', log)
    assert (tmp_path / 'work/epoch_1.pth').is_file()


def test_browse_and_draw(trained, tmp_path):
    data, work, _ = trained
    cfg = options(data)
    tool('misc/browse_dataset.py', CONFIG, '--out-dir', tmp_path / 'train',
         '--num', 1, *cfg)
    assert len(list((tmp_path / 'train').glob('*.jpg'))) == 1
    tool('analysis_tools/draw_predictions.py', CONFIG, work / 'epoch_2.pth',
         tmp_path / 'sheet.jpg', *cfg)
    assert (tmp_path / 'sheet.jpg').stat().st_size > 5000


def test_mask_ceiling(refer_set):
    root = refer_set.write()
    out = tool('analysis_tools/mask_ceiling.py', root / 'instances.json',
               root / 'refs(unc).p', '--sizes', 64)
    official, ours = (
        float(x) for x in re.findall(r'^ +64 .* ([\d.]+)$', out, re.M))
    assert 50 < official < ours <= 100


def test_print_config():
    out = tool('misc/print_config.py', CONFIG, '--cfg-options',
               'model.decode_head.num_layers=7')
    assert 'num_layers=7' in out and "type='CrossModalFPN'" in out


def test_shuffled_sentences(refer_set, tmp_path):
    dst = tmp_path / 'refs(shuffled).p'
    for sentences in (None, ['alone']):
        refer_set.add_ref(2, [[1, 1, 9, 1, 9, 9]], 'train', sentences)
    for ref in refer_set.refs:
        del ref['sent_ids']  # the reader does without, too
    src = refer_set.write() / 'refs(unc).p'
    tool('dataset_converters/shuffle_sentences.py', src, dst)
    refs = pickle.loads(dst.read_bytes())
    for split in ('train', 'val'):
        old = [r['sentences'] for r in refer_set.refs if r['split'] == split]
        new = [r['sentences'] for r in refs if r['split'] == split]
        assert all(a != b for a, b in zip(old, new, strict=True))
        assert sorted(map(str, old)) == sorted(map(str, new))
    assert [r['ann_id'] for r in refs
            ] == [r['ann_id'] for r in refer_set.refs]
