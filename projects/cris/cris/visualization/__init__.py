# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from .draw import draw_expression_tile, draw_expressions, join_tiles
from .visualizer import ReferLocalVisualizer

__all__ = [
    'ReferLocalVisualizer', 'draw_expression_tile',
    'draw_expressions', 'join_tiles'
]
