# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The OpenMMLab packages, checked and imported before all else."""
import io
import warnings
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

# Oldest versions that are known to work. Each package comes in two
# distributions: upstream's, and its maintained continuation (onedl-*).
_MINIMUM = dict(mmengine='0.10.4', mmcv='2.1.0', mmsegmentation='1.2.2',
                mmpretrain='1.2.0')
REMARK = 'Could not import OneDL\n'
_CURE = """
Install one family of the OpenMMLab packages, never both in one environment:
  pip install -r requirements/mminstall.txt   # onedl-*, maintained: current torch
  pip install -r requirements/openmmlab.txt   # upstream: torch 2.1
To change the family, make a new environment."""  # noqa: E501


def check_requirements() -> None:
    """Verify the OpenMMLab packages before anything imports them.

    Raises:
        ImportError: If one is missing, too old, or there in both families.
    """
    faults, families = [], set()
    for name, minimum in _MINIMUM.items():
        wanted = f'(wanted >= {minimum})'
        found = [(prefix + name, _version(prefix + name), prefix)
                 for prefix in ('', 'onedl-') if _version(prefix + name)]
        if not found:
            faults.append(f'{name} is not installed {wanted}')
        for distribution, number, family in found:
            families.add(family)
            if Version(number) < Version(minimum):
                faults.append(f'{distribution} {number} is too old {wanted}')
    if len(families) > 1:
        faults.append('packages of both families are installed')
    if faults:
        raise ImportError('cris: ' + '; '.join(faults) + '.' + _CURE)


def import_packages() -> None:
    """Import mmseg without its remarks on what is not installed.

    onedl-mmsegmentation prints 'Could not import OneDL' to stdout at import,
    and any use of its registries imports it, so there is no other way to keep
    the line out of results that a command prints. All else that is printed or
    warned of stays.
    """
    printed = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(printed):
        warnings.filterwarnings(
            'ignore', '(?s)Fail to import ``MultiScaleDeformableAttention``')
        import mmseg.datasets
        import mmseg.models  # noqa: F401
    print(printed.getvalue().replace(REMARK, ''), end='')


def spare_multimodal() -> None:
    """Let mmpretrain's backbones be imported beside transformers 5.

    If transformers is there (peft needs it), mmpretrain also imports its
    multimodal models, which fail with version 5. CRIS has no use for them.
    """
    found = _version('transformers')
    if found and Version(found).major >= 5:
        from mmpretrain.utils import dependency
        dependency.WITH_MULTIMODAL = False


def _version(distribution: str):
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
