# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from .refcoco import RefCOCODataset
from .transforms import (
                         ChooseExpressions,
                         Letterbox,
                         LoadReferImage,
                         LoadReferMasks,
                         PackReferInputs,
                         TokenizeExpressions,
)

__all__ = [
    'RefCOCODataset', 'ChooseExpressions', 'Letterbox', 'LoadReferImage',
    'LoadReferMasks', 'PackReferInputs', 'TokenizeExpressions'
]
