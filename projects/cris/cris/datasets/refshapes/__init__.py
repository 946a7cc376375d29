# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from .writer import sample_picture, write_refshapes

__all__ = ['sample_picture', 'write_refshapes']
