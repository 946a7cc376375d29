# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import re

import pytest
from conftest import REPO

from cris import _requirements

ONEDL = {
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmsegmentation': '1.4.2',
    'onedl-mmpretrain': '1.3.6'
}
UPSTREAM = {
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmsegmentation': '1.2.2',
    'mmpretrain': '1.2.0'
}


@pytest.fixture
def installed(monkeypatch):
    found = {}
    monkeypatch.setattr(_requirements, '_version', found.get)
    return found


@pytest.mark.parametrize('family', [ONEDL, UPSTREAM])
def test_either_family_will_do(installed, family):
    installed.update(family)
    _requirements.check_requirements()


@pytest.mark.parametrize('change, message', [
    ({
        'onedl-mmcv': None
    }, 'mmcv is not installed'),
    ({
        'onedl-mmengine': '0.9.1'
    }, 'onedl-mmengine 0.9.1 is too old'),
    ({
        'mmcv': '2.1.0'
    }, 'packages of both families'),
])
def test_the_error_says_what_to_install(installed, change, message):
    installed.update(ONEDL)
    installed.update(change)
    with pytest.raises(ImportError) as error:
        _requirements.check_requirements()
    assert message in str(error.value)
    for name in ('mminstall.txt', 'openmmlab.txt'):
        assert f'pip install -r requirements/{name}' in str(error.value)


@pytest.mark.parametrize('name', ['mminstall.txt', 'openmmlab.txt'])
def test_the_files_satisfy_the_check(installed, name):
    text = (REPO / 'requirements' / name).read_text()
    installed.update(re.findall(r'^([\w-]*mm\w+)>=([\d.]+)', text, re.M))
    _requirements.check_requirements()


def test_the_mm_packages_are_not_dependencies():
    runtime = (REPO / 'requirements/runtime.txt').read_text()
    assert 'mmcv' not in runtime and 'mmengine' not in runtime
