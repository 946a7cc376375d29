# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Set-up of a training run."""
import os
from argparse import Namespace
from collections.abc import Sized
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from cris.io.atomic import disk_space
from cris.io.checkpoints import (
    CheckpointError,
    add_frozen,
    check_fit,
    holds_existence,
    holds_trained_only,
    read_checkpoint,
    state_dict_of,
    use_safe_loader,
    without_existence,
)
from cris.models.adapters import is_adapter
from cris.models.fast_cpu import optimize_for_cpu_training, reuse_memory

from .config import load_config
from .hooks.data_timeout_hook import data_workers
from .inference import compile_parts
from .logs import log_run, log_trained, quiet_logs, short_errors
from .precision import avoid_fused, use_bfloat16
from .ranks import init_ranks
from .run_checkpoints import latest_checkpoint
from .sharding import check_sharding
from .timed_loop import use_budget
from .work_dir import lock_work_dir


def train(args: Namespace) -> None:
    """Run a training, with the arguments of tools/train.py.

    Raises:
        SystemExit: With a one-line message, for errors the user can fix.
    """
    quiet_logs()
    with short_errors() as phase:
        use_safe_loader(args.trust_checkpoint)
        cfg = build_config(args)
        lock_work_dir(cfg)
        choose_checkpoint(cfg)
        with disk_space(cfg.work_dir, then='go on with --resume'):
            run(cfg, phase)


def run(cfg: Config, phase: SimpleNamespace) -> None:
    """Build the runner of a complete config and train."""
    if 'runner_type' in cfg:  # a FlexibleRunner, which builds its model later
        runner = RUNNERS.build(cfg)
        log_run(runner)
    else:
        # mmengine would compile its own step, the log included.
        compiled = cfg.pop('compile', False)
        runner = Runner.from_cfg(cfg)
        log_run(runner)
        model = _unwrapped(runner.model)
        log_trained(runner, model)
        if not torch.cuda.is_available():
            optimize_for_cpu_training(model)
        if compiled:
            compile_parts(model,
                          **(compiled if isinstance(compiled, dict) else {}))
    runner.register_hook(_SetUpHook(phase, cfg))
    with data_workers(runner):
        check_training(runner, cfg)
        runner.train()


def build_config(args: Namespace) -> Config:
    """The config of the run, adapted to the arguments and the machine."""
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    cfg.launcher = args.launcher
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
    if args.max_minutes is not None:
        use_budget(cfg, args.max_minutes)
    if args.auto_scale_lr:
        cfg.auto_scale_lr = dict(cfg.get('auto_scale_lr', {}), enable=True)
    if cfg.get('auto_scale_lr', {}).get('enable'):
        count_expressions(cfg)
    check_sharding(cfg)
    if not torch.cuda.is_available():
        reuse_memory()
        avoid_fused(cfg)
        if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper':
            use_bfloat16(cfg)
    init_ranks(cfg)
    return cfg


def choose_checkpoint(cfg: Config) -> None:
    """Find the checkpoint to resume from; what it replaces is not loaded."""
    restarted = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0
    if cfg.resume and (cfg.load_from is None or restarted):
        cfg.load_from = latest_checkpoint(cfg.work_dir) or cfg.load_from
    cfg.resume = cfg.resume and cfg.load_from is not None
    # Other strategies of FlexibleRunner may load only a part of the weights.
    checked = ('runner_type' not in cfg
               or cfg.get('strategy', {}).get('type') == 'ShardedStrategy')
    if cfg.resume or cfg.load_from and checked and not (
            cfg.load_from.endswith('.safetensors')
            and holds_trained_only(read_checkpoint(cfg.load_from))):
        cfg.model = without_pretrained(cfg.model)


