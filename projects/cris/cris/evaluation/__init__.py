# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from .confidence import confidence
from .conventions import add_audit, audit_table
from .refseg_metric import RefSegMetric
from .results import check_results_file

__all__ = ['RefSegMetric', 'add_audit', 'audit_table', 'check_results_file',
           'confidence']
