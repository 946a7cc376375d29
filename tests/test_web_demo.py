# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The web page, in a headless Chromium.

The browser is that of tools/misc/get_browser.sh, of Playwright, or one that
is installed; CRIS_BROWSER names another.
"""
import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import CONFIG, REPO, existence_is
from hostile import Call, animation, encoded, large_png
from PIL import Image

pytest.importorskip('gradio', reason='pip install -r requirements/demo.txt')
playwright = pytest.importorskip('playwright.sync_api')

IMAGE = REPO / 'demo/shapes_1.jpg'
PHRASES = ['the yellow triangle', 'the rightmost triangle']


def executable(chromium):
    """Path of a browser."""
    known = [
        os.environ.get('CRIS_BROWSER'), Path(sys.prefix, 'browser/chromium'),
        chromium.executable_path,
        *map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))]
    for path in known:
        if path and Path(path).is_file():
            return str(path)
    pytest.skip('no browser: bash tools/misc/get_browser.sh')


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(
            executable_path=executable(engine.chromium),
            args=['--no-sandbox', '--disable-gpu', '--headless=shell'])
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def address(browser):
    """Of the page, in a process of its own, with low limits."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, REPO / 'demo/web_demo.py', '--port', str(port),
         '--device', 'cpu', '--max-megabytes', '1', '--max-megapixels', '10',
         '--max-phrases', '5'],
        env=dict(os.environ, OMP_NUM_THREADS='1'), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True)
    for line in server.stdout:
        if 'The page is at' in line:
            break
    else:
        raise AssertionError(f'no server: status {server.wait()}')
    assert f'http://127.0.0.1:{port}' in line
    yield f'http://127.0.0.1:{port}/'
    server.terminate()
    server.wait()


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport=dict(width=1200, height=850))
    page.hosts = set()
    page.on('request', lambda r: page.hosts.update(
        re.findall('^(?:http|ws)s?://([^/]+)', r.url)))
    page.goto(address)
    page.wait_for_selector('#ask')
    yield page
    assert page.hosts == {address.split('/')[2]}  # nothing from elsewhere
    page.close()


def upload(page, name, content):
    kind = 'image/' + Path(name).suffix[1:].replace('jpg', 'jpeg')
    with page.expect_response(re.compile('/upload')):
        page.set_input_files('#image input[type=file]', [
            dict(name=name, mimeType=kind, buffer=content)])
    time.sleep(0.5)  # until the page shows it


def ask(page, phrases=PHRASES):
    page.fill('#phrases textarea', '\n'.join(phrases))
    page.click('#ask')


def download(page):
    with page.expect_download() as download:
        page.click('#masks')
    name = download.value.suggested_filename.removesuffix('_masks.zip')
    return read_masks(download.value.path(), name, len(PHRASES))


def read_masks(archive, name, count):
    """What a zip file says of an image, K masks of 0 and 255."""
    archive = zipfile.ZipFile(archive)
    return np.stack([
        Image.open(archive.open(f'masks/{name}_{k}.png'))
        for k in range(count)])


def test_from_upload_to_mask(page, inferencer):
    upload(page, IMAGE.name, IMAGE.read_bytes())
    ask(page)
    page.wait_for_selector('#scores table')
    with inferencer.open(IMAGE) as view:
        expected = view(PHRASES)
        higher = view(PHRASES, threshold=0.8)['masks']
    shown = page.inner_text('#scores')
    for phrase, score, mask in zip(
            PHRASES, expected['scores'], expected['masks'], strict=True):
        assert re.search(rf'{phrase}\s+{score:.2f}\s+{mask.sum():,}', shown)
    assert re.search(r'\d\.\d\d s for the image and 2 phrases', shown)
    masks = download(page)
    np.testing.assert_array_equal(masks, 255 * expected['masks'])
    page.wait_for_selector('#overlays img')
    assert page.locator('#overlays img').count() >= 2

    page.fill('#threshold input[type=number]', '0.8')
    page.press('#threshold input[type=number]', 'Enter')
    page.wait_for_selector(f'#scores :text("{higher[0].sum():,}")')
    np.testing.assert_array_equal(download(page), 255 * higher)
    assert page.inner_text('#scores').count(' s for the image') == 1


