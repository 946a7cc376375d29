# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from .inferencer import CRISInferencer
from .model_zoo import config_file, init_model, list_models

__all__ = ['CRISInferencer', 'config_file', 'init_model', 'list_models']
