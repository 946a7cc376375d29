# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The structure of the package, as pyproject.toml describes it."""
import sys
from pathlib import Path

from conftest import run


def test_imports_go_one_way():
    linter = Path(sys.executable).with_name('lint-imports')
    assert '2 kept, 0 broken' in run(linter, '--no-cache')