@pytest.mark.parametrize('name, content, phrases, message', [
    ('a.jpg', b'not an image', ['x'], 'a.jpg cannot be decoded'),
    ('a.gif', animation('GIF'), ['x'], 'a.gif is an animation'),
    ('a.png', large_png(4000), ['x'],
     'a.png has 4000 x 4000 pixels, more than the 10 megapixels'),
    ('a.png', large_png(30_000), ['x'], 'a.png has more pixels than the lim'),
    ('a.png', bytes(2_000_000), ['x'], 'exceed the maximum allowed size'),
    (None, None, ['x'], 'Upload an image first'),
    (None, None, [' '], 'Type what to look for'),
    (None, None, ['x'] * 1000, '1000 phrases are too many for this page'),
    (IMAGE.name, IMAGE.read_bytes(), ['red ' * 2500], 'has 2502 tokens'),
])
def test_bad_input_is_answered(page, name, content, phrases, message):
    if content:
        upload(page, name, content)
    ask(page, phrases)
    page.wait_for_selector(f'.toast-body:has-text("{message}")')


def cmyk(picture):
    return encoded(picture.convert('CMYK'), format='JPEG', quality=95)


def sixteen_bits(picture):
    image = np.asarray(picture)[..., ::-1].astype(np.uint16) * 257
    return cv2.imencode('.png', image)[1].tobytes()


