# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""CRIS as ONNX graphs, in onnxruntime or OpenVINO."""
from .export import export_onnx
from .runtime import BACKENDS, ExportedCRIS

__all__ = ['BACKENDS', 'ExportedCRIS', 'export_onnx']
