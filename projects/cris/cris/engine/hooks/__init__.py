# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from .check_loss_hook import CheckLossHook
from .data_timeout_hook import DataTimeoutHook
from .exact_resume_hook import ExactResumeHook
from .preemption_hook import PreemptionHook
from .safe_checkpoint_hook import SafeCheckpointHook
from .visualization_hook import ReferVisualizationHook

__all__ = [
    'CheckLossHook', 'DataTimeoutHook', 'ExactResumeHook', 'PreemptionHook',
    'ReferVisualizationHook', 'SafeCheckpointHook'
]
