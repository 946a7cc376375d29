# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The metadata is in setup.cfg; here is what it cannot say."""
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithMim(build_py):
    """Puts configs, tools, index and weights into the wheel.

    mim and ``cris.init_model`` look for them in ``cris/.mim``.
    """

    def run(self) -> None:
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        here = Path(__file__).parent
        mim = Path(self.build_lib, 'cris', '.mim')
        shutil.rmtree(mim, ignore_errors=True)
        for folder in ('configs', 'tools', 'demo', 'checkpoints'):
            shutil.copytree(
                here / folder,
                mim / folder,
                ignore=shutil.ignore_patterns('__pycache__', '*.pyc'))
        shutil.copy(here / 'model-index.yml', mim)


setup(cmdclass=dict(build_py=BuildWithMim))
