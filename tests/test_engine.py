# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import copy
import errno
import os
import platform
import re
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import tool
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from cris.engine import precision as cpu
from cris.engine.hooks import ExactResumeHook, preemption_hook
from cris.engine.hooks.check_loss_hook import CheckedOptimWrapper
from cris.engine.logs import short_errors
from cris.engine.precision import BFloat16OptimWrapper
from cris.engine.training import (
    count_expressions,
    warn_of_long_warmup,
    without_pretrained,
)
from cris.io import checkpoints as checkpoint_module
from cris.io.atomic import atomic_write, write_text
from cris.io.checkpoints import load_weights, read_checkpoint


def test_bfloat16_wrapper_trains_on_a_cpu():
    model = nn.Linear(64, 1)
    with DefaultScope.overwrite_default_scope('mmseg'):
        wrapper = build_optim_wrapper(model, ConfigDict(
            type='BFloat16OptimWrapper', optimizer=dict(type='SGD', lr=0.01)))
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(60):
        with wrapper.optim_context(model):
            y = model(x)
        assert y.dtype == torch.bfloat16
        losses.append((y.float() - 3).square().mean())
        wrapper.update_params(losses[-1])
    assert losses[-1] < 0.1 * losses[0]
    assert model.weight.dtype == torch.float32


@pytest.mark.parametrize('has, old, type, cause', [
    (True, False, 'BFloat16OptimWrapper', None),
    (False, True, 'OptimWrapper', 'torch .* has no bfloat16 attention'),
    (False, False, 'OptimWrapper', 'this processor would only emulate')])
def test_mixed_precision_depends_on_the_processor(
        monkeypatch, capsys, has, old, type, cause):
    monkeypatch.setattr(cpu, 'has_bfloat16', lambda: has)
    monkeypatch.setattr(cpu, 'before_torch_2_4', lambda: old)
    optimizer = dict(type='SGD', lr=0.1)
    cfg = Config(dict(optim_wrapper=dict(
        type='AmpOptimWrapper', loss_scale='dynamic', optimizer=optimizer)))
    cpu.use_bfloat16(cfg)
    assert cfg.optim_wrapper == dict(type=type, optimizer=optimizer)
    out = capsys.readouterr().out
    assert re.search(f'uses fp32: {cause}', out) if cause else not out


def test_a_torch_without_onednn_has_no_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    monkeypatch.setattr(torch.ops, 'mkldnn', None)
    assert not cpu.has_bfloat16()


class Scaled(OptimWrapper):
    """Has a state of its own, as that of mixed precision on a GPU."""

    def state_dict(self):
        return dict(super().state_dict(), scale=2)


@pytest.mark.parametrize('kind', [OptimWrapper, Scaled, BFloat16OptimWrapper])
def test_a_wrapper_that_checks_losses_is_the_given_one_otherwise(kind):
    states = []
    for checked in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        given = wrapper = kind(
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            accumulative_counts=2)
        if checked:
            wrapper = CheckedOptimWrapper(
                given, lambda loss: bool(torch.isfinite(loss)))
            assert isinstance(wrapper, OptimWrapper)
            wrapper.update_params(torch.tensor(float('nan')))
        wrapper.initialize_count_status(model, 0, 5)
        for x in torch.ones(5, 4):
            with wrapper.optim_context(model):
                loss = (model(x).float() - 3).square().mean()
            wrapper.update_params(loss)
        assert given.inner_count == wrapper.inner_count == 5
        assert model.weight.grad is None
        states.append((model.weight.tolist(), str(wrapper.state_dict()),
                       wrapper.get_lr(), wrapper.get_momentum()))
        wrapper.load_state_dict(given.state_dict())
    assert states[0] == states[1]


