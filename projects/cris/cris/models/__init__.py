# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from .clip_backbone import CLIPBackbone
from .cris import CRIS
from .efficientnet_lite import EfficientNetLite0
from .head import VisionLanguageDecoderHead
from .losses import TextToPixelContrastiveLoss
from .neck import CrossModalFPN
from .words_head import RegionWordsHead

__all__ = [
    'CRIS', 'CLIPBackbone', 'CrossModalFPN', 'EfficientNetLite0',
    'RegionWordsHead', 'TextToPixelContrastiveLoss',
    'VisionLanguageDecoderHead'
]
