# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Training and testing with mmengine; importing it registers the hooks."""
from .config import load_config
from .hooks import ReferVisualizationHook
from .inference import PRECISIONS, optimize_for_inference
from .param_groups import GroupedOptimWrapperConstructor
from .precision import avoid_fused, use_bfloat16
from .sharding import ShardedStrategy
from .timed_loop import TimedTrainLoop

__all__ = [
    'PRECISIONS', 'GroupedOptimWrapperConstructor', 'ReferVisualizationHook',
    'ShardedStrategy', 'TimedTrainLoop', 'avoid_fused', 'load_config',
    'optimize_for_inference', 'use_bfloat16'
]
