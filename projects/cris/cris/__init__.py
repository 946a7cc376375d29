# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""CRIS for MMSegmentation; importing it registers everything."""
from ._requirements import check_requirements, import_packages

check_requirements()
import_packages()

from . import (  # noqa: E402
    datasets,
    deploy,
    engine,
    evaluation,
    models,
    visualization,
)
from .apis import (  # noqa: E402
    CRISInferencer,
    config_file,
    init_model,
    list_models,
)
from .version import __version__  # noqa: E402

__all__ = [
    'CRISInferencer', '__version__', 'config_file', 'datasets', 'deploy',
    'engine', 'evaluation', 'init_model', 'list_models', 'models',
    'visualization'
]
