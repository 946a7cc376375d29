# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from .inferencer import CRISInferencer
from .model_zoo import init_model, list_models

__all__ = ['CRISInferencer', 'init_model', 'list_models']
