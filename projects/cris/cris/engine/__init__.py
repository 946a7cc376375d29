# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from cris.io.checkpoints import (
    compare_weights,
    load_weights,
    read_checkpoint,
    state_dict_of,
    use_safe_loader,
)
from cris.models.fast_cpu import reuse_memory

from .config import load_config
from .cpu_ranks import init_cpu_process_group
from .hooks import (
    CheckLossHook,
    DataTimeoutHook,
    ExactResumeHook,
    PreemptionHook,
    ReferVisualizationHook,
    SafeCheckpointHook,
    explain_data_errors,
)
from .inference import PRECISIONS, optimize_for_inference
from .latest_checkpoint import latest_checkpoint
from .precision import BFloat16OptimWrapper, avoid_fused, use_bfloat16

__all__ = [
    'PRECISIONS', 'BFloat16OptimWrapper', 'CheckLossHook', 'DataTimeoutHook',
    'ExactResumeHook', 'PreemptionHook', 'ReferVisualizationHook',
    'SafeCheckpointHook', 'avoid_fused', 'compare_weights',
    'explain_data_errors', 'init_cpu_process_group', 'latest_checkpoint',
    'load_config', 'load_weights', 'optimize_for_inference', 'read_checkpoint',
    'reuse_memory', 'state_dict_of', 'use_bfloat16', 'use_safe_loader'
]
