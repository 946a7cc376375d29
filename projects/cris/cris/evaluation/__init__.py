# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from .refseg_metric import RefSegMetric

__all__ = ['RefSegMetric']
