# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The command cris-segment, which is demo/image_demo.py, too."""
import json
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import REPO, tool
from cris_segment import main, parse_args
from hostile import Call, animation, large_png
from PIL import Image
from pycocotools import mask as coco_mask

import cris
from cris.apis.command_line import (
    assign_texts,
    read_text_file,
    show_warnings_once,
)
from cris.apis.inputs import load_image
from cris.apis.model_zoo import DEFAULT_MODEL

IMAGE = REPO / 'demo/shapes_1.jpg'
PHRASES = ['the yellow triangle', 'the rightmost triangle']
TINY = REPO / 'configs/cris' / f'{DEFAULT_MODEL}.py'
(WEIGHTS, ) = (REPO / 'checkpoints').glob('cris_tiny_*.safetensors')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a.png and b.png."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, 'showwarning', None)  # put back afterwards
    for name in 'ab':
        Image.open(IMAGE).save(f'{name}.png')
    return tmp_path


def written():
    return json.loads(Path('out/predictions.json').read_text())


def test_one_image_with_the_default_model(tmp_path, inferencer):
    log = tool('../demo/image_demo.py', IMAGE, '--text', PHRASES[0],
               cwd=tmp_path)
    assert os.listdir(tmp_path) == ['shapes_1_segmented.jpg']
    overlay = cv2.imread(str(tmp_path / 'shapes_1_segmented.jpg'))
    result = inferencer(IMAGE, PHRASES[0], return_vis=True)
    (expected, ) = result['visualization']
    difference = np.abs(overlay.astype(int) - expected[..., ::-1])
    assert overlay.shape == expected.shape and difference.mean() < 6
    score = result['predictions'][0]['scores'][0]
    assert f'{score:.2f}  {PHRASES[0]}' in log
    assert log.count('note: the default model knows coloured shapes') == 1


@pytest.mark.parametrize('file', [
    'projects/cris/cris_segment.py',
    *(str(path.relative_to(REPO)) for folder in ('demo', 'tools/deployment')
      for path in (REPO / folder).glob('*.py') if path.stem != 'web_page')
])
def test_help_imports_nothing_heavy(file):
    """It takes a tenth of a second; torch alone takes seconds."""
    done = subprocess.run(
        [sys.executable, '-X', 'importtime', file, '--help'], cwd=REPO,
        capture_output=True, text=True, check=True)
    assert done.stdout.startswith('usage: ')
    imported = {line.split('|')[-1].strip().split('.')[0]
                for line in done.stderr.splitlines()}
    assert 'argparse' in imported
    assert not imported & {
        'torch', 'numpy', 'cv2', 'mmengine', 'mmcv', 'mmseg', 'gradio', 'cris'
    }


def test_folder_with_text_file(folder, inferencer, capsys):
    Path('images').mkdir()
    for name in ('a.png', 'b.png', 'without_phrase.png'):
        shutil.copy('a.png', f'images/{name}')
    Path('images/broken.jpg').write_bytes(b'not an image')
    Path('texts.txt').write_text(
        f'a.png\t{PHRASES[0]}\n\nb.png\t{PHRASES[1]}\n'
        f'b.png\t{PHRASES[0]}\nbroken.jpg\tx\n')
    with pytest.raises(SystemExit, match='error: .*broken.jpg cannot be deco'):
        main(['images', '--text-file', 'texts.txt', '--out-dir', 'out',
              '--model', DEFAULT_MODEL, '--threshold', '0.5'])
    out, err = capsys.readouterr()
    assert '2 of 3 images: ' in out and 'coloured shapes only' in err
    records = written()
    assert [[a['expression'] for a in r['answers']] for r in records
            ] == [PHRASES[:1], PHRASES[::-1]]
    (expected, ) = inferencer(
        'b.png', PHRASES[::-1], threshold=0.5)['predictions']
    for mask, answer in zip(
            expected['masks'], records[1]['answers'], strict=True):
        assert (coco_mask.decode(answer['rle']) == mask).all()


PATHS = dict(
    IMAGE=IMAGE, WEIGHTS=WEIGHTS, TINY=TINY,
    R50=next((REPO / 'configs/cris').glob('cris_r50_*_refcoco-*.py')))


@pytest.mark.parametrize('line, message', [
    ('absent.jpg --text x', 'absent.jpg does not'),
    ('absent.jpg --text x --out-file own.jpg', 'absent.jpg does not'),
    ('evil.pth --text x', 'evil.pth cannot be decoded'),
    ('a.gif --text x', 'a.gif is an animation (GIF): save the'),
    ('large.png --text x', 'large.png has more pixels than the limit'),
    ('own.jpg --text x --out-file own.jpg', 'is the image itself'),
    ('IMAGE --text x --out-file evil.pth/o.jpg', 'cannot write'),
    ('IMAGE --text x --out-dir evil.pth', 'cannot write into'),
    ('IMAGE --text x broken.py WEIGHTS', 'broken.py is not a config'),
    ('IMAGE --text x empty.py WEIGHTS', 'defines no model'),
    ('IMAGE', 'no phrase given: use --text'),
    ("IMAGE --text ' '", 'expression 1 of 1 is empty'),
    ('IMAGE --text x --threshold 2', 'must be in [0, 1]'),
    ('IMAGE --text x TINY evil.pth', 'evil.pth is not a checkp'),
    ('IMAGE --text x R50 WEIGHTS', 'does not fit the model'),
    ('IMAGE --text x --model tiny', 'near it: cris_tiny_'),
    ('IMAGE --text x --device gpu', "device 'gpu' cannot"),
    ('IMAGE --text-file WEIGHTS', 'is not UTF-8 text'),
    ('a.jpg c.py', 'give one CHECKPOINT after the config c.py'),
    ('c.py w.pth', 'give an image before the config c.py'),
    ('a.jpg b.jpg --out-file o.jpg', 'single image; use --out-dir'),
    ('a.jpg c.py w.pth --model m', 'not both'),
    ('. --out-file o.jpg', 'single image; use --out-dir'),
    ('a.jpg --out-file o.txt', 'o.txt must end in one of .jpg'),
])
def test_bad_input_ends_in_a_message(line, message, folder, capsys):
    torch.save(dict(state_dict=dict(weight=Call(os.mkdir, 'marker'))),
               'evil.pth')
    Path('a.gif').write_bytes(animation('GIF'))
    Path('large.png').write_bytes(large_png(30_000))
    Path('broken.py').write_text('a=(1')
    Path('empty.py').write_text('a=1')
    shutil.copy(IMAGE, 'own.jpg')
    before = sorted(os.listdir())
    with pytest.raises(SystemExit) as error:
        main([str(PATHS.get(word, word)) for word in shlex.split(line)])
    out = f'{error.value}{capsys.readouterr().err}'
    assert 'error: ' in out and message in out
    assert error.value.code not in (0, None)
    assert sorted(os.listdir()) == before  # no marker, no result
    assert Path('own.jpg').read_bytes() == IMAGE.read_bytes()


