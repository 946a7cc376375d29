# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Training by a budget of minutes, with a clock that the test winds."""
import copy
import math

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from cris.engine import timed_loop
from cris.engine.timed_loop import use_budget

EPOCHS, BATCHES = 4, 10


class Model(BaseModel):

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x, mode):
        return dict(loss=0 * self.layer(x).sum())


class Clock(Hook):
    """An iteration takes some seconds; records rates and expected ends."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds = 100.0, seconds
        self.rates, self.ends, self.validated = [], [], []
        monkeypatch.setattr(timed_loop.time, 'monotonic', lambda: self.now)

    def before_train_iter(self, runner, *args, **kwargs):
        self.now += self.seconds
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])
        self.ends.append(runner.max_iters)


@pytest.fixture
def run(tmp_path, monkeypatch):

    def run(seconds, minutes, schedulers=None, stop_at=None, **kwargs):
        clock = Clock(monkeypatch, seconds)
        train_cfg = dict(by_epoch=True, max_epochs=EPOCHS, val_interval=EPOCHS)
        cfg = Config(dict(train_cfg=train_cfg))
        use_budget(cfg, minutes)
        data = dict(dataset=[torch.ones(1)] * BATCHES, batch_size=1,
                    sampler=dict(type='DefaultSampler', shuffle=False))
        runner = Runner(
            Model(), str(tmp_path), train_dataloader=data,
            train_cfg=cfg.train_cfg, val_dataloader=data,
            val_cfg=dict(type='ValLoop'), val_evaluator=[],
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0)),
            param_scheduler=copy.deepcopy(schedulers or [COSINE]),
            custom_hooks=[clock], experiment_name=str(id(clock)),
            default_scope='mmseg', **kwargs)
        runner.val_loop.run = lambda: clock.validated.append(runner.iter)
        runner.train()
        return clock, runner

    return run


COSINE = dict(type='CosineAnnealingLR', by_epoch=True,
              convert_to_iter_based=True, T_max=EPOCHS)
STEPS = EPOCHS * BATCHES


def cosine(share):
    return (1 + math.cos(math.pi * share)) / 2


def test_enough_time_changes_nothing(run):
    clock, runner = run(seconds=1, minutes=1)
    assert clock.rates == pytest.approx(
        [cosine(i / STEPS) for i in range(STEPS)], abs=1e-6)
    assert clock.validated == [STEPS] and runner.epoch == EPOCHS
    assert clock.ends == [STEPS] * STEPS


def test_the_schedule_passes_faster_where_time_is_short(run):
    clock, runner = run(seconds=4, minutes=1)  # 15 iterations of 40
    assert len(clock.rates) == 15 and clock.validated == [15]
    assert runner.epoch == runner.max_epochs == 2
    for i, rate in enumerate(clock.rates):
        assert rate == pytest.approx(cosine(int(40 * i / 15) / 40), abs=1e-6)
    assert clock.ends == [40] + [15] * 14
    saved = torch.load(f'{runner.work_dir}/epoch_2.pth', weights_only=False)
    assert saved['meta']['iter'] == 15


def test_schedules_by_epoch_and_warm_up(run):
    clock, _ = run(seconds=3, minutes=1, schedulers=[
        dict(type='LinearLR', start_factor=0.5, end=8, by_epoch=False),
        dict(type='MultiStepLR', milestones=[2, 3], gamma=0.1)])
    assert len(clock.rates) == 20  # of 40: all passes twice as fast
    assert clock.rates[:4] == pytest.approx(
        [0.5 + 0.5 * step / 7 for step in (0, 2, 4, 6)])
    assert clock.rates[4:] == pytest.approx([1.0] * 6 + [0.1] * 5 + [0.01] * 5)


def test_a_resumed_run_has_the_minutes_that_were_left(run):
    first, before = run(seconds=3, minutes=0.5)  # as if interrupted after 10
    assert len(first.rates) == 10
    second, runner = run(
        seconds=3, minutes=1, resume=True,
        load_from=f'{before.work_dir}/epoch_1.pth')
    assert len(second.rates) == 10 and runner.iter == 20


def test_a_run_whose_time_is_over_is_not_trained_further(run):
    _, before = run(seconds=4, minutes=1)
    again = dict(seconds=4, resume=True,
                 load_from=f'{before.work_dir}/epoch_2.pth')
    clock, runner = run(minutes=1, **again)
    assert clock.rates == [] and runner.iter == 15
    clock, runner = run(minutes=2, **again)
    assert runner.iter == 30


@pytest.mark.parametrize('minutes', [0, -1, math.nan, math.inf])
def test_no_time_is_refused(run, minutes):
    with pytest.raises(ValueError, match='max_minutes=.* must be more than 0'):
        run(seconds=1, minutes=minutes)


def test_trainings_by_iteration_are_refused():
    for train_cfg in (dict(type='IterBasedTrainLoop', max_iters=3),
                      dict(by_epoch=False, max_iters=3)):
        with pytest.raises(ValueError, match='is for trainings by epochs'):
            use_budget(Config(dict(train_cfg=train_cfg)), 1)
