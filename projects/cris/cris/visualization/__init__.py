# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from .draw import draw_expression_tile, draw_expressions, join_tiles
from .hook import ReferVisualizationHook
from .visualizer import ReferLocalVisualizer

__all__ = [
    'ReferLocalVisualizer', 'ReferVisualizationHook', 'draw_expression_tile',
    'draw_expressions', 'join_tiles'
]
