# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from .own import (
    OfficialCRISDataset,
    OfficialLMDBDataset,
    ReferCOCODataset,
    ReferJSONLDataset,
)
from .refcoco import RefCOCODataset
from .sampler import ResumableSampler
from .transforms import (
                         ChooseExpressions,
                         Letterbox,
                         LoadReferImage,
                         LoadReferMasks,
                         PackReferInputs,
                         TokenizeExpressions,
)

__all__ = [
    'ChooseExpressions', 'Letterbox', 'LoadReferImage', 'LoadReferMasks',
    'OfficialCRISDataset', 'OfficialLMDBDataset', 'PackReferInputs',
    'RefCOCODataset', 'ReferCOCODataset', 'ReferJSONLDataset',
    'ResumableSampler', 'TokenizeExpressions'
]