def test_several_images_and_a_model_of_ones_own(folder):
    args = parse_args(['a.jpg', 'b', '--text', 'x', 'c.py', 'w.pth'])
    assert (args.inputs, args.config, args.checkpoint) == (
        ['a.jpg', 'b'], 'c.py', 'w.pth')
    assert (args.out_dir, args.out_file) == ('a_segmented', None)
    for name in ('run.1', 'run.2'):
        Path(name).mkdir()
        args = parse_args([str(folder / name), '--text', 'x'])
        assert args.out_dir == f'{name}_segmented'
    args = parse_args(['a.jpg', '--text', 'x'])
    assert (args.config, args.checkpoint) == (None, None)
    assert (args.out_dir, args.out_file) == (None, 'a_segmented.jpg')


def test_runs_share_a_folder(folder, capsys):
    """The results of an image are those of the last run on it."""
    question = ['--out-dir', 'out', '--text', PHRASES[0]]
    main(['a.png', *question, '--text', PHRASES[1], '--threshold', '0.99'])
    assert PHRASES[1] in capsys.readouterr().out
    main(['b.png', *question, str(TINY), str(WEIGHTS)])
    assert capsys.readouterr().err == ''  # a note for the default model only
    main(['a.png', *question])
    records = written()
    assert [r['img_path'] for r in records] == ['b.png', 'a.png']
    assert [len(r['answers']) for r in records] == [1, 1]
    assert sorted(os.listdir('out/masks')) == ['a_0.png', 'b_0.png']
    assert sorted(os.listdir('out/overlays')) == ['a.jpg', 'b.jpg']
    Path('out/predictions.json').write_text('{"a": 1}')
    with pytest.raises(SystemExit, match='does not hold predictions: choose'):
        main(['a.png', *question])
    assert written() == dict(a=1)


def test_a_record_cannot_name_files_elsewhere(folder):
    Path('out').mkdir()
    Path('precious.txt').touch()
    Path('out/predictions.json').write_text(json.dumps([
        dict(img_path='a.png', overlay_file=f, answers=[dict(mask_file=f)])
        for f in ('../precious.txt', '../../precious.txt')]))
    main(['a.png', '--out-dir', 'out', '--text', PHRASES[0]])
    assert Path('precious.txt').exists()
    assert len(written()) == 1


def test_finished_images_are_written_when_stopped(folder, monkeypatch):
    def stop_at_b(path, name):
        if path == 'b.png':
            raise KeyboardInterrupt
        return load_image(path, name)

    monkeypatch.setattr('cris.apis.inferencer.load_image', stop_at_b)
    with pytest.raises(SystemExit, match='stopped'):
        main(['a.png', 'b.png', '--out-dir', 'out', '--text', PHRASES[0]])
    (record, ) = written()
    assert record['img_path'] == 'a.png'


def test_warnings_are_shown_once(folder, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        main(['a.png', '--text', 'red ' * 2500])
        assert ('... has 2502 tokens, but the model reads 17'
                in capsys.readouterr().err)
        assert Path('a_segmented.jpg').is_file()
        show_warnings_once()
        for text in 'aab':
            warnings.warn(text, stacklevel=1)
    assert capsys.readouterr().err == 'warning: a\nwarning: b\n'


def test_text_file(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_bytes('\ufeffthe sky\n b.jpg \t a tree \n\n'.encode())
    assert read_text_file(str(path)) == {
        None: ['the sky'], 'b.jpg': ['a tree']}
    for line, message in [('a.jpg\t', 'line 3: no phrase after the tab'),
                          ('\tthe sky', 'line 3: no file name before the')]:
        path.write_text(f'the sky\n\n{line}\n')
        with pytest.raises(ValueError, match=message):
            read_text_file(str(path))
    # It may be about more images than the one that is given.
    phrases = {'a.jpg': ['x'], 'b.jpg': ['y'], 'c.jpg': ['z']}
    path.write_text('a.jpg\tx\nb.jpg\ty\nc.jpg\tz\n')
    for images, asked in [(['a.jpg'], {'a.jpg': ['x']}),
                          ([*phrases], phrases)]:
        args = parse_args([*images, '--text-file', str(path)])
        assert assign_texts(args) == asked
    with pytest.raises(ValueError, match='not among those given: b.jpg, c'):
        assign_texts(parse_args(['a.jpg', 'd.jpg', '--text-file', str(path)]))


def test_version(capsys):
    with pytest.raises(SystemExit):
        parse_args(['--version'])
    assert capsys.readouterr().out == f'{cris.__version__}\n'
