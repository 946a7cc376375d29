# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What tools/dataset_converters/prepare.py does: check, convert, stats."""
from .check import check
from .convert import convert
from .layouts import DATASETS, Located, locate
from .report import write_report
from .stats import collect_stats, print_stats, write_stats

__all__ = [
    'DATASETS', 'Located', 'check', 'collect_stats', 'convert', 'locate',
    'print_stats', 'write_report', 'write_stats'
]
