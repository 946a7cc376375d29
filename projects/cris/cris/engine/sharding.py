# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Training with the model sharded over the processes (FSDP)."""
from collections.abc import Callable

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from cris.io.checkpoints import check_fit, state_dict_of


@STRATEGIES.register_module()
class ShardedStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy that resumes, checks weights and has SyncBN.

    mmengine's own cannot load the optimizer with torch 2.1 or later, leaves
    the loss scale out of the checkpoint, ignores ``sync_bn``, and loads
    whatever names of a checkpoint happen to match.
    """

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        self._unsharded = {
            name: torch.empty_like(weight, device='meta')
            for name, weight in model.state_dict().items()
        }
        if get_device() == 'cpu':
            # torch would return every state of the optimizer as a view of the
            # same buffer: exp_avg would be saved as exp_avg_sq.
            self.optim_state_dict_config.offload_to_cpu = False
        return super()._wrap_model(self.convert_model(model))

    def load_checkpoint(self, filename: str, *,
                        callback: Callable[[dict], None] | None = None,
                        **kwargs) -> dict:
        """Load a checkpoint that fits the model.

        Raises:
            CheckpointError: If a name or a shape is not the model's.
        """

        def check(checkpoint: dict) -> None:
            if callback is not None:
                callback(checkpoint)
            if self._is_full_state_dict():
                check_fit(checkpoint, self._unsharded, filename)

        return super().load_checkpoint(filename, callback=check, **kwargs)

    def load_model_state_dict(self, state_dict: dict, **kwargs) -> None:
        self.model.load_state_dict(state_dict_of(state_dict), strict=True)

    def optim_state_dict(self) -> dict:
        """Includes what the wrapper adds, such as the loss scale."""
        sharded = FSDP.optim_state_dict(
            self.model, self.optim_wrapper.optimizer)
        return {**self.optim_wrapper.state_dict(), **sharded}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        sharded = FSDP.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer,
            optim_state_dict={
                key: state_dict[key] for key in ('state', 'param_groups')
            })
        self.optim_wrapper.load_state_dict({**state_dict, **sharded})


def check_sharding(cfg: Config) -> None:
    """Refuse what would go wrong with FSDP.

    Raises:
        ValueError: It says what to set.
    """
    kind = cfg.get('strategy', {}).get('type')
    if kind not in ('FSDPStrategy', 'ShardedStrategy'):
        return
    if cfg.model.get('auxiliary_head'):
        raise ValueError(
            'an auxiliary head reads the token embedding of the backbone, '
            f'which {kind} shards: set model.auxiliary_head=None')
    wrapper = cfg.optim_wrapper
    if wrapper.get('clip_grad'):
        raise ValueError(
            'mmengine clips the shard of each process by its own norm, not '
            f'by that of all: with {kind} set optim_wrapper.clip_grad=None')
    if wrapper.get('type') == 'AmpOptimWrapper' and wrapper.optimizer.get(
            'fused'):
        raise ValueError(
            'a fused optimizer does not tell the other processes of an '
            f'overflow in fp16: with {kind} set '
            'optim_wrapper.optimizer.fused=False')
    if kind == 'FSDPStrategy' and cfg.get('resume'):
        raise ValueError(
            "mmengine's FSDPStrategy cannot resume: set "
            'strategy.type=ShardedStrategy')
