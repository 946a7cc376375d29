# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from .augmentation import RandomReferCrop, RandomReferFlip
from .refcoco import (
    OfficialCRISDataset,
    RefCOCODataset,
    ReferCOCODataset,
    ReferJSONLDataset,
    ReferLabelmeDataset,
    ReferParquetDataset,
    ReferSaCoDataset,
)
from .sampling import ResumableSampler, ShardBatchSampler
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
    'OfficialCRISDataset', 'PackReferInputs', 'RandomReferCrop',
    'RandomReferFlip', 'RefCOCODataset', 'ReferCOCODataset',
    'ReferJSONLDataset', 'ReferLabelmeDataset', 'ReferParquetDataset',
    'ReferSaCoDataset', 'ResumableSampler', 'ShardBatchSampler',
    'TokenizeExpressions'
]
