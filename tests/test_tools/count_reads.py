# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Imported by a config: each checkpoint that is read is printed."""
import torch

_load = torch.load


def load(path, *args, **kwargs):
    print(f'READ {"mapped" if kwargs.get("mmap") else "whole"} {path}')
    return _load(path, *args, **kwargs)


torch.load = load
