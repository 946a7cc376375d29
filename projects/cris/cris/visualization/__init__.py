# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from .draw import draw_expressions, draw_sheet, expression_tile
from .visualizer import ReferLocalVisualizer

__all__ = ['ReferLocalVisualizer', 'draw_expressions', 'draw_sheet',
           'expression_tile']