def without_pretrained(node: Any) -> Any:
    """A copy of a config without the weights that a checkpoint replaces."""
    if isinstance(node, dict):
        if node.get('type') == 'Pretrained':
            return None
        return {key: without_pretrained(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        parts = [without_pretrained(value) for value in node]
        return type(node)(p for p in parts if p is not None or p in node)
    return node


def expressions_per_image(dataset: dict) -> int:
    """K in the config of a dataset; of several in one, the largest."""
    parts = dataset.get('datasets', [dataset.get('dataset')])
    if parts[0] is not None:
        return max(map(expressions_per_image, parts))
    return dataset.get('num_expressions', 1)


def count_expressions(cfg: Config) -> None:
    """Let mmengine scale the learning rate by expressions, not by images.

    The rate was tuned for ``auto_scale_lr.base_batch_size`` images per step,
    of ``auto_scale_lr.num_expressions`` (1, as in the paper) each.
    """
    scale = cfg.auto_scale_lr
    if 'base_batch_size' not in scale:
        raise ValueError(
            '--auto-scale-lr: the config has no auto_scale_lr='
            'dict(base_batch_size=..., num_expressions=...), the batch that '
            'its learning rate is for')
    k = expressions_per_image(cfg.train_dataloader.dataset)
    base = scale.base_batch_size * scale.get('num_expressions', 1)
    cfg.auto_scale_lr = dict(base_batch_size=base / k, enable=True)


def check_training(runner: Runner, cfg: Config) -> None:
    """Build the data loaders and warn about likely mistakes."""
    loader = runner.train_dataloader
    batches = loader.batch_sampler  # the loader's batch_size may be None
    if runner.val_loop is not None:
        runner.val_dataloader  # noqa: B018  it is built now
    if isinstance(loader.dataset, Sized) and not len(loader):
        raise ValueError(
            'the training set is smaller than one batch: '
            f'{len(loader.dataset)} samples, {runner.world_size} process(es), '
            f'batch_size={batches.batch_size}, drop_last={batches.drop_last}. '
            'Set a smaller train_dataloader.batch_size, or drop_last=False')
    streams = getattr(batches, 'streams', loader.num_workers)
    if loader.num_workers not in (0, streams):
        runner.logger.warning(
            f'train_dataloader.num_workers={loader.num_workers}, but '
            f'batch_sampler.streams={streams}: row groups are read more often '
            'than necessary; set both alike')
    warn_of_long_warmup(runner, cfg)
    if cfg.get('auto_scale_lr', {}).get('enable'):
        k = expressions_per_image(cfg.train_dataloader.dataset)
        number = batches.batch_size * k * runner.world_size
        base = cfg.auto_scale_lr.base_batch_size * k
        runner.logger.info(
            f'auto_scale_lr: {batches.batch_size} images x {k} expressions x '
            f'{runner.world_size} process(es) = {number} expressions per '
            f'step; the learning rate is for {base:g}, it is multiplied by '
            f'{number / base:g}')


def warn_of_long_warmup(runner: Runner, cfg: Config) -> None:
    """Warn if more than a third of the training is warm-up."""
    schedulers = cfg.get('param_scheduler') or []
    if isinstance(schedulers, dict):
        schedulers = [schedulers]
    factors = dict(LinearLR='start_factor', ConstantLR='factor')
    for index, scheduler in enumerate(schedulers):
        factor = factors.get(scheduler.get('type'))
        if factor is None or scheduler.get(factor, 1 / 3) >= 1:
            continue
        unit, total = 'epochs', runner.max_epochs
        if not scheduler.get('by_epoch', True):
            unit, total = 'iterations', runner.max_iters
        steps = scheduler.get('end', total) - scheduler.get('begin', 0)
        if steps > total / 3:
            runner.logger.warning(
                f'the warm-up of {steps} {unit} is more than a third of the '
                f'training ({total}): set param_scheduler.{index}.end, or '
                'train longer')


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


class _SetUpHook(Hook):
    """Checks the loaded checkpoint and marks the start of the training."""

    priority = 'VERY_HIGH'  # before hooks that use the checkpoint

    def __init__(self, phase: SimpleNamespace, cfg: Config):
        self.phase = phase
        self.path, self.resume = cfg.load_from, cfg.resume

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.resume and not {'meta', 'message_hub'} <= checkpoint.keys():
            raise CheckpointError(
                f'{self.path} holds weights, not the state of a run: start '
                f'from it with --cfg-options load_from={self.path}')
        # mmengine only warns and leaves unmatched weights random. A sharded
        # model is checked by its strategy.
        if not isinstance(runner, Runner):
            return
        model = _unwrapped(runner.model)
        if holds_trained_only(checkpoint):
            add_frozen(checkpoint, model, self.path)
        wanted = model.state_dict()
        # A plain CRIS may be the start of a run with adapters.
        if not any(map(is_adapter, state_dict_of(checkpoint))):
            wanted = {n: w for n, w in wanted.items() if not is_adapter(n)}
        # A CRIS that always answers may be the start of one that can abstain.
        if not self.resume and holds_existence(wanted) and (
                not holds_existence(state_dict_of(checkpoint))):
            wanted = without_existence(wanted)
            runner.logger.info(
                f'{self.path} has no classifier of existence: '
                'decode_head.existence starts new')
        check_fit(checkpoint, wanted, self.path, auxiliary=self.resume)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """For publish_model.py --adapters."""
        if isinstance(runner, Runner):
            weights = _unwrapped(runner.model).state_dict(keep_vars=True)
            checkpoint['meta']['frozen'] = [
                name for name, weight in weights.items()
                if isinstance(weight, nn.Parameter)
                and not weight.requires_grad]

    def before_train_epoch(self, runner: Runner) -> None:
        self.phase.running = True