def turned(picture):
    """As a phone stores an upright image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture.transpose(Image.Transpose.ROTATE_90),
                   format='JPEG', exif=exif)


@pytest.mark.parametrize('form, suffix', [
    (cmyk, 'jpg'), (sixteen_bits, 'png'), (turned, 'jpg')])
def test_images_of_all_kinds(page, inferencer, form, suffix):
    picture = Image.open(IMAGE)
    content = form(picture)
    upload(page, f'image.{suffix}', content)
    ask(page)
    page.wait_for_selector('#scores table')
    (expected, ) = inferencer(content, PHRASES)['predictions']
    assert expected['masks'].shape[1:] == (picture.height, picture.width)
    assert expected['masks'][0].any()
    np.testing.assert_array_equal(download(page), 255 * expected['masks'])


def test_an_example_after_all_that(page):
    """The page keeps serving."""
    page.click(f'text={PHRASES[0]}')
    page.wait_for_selector('#image img')
    page.click('#ask')
    page.wait_for_selector('#scores table')


@pytest.fixture
def web_demo(monkeypatch):
    monkeypatch.syspath_prepend(REPO / 'demo')
    return importlib.import_module('web_demo')


@pytest.fixture
def functions(web_demo, inferencer):
    """The functions behind the page."""
    page = importlib.import_module('web_page').Page
    return page(inferencer, web_demo.parse_args([]))


def test_a_busy_page_says_so(browser, functions, monkeypatch):
    """One question is being answered, one waits; the third is refused."""
    begun, go_on = threading.Event(), threading.Event()
    answer = functions.inferencer.model.answer

    def slow_answer(*args):
        begun.set()
        assert go_on.wait(60)
        return answer(*args)

    monkeypatch.setattr(functions.inferencer.model, 'answer', slow_answer)
    functions.args.max_waiting = 1
    blocks = sys.modules['web_page'].build(functions)
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True)
    pages = [browser.new_page() for _ in range(3)]
    try:
        for page in pages:
            page.goto(address)
            upload(page, IMAGE.name, IMAGE.read_bytes())
        ask(pages[0])
        assert begun.wait(60)
        ask(pages[1])
        while not len(blocks._queue):
            pages[1].wait_for_timeout(50)
        ask(pages[2])
        pages[2].wait_for_selector('.toast-body:has-text("currently busy")')
        go_on.set()
        for page in pages[:2]:
            page.wait_for_selector('#scores table')
        ask(pages[2])
        pages[2].wait_for_selector('#scores table')
    finally:
        go_on.set()
        for page in pages:
            page.close()
        blocks.close()


def test_nothing_and_many(browser, web_demo, abstainer, tmp_path):
    """One phrase is true of nothing, the other of two things."""
    texts = ['the purple star', 'the triangles']
    web_page = importlib.import_module('web_page')
    blocks = web_page.build(
        web_page.Page(abstainer, web_demo.parse_args([])))
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True)
    page = browser.new_page(viewport=dict(width=1200, height=950))

    def show(text, name):
        page.wait_for_selector(f'#scores :text("{text}")')
        page.wait_for_timeout(300)  # until the overlays are there, too
        page.screenshot(path=os.environ.get('CRIS_SCREENSHOTS', tmp_path)
                        / Path(f'{name}.png'), full_page=True)
        return page.inner_text('#scores'), page.inner_text('#overlays')

    try:
        with existence_is(abstainer.model, 0.07, 0.9):
            page.goto(address)
            upload(page, IMAGE.name, IMAGE.read_bytes())
            ask(page, texts)
            for shown in show('nothing found (0.93 sure)', 'nothing'):
                assert re.search(rf'{texts[0]}\s+nothing found \(0.93', shown)
                assert re.search(rf'{texts[1]}\s+0\.\d\d', shown)
                assert 'part' not in shown
            caption = page.locator('#overlays .caption-label').first
            assert caption.evaluate('e => e.scrollWidth <= e.clientWidth')
        masks = download(page)
        assert masks[1].any() and not masks[0].any()
        page.check('#parts input')
        for shown in show('parts', 'parts'):
            assert re.search(r'nothing found.*[2-9] parts', shown, re.DOTALL)
        page.fill('#existence input[type=number]', '0.05')
        page.press('#existence input[type=number]', 'Enter')
        page.wait_for_function(
            "!document.querySelector('#scores').innerText.includes('nothing')")
        show('part', 'lower_threshold')
        masks = download(page)
        assert masks.any((1, 2)).all()
    finally:
        page.close()
        blocks.close()


def test_a_model_that_cannot_be_used_ends_the_start(web_demo, tmp_path):
    evil, marker = tmp_path / 'evil.pth', tmp_path / 'marker'
    torch.save(dict(state_dict=Call(os.mkdir, str(marker))), evil)
    weights = next((REPO / 'checkpoints').glob('cris_tiny_*.safetensors'))
    config = CONFIG.with_name('cris_r50_8xb8-amp-50e_refcoco-416x416.py')
    for checkpoint, message in [
            (evil, 'evil.pth is not a checkpoint'),
            (weights, 'does not fit the model'),
            ('absent.pth', 'does not exist')]:
        args = web_demo.parse_args([str(config), str(checkpoint)])
        with pytest.raises(SystemExit, match=f'error: .*{message}'):
            web_demo.serve(args)
    assert not marker.exists()


def test_a_port_that_is_taken(web_demo):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit, match=f'error: .*127.0.0.1:{port}'):
            web_demo.serve(web_demo.parse_args(['--port', port]))


def test_a_large_image_is_shown_smaller(functions, inferencer, tmp_path):
    path = tmp_path / 'large.png'
    Image.open(IMAGE).resize((1900, 1600)).save(path)
    state, overlays, _ = functions.ask(str(path), PHRASES[0], 0.35)
    assert state.shape == (1600, 1900)
    assert overlays[0][0].shape == (862, 1024, 3)
    masks = read_masks(functions.archive(state, 0.35), 'large', 1)
    (prediction, ) = inferencer(
        path, PHRASES[0], threshold=0.35)['predictions']
    np.testing.assert_array_equal(masks > 0, prediction['masks'])


def test_another_threshold_runs_no_model_and_writes_no_file(
        functions, inferencer, monkeypatch):
    monkeypatch.setattr('web_page.PredictionWriter', None)
    state, *first = functions.ask(str(IMAGE), '\n'.join(PHRASES), 0.35)
    assert state.answer.logits.nbytes < 100_000
    for part in ('answer', 'encode_image'):
        monkeypatch.setattr(inferencer.model, part, None)
    assert functions.show(state, 0.35)[1] == first[1]
    assert functions.show(state, 0.8)[1] != first[1]
    assert functions.show(None, 0.8) == ([], '')
    assert functions.archive(None, 0.8) is None
