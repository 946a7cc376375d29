# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import ast
import re
import sys
from collections import defaultdict
from importlib.metadata import distributions

import pytest
from conftest import REPO, run
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cris import _requirements


@pytest.fixture
def installed(monkeypatch):
    found = {}
    monkeypatch.setattr(_requirements, '_version', found.get)
    return found


def family(name):
    """Its packages and their oldest versions."""
    text = (REPO / 'requirements' / name).read_text()
    return dict(re.findall(r'^([\w-]*mm\w+)>=([\d.]+)', text, re.M))


@pytest.mark.parametrize('name', ['mminstall.txt', 'openmmlab.txt'])
def test_either_family_will_do(installed, name):
    installed.update(family(name))
    assert len(installed) == 4
    _requirements.check_requirements()


@pytest.mark.parametrize('package, version, message', [
    ('onedl-mmcv', None, 'mmcv is not installed'),
    ('onedl-mmengine', '0.9.1', 'onedl-mmengine 0.9.1 is too old'),
    ('mmcv', '2.1.0', 'packages of both families'),
])
def test_the_error_says_what_to_install(installed, package, version, message):
    installed.update({**family('mminstall.txt'), package: version})
    with pytest.raises(ImportError) as error:
        _requirements.check_requirements()
    assert message in str(error.value)
    for name in ('mminstall.txt', 'openmmlab.txt'):
        assert f'pip install -r requirements/{name}' in str(error.value)


def test_a_remark_that_is_left_out_is_still_printed():
    """Otherwise capturing stdout in import_packages() can go."""
    if not any(d.name == 'onedl-mmsegmentation' for d in distributions()):
        pytest.skip('upstream does not print it')
    assert _requirements.REMARK in run(
        sys.executable, '-c', 'import mmseg.datasets')
    out = run(sys.executable, '-c', 'import cris')
    assert 'Could not import' not in out and 'Fail to import' not in out


def test_the_mm_packages_are_not_dependencies():
    runtime = (REPO / 'requirements/runtime.txt').read_text()
    assert 'mmcv' not in runtime and 'mmengine' not in runtime


def requirements(*names):
    """Declared requirements, by name."""
    lines = (line for name in names for line in (
        REPO / f'requirements/{name}.txt').read_text().splitlines())
    found = (Requirement(r) for r in lines if r and not r.startswith('#'))
    return {canonicalize_name(r.name): r for r in found}


@pytest.mark.parametrize('file', [
    path.stem for path in (REPO / 'requirements').glob('*.txt')])
def test_versions_are_bounded_below(file):
    upper_only = {'numpy', 'opencv-python', 'pyarrow'}  # see runtime.txt
    for name, requirement in requirements(file).items():
        assert file == 'openmmlab' and name in upper_only or any(
            part.operator in ('>=', '==') for part in requirement.specifier
        ), f'requirements/{file}.txt: {name} has no oldest version'


def test_what_is_imported_is_declared():
    declared = {name.removeprefix('onedl-') for name in requirements(
        'runtime', 'optional', 'mminstall', 'demo')}
    # packages_distributions() misses some before Python 3.11.
    providers = defaultdict(set)
    for distribution in distributions():
        name = canonicalize_name(distribution.name).removeprefix('onedl-')
        for file in distribution.files or ():
            providers[file.parts[0].removesuffix('.py')].add(name)
    # A script may import the one beside it, or a folder beside it.
    own = {'cris', *(path.stem for folder in ('projects/cris', 'tools', 'demo')
                     for path in (REPO / folder).rglob('*')
                     if path.is_dir() or path.suffix == '.py')}
    for folder in ('projects', 'tools', 'demo'):
        for path in (REPO / folder).rglob('*.py'):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(
                    node, ast.Import) else [node.module] if isinstance(
                        node, ast.ImportFrom) and not node.level else []
                for name in {n.split('.')[0] for n in names}:
                    if name in sys.stdlib_module_names or name in own:
                        continue
                    found = providers.get(name, {name})
                    assert found & declared, f'{path} imports {name}'
