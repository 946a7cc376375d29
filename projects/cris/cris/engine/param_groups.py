# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Parameters with the same options in one group of the optimizer."""
from mmengine.optim import DefaultOptimWrapperConstructor
from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn
from torch.optim import Optimizer


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with as few groups of parameters as there are
    different options (``paramwise_cfg``).

    mmengine makes a group for each parameter, 448 for R50. The optimizer
    updates them one after the other, so a step of Adam takes as many launches
    on a GPU, even with ``fused=True``.
    """

    def add_params(self, params: list[dict], module: nn.Module,
                   prefix: str = '', **kwargs) -> None:
        super().add_params(params, module, prefix, **kwargs)
        if prefix:  # a part of the model, within the call for all of it
            return
        groups: dict[str, dict] = {}
        for group in params:
            options = {k: group[k] for k in sorted(group) if k != 'params'}
            groups.setdefault(str(options), dict(options, params=[]))[
                'params'] += group['params']
        params[:] = groups.values()


def regroup(state: dict, optimizer: Optimizer, model: nn.Module) -> None:
    """Fit a saved state with a group for each parameter to an optimizer.

    mmengine's own constructor, which earlier versions used, makes such.

    Args:
        state (dict): Of the optimizer, changed in place.
        optimizer (Optimizer): Of the same parameters.
        model (nn.Module): Of both.
    """
    saved, groups = state['param_groups'], optimizer.param_groups
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    if len(saved) == len(groups) or len(saved) != len(trained):
        return
    saved_of = {id(w): group for w, group in zip(trained, saved, strict=True)}
    state['param_groups'] = [
        dict(saved_of[id(group['params'][0])],
             params=[saved_of[id(w)]['params'][0] for w in group['params']])
        for group in groups]