def test_folders_are_replaced_as_files_are(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    for content in ('old', 'new'):
        with atomic_write(str(path)) as partial:
            os.mkdir(partial)
            with open(f'{partial}/rank0.pth', 'w') as file:
                file.write(content)
    assert (path / 'rank0.pth').read_text() == 'new'
    with pytest.raises(OSError, match='epoch_1.pth could not be written: No'
                       ' space.*go on with --resume'):
        with atomic_write(str(path)) as partial:
            os.mkdir(partial)
            raise OSError(errno.ENOSPC, 'full')
    assert os.listdir(tmp_path) == ['epoch_1.pth']


def test_the_record_of_validated_epochs(tmp_path):
    def hook_at(epoch, run):
        hook = ExactResumeHook()
        runner = SimpleNamespace(epoch=epoch, work_dir=str(tmp_path))
        hook._run = run
        hook._validated = hook._read_validated(runner)
        return hook, runner

    hook, runner = hook_at(0, 'a')
    for runner.epoch in (1, 2, 3):
        hook.after_val_epoch(runner)
    hook, runner = hook_at(2, 'a')  # from an older checkpoint
    assert hook._validated == [1, 2]
    hook._write_validated(runner)
    assert hook_at(3, 'a')[0]._validated == [1, 2]
    assert hook_at(3, 'b')[0]._validated == []  # another run in the folder


def test_pretrained_weights_are_left_out_wherever_they_are():
    pretrained = dict(type='Pretrained', checkpoint='a')
    normal = dict(type='Normal', layer='Conv2d')
    cfg = Config(dict(model=dict(
        init_cfg=pretrained, backbone=dict(init_cfg=[normal, pretrained]),
        heads=[dict(init_cfg=None, sizes=(1, 2)), None])))
    assert without_pretrained(cfg.model) == dict(
        init_cfg=None, backbone=dict(init_cfg=[normal]),
        heads=[dict(init_cfg=None, sizes=(1, 2)), None])
    assert cfg.model.init_cfg == pretrained


def test_a_run_with_a_group_for_each_parameter_goes_on():
    """mmengine's constructor makes such groups, ours fewer."""
    def wrapper(model, constructor):
        with DefaultScope.overwrite_default_scope('mmseg'):
            return build_optim_wrapper(model, ConfigDict(
                constructor=constructor, optimizer=dict(type='Adam', lr=0.1),
                paramwise_cfg=dict(custom_keys={
                    '0.': dict(lr_mult=0.1), '2.bias': dict(lr_mult=2)})))

    def steps(model, optim, count):
        for k in range(count):
            optim.update_params(model(torch.arange(4.) - k).square().sum())

    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    optim = wrapper(whole, 'DefaultOptimWrapperConstructor')
    steps(whole, optim, 2)
    for group in optim.param_groups:
        group['lr'] *= 0.5
    saved = copy.deepcopy(dict(optimizer=optim.state_dict()))
    resumed = copy.deepcopy(whole)
    steps(whole, optim, 3)

    grouped = wrapper(resumed, 'GroupedOptimWrapperConstructor')
    assert [len(o.optimizer.param_groups) for o in (optim, grouped)] == [4, 3]
    for checkpoint in (saved, None):  # None: one of its own
        checkpoint = checkpoint or dict(optimizer=grouped.state_dict())
        ExactResumeHook().after_load_checkpoint(SimpleNamespace(
            model=resumed, optim_wrapper=grouped), checkpoint)
        grouped.load_state_dict(checkpoint['optimizer'])
    steps(resumed, grouped, 3)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('k, factor', [(8, 0.25), (1, 0.03125)])
def test_the_learning_rate_follows_the_expressions(k, factor):
    part = dict(type='RefCOCODataset', num_expressions=k)
    cfg = Config(dict(
        auto_scale_lr=dict(base_batch_size=8, num_expressions=8, enable=True),
        train_dataloader=dict(batch_size=2, dataset=dict(
            type='RepeatDataset', dataset=dict(
                type='ConcatDataset', datasets=[part, part])))))
    count_expressions(cfg)
    # mmengine: images x processes / base_batch_size
    assert 2 / cfg.auto_scale_lr.base_batch_size == factor


@pytest.mark.parametrize('scheduler, warns', [
    (dict(type='LinearLR', end=4, by_epoch=False), True),
    (dict(type='LinearLR', end=3, by_epoch=False), False),
    (dict(type='ConstantLR', end=2), True),
    (dict(type='LinearLR', start_factor=1.0, end_factor=0.0), False),
    (dict(type='CosineAnnealingLR'), False)])
def test_a_long_warmup_is_warned_of(scheduler, warns):
    warnings = []
    runner = SimpleNamespace(
        max_epochs=3, max_iters=9,
        logger=SimpleNamespace(warning=warnings.append))
    warn_of_long_warmup(runner, Config(dict(param_scheduler=[scheduler])))
    assert bool(warnings) == warns
    assert not warns or 'set param_scheduler.0.end' in warnings[0]


class FileFault(ValueError):
    kind = 'bad-file'


@pytest.mark.parametrize('error, running, short', [
    (ValueError('x'), False, True), (ValueError('x'), True, False),
    (OSError('x'), True, True), (KeyError('x'), False, False),
    (FileFault('x'), True, True),
    (FileFault('Caught FileFault in DataLoader worker process 0.\nTraceback '
               '...\n  raise X\ncris.io.files.FileFault: x\n'), True, True)])
def test_errors_that_users_can_mend_are_sentences(error, running, short):
    wanted = SystemExit if short else type(error)
    with pytest.raises(wanted) as raised, short_errors() as phase:
        phase.running = running
        raise error
    assert str(raised.value) == 'error: x' if short else raised.value is error


def test_a_file_system_that_syncs_no_folder(monkeypatch, tmp_path):
    real = os.open

    def open_files(path, *args):
        if os.path.isdir(path):
            raise PermissionError('a folder')
        return real(path, *args)

    monkeypatch.setattr(os, 'open', open_files)
    write_text(str(tmp_path / 'a'), 'x')
    assert (tmp_path / 'a').read_text() == 'x'
    assert os.listdir(tmp_path) == ['a']


def test_sigterm_long_after_the_first_ends_a_process_that_does_not_train(
        monkeypatch):
    received = []
    monkeypatch.setattr(preemption_hook, '_PATIENCE', 0.2)
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    try:
        hook = preemption_hook.PreemptionHook()
        loop = SimpleNamespace(dataloader=SimpleNamespace(worker_init_fn=None))
        hook.before_train(SimpleNamespace(train_loop=loop, val_loop=None))
        for _ in range(3):  # as a launcher and a scheduler may do together
            os.kill(os.getpid(), signal.SIGTERM)
        assert not received and hook._requested
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
        assert received == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


_FREES = """
import numpy as np
from cris.models.fast_cpu import reuse_memory
def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * 4096
reuse_memory()
before = resident()
arrays = [np.ones(20 * 2**20, np.uint8) for _ in range(10)]
del arrays
kept = resident() - before
large = np.ones(100 * 2**20, np.uint8)
del large
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc')
def test_freed_memory_is_kept_but_for_large_blocks(tmp_path):
    (tmp_path / 'frees.py').write_text(_FREES)
    out = tool(tmp_path / 'frees.py')
    kept, after_large = map(int, out.split()[-2:])
    assert kept > 190 * 2**20
    assert after_large < kept + 20 * 2**20


class TestCheckpoint:

    def test_round_trip(self, tmp_path):
        model, other = nn.Linear(3, 2), nn.Linear(3, 2)
        hub = MessageHub.get_instance('test_round_trip')
        hub.update_scalar('train/loss', 1.5)
        path = str(tmp_path / 'a.pth')
        torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=1),
                        message_hub=hub.state_dict()), path)
        load_weights(other, path)
        assert torch.equal(model.weight, other.weight)
        old = checkpoint_module._load_before_torch_2_6(
            path, map_location='cpu')
        assert torch.equal(old['state_dict']['weight'], model.weight)
        torch.save(model.state_dict(), path)
        load_weights(other, path)

    def test_another_size_is_an_error_that_names_what_differs(self, tmp_path):
        path = str(tmp_path / 'a.pth')
        saved = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
        torch.save(saved.state_dict(), path)
        model = nn.Sequential(nn.Linear(4, 2), nn.Identity(), nn.Linear(2, 2))
        before = model[2].weight.clone()
        with pytest.raises(ValueError) as error:
            load_weights(model, path)
        text = str(error.value)
        assert '0.weight: (2, 3) in the file, (2, 4) in the model' in text
        assert 'missing: 2.weight' in text
        assert 'not in the model: 1.weight' in text
        assert 'Use the config it was trained with' in text
        assert torch.equal(model[2].weight, before)

    @pytest.mark.parametrize('torch_version', ['2.1', '2.6'])
    @pytest.mark.parametrize('code, asked_for', [
        ((os.mkdir, ('made', )), 'posix.mkdir'),
        # What mmengine's own allow-list would hand out.
        ((getattr, (HistoryBuffer, '__init__')), '.*HistoryBuffer')])
    def test_code_is_not_run(self, tmp_path, monkeypatch, torch_version, code,
                             asked_for):
        monkeypatch.chdir(tmp_path)
        if torch_version == '2.1':
            monkeypatch.setattr(torch, '__version__', '2.1.0')

        class Evil:

            def __reduce__(self):
                return code

        torch.save(dict(state_dict=Evil()), 'a.pth')
        with pytest.raises(ValueError, match=f'asks for {asked_for}'):
            read_checkpoint('a.pth')
        assert os.listdir() == ['a.pth']

    @pytest.mark.parametrize('content', [b'', b'abc', b'PK\x03\x04'])
    def test_broken_files(self, tmp_path, content):
        path = tmp_path / 'a.pth'
        path.write_bytes(content)
        with pytest.raises(ValueError, match='a.pth'):
            read_checkpoint(str(path))
        with pytest.raises(FileNotFoundError, match='b.pth does not exist'):
            read_checkpoint(str(tmp_path / 'b.pth'))
        torch.save([1], path)
        with pytest.raises(ValueError, match='holds a list'):
            read_checkpoint(str(path))
