# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Every command and link of the documentation.

A word after the language of a fenced block says what is done with it, see
docs/en/README.md.
"""
import ast
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import REPO, run, tool
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

PAGES = [
    'README.md', 'CHANGELOG.md', 'SECURITY.md', 'projects/cris/README.md',
    'configs/cris/README.md',
    *sorted(str(p.relative_to(REPO)) for p in REPO.glob('docs/en/*.md'))
]
FENCE = re.compile(r'^```(bash|python)(?: +(\S+))?\n(.*?)^```$', re.M | re.S)
LINK = re.compile(r'\]\(([^)#\s]*)(#[^)\s]*)?\)')
#: A file and what it defines, in docs/en/how_it_works.md.
PLACE = re.compile(r'`([\w/.]+\.py)`: `([\w.]+)`')


class Fence(NamedTuple):
    """A block of code on a page."""
    page: str
    language: str
    mark: str
    code: str


FENCES = [
    Fence(page, language, mark or '', code) for page in PAGES
    for language, mark, code in FENCE.findall((REPO / page).read_text())
]


def chosen(language, mark):
    return [f for f in FENCES if (f.language, f.mark) == (language, mark)]


def name(fence):
    """Of a test: the page and the first line."""
    if not isinstance(fence, Fence):
        return None
    return f'{fence.page}-{fence.code.splitlines()[0][:40]}'


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """A copy of what the commands use, to write into."""
    root = tmp_path_factory.mktemp('checkout')
    for folder in ('configs', 'tools', 'demo', 'checkpoints'):
        shutil.copytree(REPO / folder, root / folder)
    return root


def test_marks_are_known():
    known = {('bash', ''), ('bash', 'slow'), ('bash', 'parse'),
             ('python', ''), ('python', 'parse'), ('python', 'config')}
    assert {(f.language, f.mark) for f in FENCES} <= known
    assert not re.search('^```(sh|shell|console|py)\\b', '\n'.join(
        (REPO / page).read_text() for page in PAGES), re.M)


def commands(fence):
    """Its commands as words, without placeholders' ellipsis and comments."""
    code = fence.code.replace('\\\n', ' ')
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        for i, word in enumerate(words):
            if word in ('bash', 'python') and words[i + 1][:1] != '-':
                yield words[i + 1:]


@pytest.mark.parametrize('fence', [f for f in FENCES if f.language == 'bash'],
                         ids=name)
def test_files_and_options_of_commands_exist(fence):
    for file, *arguments in commands(fence):
        if (REPO / file).is_dir():  # python runs its __main__.py
            file = f'{file}/__main__.py'
        assert (REPO / file).is_file(), file
        if Path(file).name.startswith(('dist_', 'slurm_')):
            file = re.sub('(dist|slurm)_', '', file).replace('.sh', '.py')
        if file == 'tools/gpu_check.sh':
            file = 'tools/misc/gpu_check.py'
        source = source_of(REPO / file)
        for argument in arguments:
            if argument.startswith('--'):
                assert f"'{argument.split('=')[0]}'" in source, argument
            elif argument.startswith('configs/'):
                assert (REPO / argument).is_file(), argument
        configs = [a for a in arguments if a.startswith('configs/')]
        if '--cfg-options' in arguments:
            start = arguments.index('--cfg-options') + 1
            for option in arguments[start:]:
                key, equals, _ = option.partition('=')
                if not equals:
                    break
                for config in configs:
                    assert has_key(Config.fromfile(REPO / config), key), key


def source_of(path):
    """Of a file, or of the module whose main it runs, and what it imports."""
    source = path.read_text()
    elsewhere = re.search(r'^from (cris\S+) import main$', source, re.M)
    if elsewhere:
        module = elsewhere[1].replace('.', '/')
        source = (REPO / f'projects/cris/{module}.py').read_text()
    return source


def has_key(cfg, key):
    *parents, last = key.split('.')
    for part in parents:
        cfg = cfg[int(part)] if part.isdigit() else cfg[part]
    # A part may take an option that the config leaves at its default.
    return last in cfg or 'type' in cfg


@pytest.mark.parametrize('fence', chosen('python', 'config'), ids=name)
def test_configs_can_be_read(fence, checkout):
    file = checkout / 'configs/cris/from_the_documentation.py'
    file.write_text(fence.code)
    cfg = Config.fromfile(file)
    if 'model' in cfg:
        init_default_scope('mmseg')
        assert type(MODELS.build(cfg.model)).__name__ == 'CRIS'


@pytest.mark.parametrize('fence', chosen('python', 'parse'), ids=name)
def test_code_can_be_parsed(fence):
    ast.parse(fence.code)


@pytest.mark.parametrize(
    'page', sorted({f.page for f in chosen('python', '')}))
def test_python_runs(page, checkout):
    """The blocks of a page in a process, one after the other."""
    file = checkout / 'from_the_documentation.py'
    file.write_text(
        '\n'.join(f.code for f in chosen('python', '') if f.page == page))
    tool(file, cwd=checkout)


def test_commands_run(checkout):
    for fence in chosen('bash', ''):
        for line in fence.code.replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ['python']:
                tool(checkout / words[1], *words[2:], cwd=checkout)
            elif words:
                run('bash', '-ec', line, cwd=checkout)


@pytest.mark.slow
@pytest.mark.parametrize(
    'page', sorted({f.page for f in chosen('bash', 'slow')}))
def test_slow_commands_run(page, checkout):
    if 'deployment' in page:  # its packages are not in requirements/tests.txt
        pytest.importorskip('onnx', reason='requirements/deploy.txt')
    shutil.rmtree(checkout / 'data', ignore_errors=True)
    for fence in chosen('bash', 'slow'):
        if fence.page == page:
            run('bash', '-ec', fence.code, cwd=checkout)


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    text = (REPO / page).read_text()
    for target, anchor in LINK.findall(re.sub(FENCE, '', text)):
        if '://' in target:
            continue
        file = (REPO / page).parent / target if target else REPO / page
        assert file.exists(), f'{page}: {target}'
        if anchor:
            heads = re.findall('^#+ (.*)$', file.read_text(), re.M)
            slugs = [re.sub(r'[^\w -]', '', h).lower() for h in heads]
            assert anchor[1:] in [s.replace(' ', '-') for s in slugs]


def test_places_in_the_code_exist():
    text = (REPO / 'docs/en/how_it_works.md').read_text()
    places = PLACE.findall(text)
    assert len(places) > 20
    for file, symbol in places:
        path = REPO / 'projects/cris/cris' / file
        if not path.is_file():
            path = REPO / file
        source = path.read_text()
        for name in symbol.split('.'):
            defined = rf'(def|class) {name}\b|^{name}\b.* =|\b{name}\b,'
            assert re.search(defined, source, re.M), f'{file}: {symbol}'
