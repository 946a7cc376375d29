# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""The command cris-segment, which is demo/image_demo.py, too."""
import json
import os
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
from cris.apis import command_line
from cris.apis.command_line import (
    assign_texts,
    read_text_file,
    show_warnings_once,
)
from cris.apis.model_zoo import DEFAULT_MODEL

DEMO = '../demo/image_demo.py'
IMAGE = REPO / 'demo/shapes_1.jpg'
PHRASES = ['the yellow triangle', 'the rightmost triangle']
TINY = REPO / 'configs/cris' / f'{DEFAULT_MODEL}.py'
(WEIGHTS, ) = (REPO / 'checkpoints').glob('*.safetensors')


def test_one_image_with_the_default_model(tmp_path, inferencer):
    log = tool(DEMO, IMAGE, '--text', PHRASES[0], cwd=tmp_path)
    assert os.listdir(tmp_path) == ['shapes_1_segmented.jpg']
    overlay = cv2.imread(str(tmp_path / 'shapes_1_segmented.jpg'))
    (expected, ) = inferencer(
        IMAGE, PHRASES[0], return_vis=True)['visualization']
    difference = np.abs(overlay.astype(int) - expected[..., ::-1])
    assert overlay.shape == expected.shape and difference.mean() < 6
    score = inferencer(IMAGE, PHRASES[0])['predictions'][0]['scores'][0]
    assert f'{score:.2f}  {PHRASES[0]}' in log
    assert 'note: the default model knows coloured shapes only' in log


def test_only_the_default_model_has_a_note(tmp_path, capsys):
    question = [str(IMAGE), '--text', PHRASES[0], '--out-file',
                str(tmp_path / 'a.jpg')]
    main(question)
    assert capsys.readouterr().err.count('coloured shapes only') == 1
    main([*question, str(TINY), str(WEIGHTS)])
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('file', [
    'projects/cris/cris_segment.py',
    *(str(path.relative_to(REPO)) for folder in ('demo', 'tools/deployment')
      for path in (REPO / folder).glob('*.py') if path.stem != 'web_page')
])
def test_help_imports_nothing_heavy(file):
    """It takes a tenth of a second; torch alone takes seconds."""
    done = subprocess.run([sys.executable, '-X', 'importtime', file, '--help'],
                          cwd=REPO,
                          capture_output=True,
                          text=True,
                          check=True)
    assert done.stdout.startswith('usage: ')
    imported = {
        line.split('|')[-1].strip().split('.')[0]
        for line in done.stderr.splitlines()
    }
    assert 'argparse' in imported
    assert not imported & {
        'torch', 'numpy', 'cv2', 'mmengine', 'mmcv', 'mmseg', 'gradio', 'cris'
    }


def test_version(capsys):
    with pytest.raises(SystemExit):
        parse_args(['--version'])
    assert capsys.readouterr().out == f'{cris.__version__}\n'


def test_folder_with_text_file(tmp_path, inferencer):
    folder = tmp_path / 'images'
    folder.mkdir()
    for name in ('a.png', 'b.png', 'without_phrase.png'):
        Image.open(IMAGE).save(folder / name)
    (folder / 'broken.jpg').write_bytes(b'not an image')
    texts = tmp_path / 'texts.txt'
    texts.write_text(f'a.png\t{PHRASES[0]}\n\nb.png\t{PHRASES[1]}\n'
                     f'b.png\t{PHRASES[0]}\nbroken.jpg\tx\n')
    log = tool(
        DEMO, folder, '--text-file', texts, '--out-dir', tmp_path / 'out',
        '--model', DEFAULT_MODEL, '--threshold', 0.5, ok=False)
    assert 'error: ' in log and 'broken.jpg cannot be decoded' in log
    assert '2 of 3 images: ' in log and 'Traceback' not in log
    records = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert [[a['expression'] for a in r['answers']] for r in records
            ] == [PHRASES[:1], PHRASES[::-1]]
    (expected, ) = inferencer(
        folder / 'b.png', PHRASES[::-1], threshold=0.5)['predictions']
    for mask, answer in zip(
            expected['masks'], records[1]['answers'], strict=True):
        assert (coco_mask.decode(answer['rle']) == mask).all()


def test_bad_input_ends_in_a_message(tmp_path):
    evil, marker = tmp_path / 'evil.pth', tmp_path / 'marker'
    torch.save(
        dict(state_dict=dict(weight=Call(os.mkdir, str(marker)))), evil)
    gif, large = tmp_path / 'a.gif', tmp_path / 'large.png'
    gif.write_bytes(animation('GIF'))
    large.write_bytes(large_png(30_000))
    image = tmp_path / 'own.jpg'
    shutil.copy(IMAGE, image)
    broken, empty = tmp_path / 'broken.py', tmp_path / 'empty.py'
    broken.write_text('a=(1')
    empty.write_text('a=1')
    r50 = next((REPO / 'configs/cris').glob('cris_r50_*_refcoco-*.py'))
    # One process for all cases: starting one takes longer than a case.
    script = tmp_path / 'all.py'
    script.write_text('import sys\n'
                      'from cris_segment import main\n'
                      'for line in open(sys.argv[1]):\n'
                      '    try: main(eval(line))\n'
                      '    except SystemExit as error: print(error)\n')
    cases = [
        ([tmp_path / 'absent.jpg', '--text', 'x'], 'absent.jpg does not'),
        ([tmp_path / 'absent.jpg', '--text', 'x', '--out-file', image],
         'absent.jpg does not'),
        ([evil, '--text', 'x'], 'evil.pth cannot be decoded'),
        ([gif, '--text', 'x'], 'a.gif is an animation (GIF): save the'),
        ([large, '--text', 'x'], 'large.png has more pixels than the limit'),
        ([image, '--text', 'x', '--out-file', image], 'is the image itself'),
        ([IMAGE, '--text', 'x', '--out-file', evil / 'o.jpg'],
         'cannot write'),
        ([IMAGE, '--text', 'x', '--out-dir', evil], 'cannot write into'),
        ([IMAGE, '--text', 'x', broken, WEIGHTS], 'broken.py is not a config'),
        ([IMAGE, '--text', 'x', empty, WEIGHTS], 'defines no model'),
        ([IMAGE], 'no phrase given: use --text'),
        ([IMAGE, '--text', ' '], 'expression 1 of 1 is empty'),
        ([IMAGE, '--text', 'x', '--threshold', '2'], 'must be in [0, 1]'),
        ([IMAGE, '--text', 'x', TINY, evil], 'evil.pth is not a checkp'),
        ([IMAGE, '--text', 'x', r50, WEIGHTS], 'does not fit the model'),
        ([IMAGE, '--text', 'x', '--model', 'tiny'], 'near it: cris_tiny_'),
        ([IMAGE, '--text', 'x', '--device', 'gpu'], "device 'gpu' cannot"),
        ([IMAGE, '--text-file', WEIGHTS], 'is not UTF-8 text'),
    ]
    lines = tmp_path / 'lines'
    lines.write_text('\n'.join(
        repr([str(a) for a in arguments]) for arguments, _ in cases))
    log = tool(script, lines, cwd=tmp_path)
    errors = [line for line in log.splitlines() if 'error: ' in line]
    for error, (_, message) in zip(errors, cases, strict=True):
        assert message in error
    assert not marker.exists()
    assert not list(tmp_path.glob('*segmented*'))
    assert image.read_bytes() == IMAGE.read_bytes()


def test_a_long_phrase_is_cut_with_a_warning(tmp_path):
    log = tool(DEMO, IMAGE, '--text', 'red ' * 2500, cwd=tmp_path)
    assert 'has 2502 tokens, but the model reads 17' in log
    assert (tmp_path / 'shapes_1_segmented.jpg').is_file()


@pytest.mark.parametrize('arguments, message', [
    (['a.jpg', 'c.py'], 'give one CHECKPOINT after the config c.py'),
    (['c.py', 'w.pth'], 'give an image before the config c.py'),
    (['a.jpg', 'b.jpg', '--out-file', 'o.jpg'], 'single image; use --out-dir'),
    (['a.jpg', 'c.py', 'w.pth', '--model', 'm'], 'not both'),
    (['.', '--out-file', 'o.jpg'], 'single image; use --out-dir'),
    (['a.jpg', '--out-file', 'o.txt'], 'o.txt must end in one of .jpg'),
])
def test_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_args(arguments)
    assert message in capsys.readouterr().err


def test_several_images_and_a_model_of_ones_own(tmp_path):
    args = parse_args(['a.jpg', 'b', '--text', 'x', 'c.py', 'w.pth'])
    assert (args.inputs, args.config, args.checkpoint) == (
        ['a.jpg', 'b'], 'c.py', 'w.pth')
    assert (args.out_dir, args.out_file) == ('a_segmented', None)
    for name in ('run.1', 'run.2'):
        (tmp_path / name).mkdir()
        args = parse_args([str(tmp_path / name), '--text', 'x'])
        assert args.out_dir == f'{name}_segmented'
    args = parse_args(['a.jpg', '--text', 'x'])
    assert (args.config, args.checkpoint) == (None, None)
    assert (args.out_dir, args.out_file) == (None, 'a_segmented.jpg')


def test_runs_share_a_folder(tmp_path, monkeypatch, capsys):
    """The results of an image are those of the last run on it."""
    monkeypatch.chdir(tmp_path)
    for name in 'ab':
        Image.open(IMAGE).save(f'{name}.png')
    question = ['--out-dir', 'out', '--text', PHRASES[0]]
    main(['a.png', *question, '--text', PHRASES[1], '--threshold', '0.99'])
    assert '(nothing found)' in capsys.readouterr().out
    main(['b.png', *question])
    main(['a.png', *question])
    records = json.loads(Path('out/predictions.json').read_text())
    assert [r['img_path'] for r in records] == ['b.png', 'a.png']
    assert [len(r['answers']) for r in records] == [1, 1]
    assert sorted(os.listdir('out/masks')) == ['a_0.png', 'b_0.png']
    assert sorted(os.listdir('out/overlays')) == ['a.jpg', 'b.jpg']
    Path('out/predictions.json').write_text('{"a": 1}')
    with pytest.raises(SystemExit, match='does not hold predictions: choose'):
        main(['a.png', *question])
    assert Path('out/predictions.json').read_text() == '{"a": 1}'


def test_a_record_cannot_name_files_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.open(IMAGE).save('a.png')
    Path('out').mkdir()
    Path('precious.txt').touch()
    Path('out/predictions.json').write_text(json.dumps([
        dict(
            img_path='a.png',
            overlay_file='../precious.txt',
            answers=[dict(mask_file='../../precious.txt')])
    ]))
    main(['a.png', '--out-dir', 'out', '--text', PHRASES[0]])
    assert Path('precious.txt').exists()
    assert len(json.loads(Path('out/predictions.json').read_text())) == 1


def test_finished_images_are_written_when_stopped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in 'ab':
        Image.open(IMAGE).save(f'{name}.png')
    first = command_line.load_image

    def stop_at_b(path):
        if path == 'b.png':
            raise KeyboardInterrupt
        return first(path)

    monkeypatch.setattr(command_line, 'load_image', stop_at_b)
    with pytest.raises(SystemExit, match='stopped'):
        main(['a.png', 'b.png', '--out-dir', 'out', '--text', PHRASES[0]])
    (record, ) = json.loads(Path('out/predictions.json').read_text())
    assert record['img_path'] == 'a.png'


def test_warnings_are_shown_once(monkeypatch, capsys):
    monkeypatch.setattr(warnings, 'showwarning', None)  # put back afterwards
    show_warnings_once()
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        for text in 'aab':
            warnings.warn(text, stacklevel=1)
    assert capsys.readouterr().err == 'warning: a\nwarning: b\n'


@pytest.mark.parametrize('line, message', [
    (b'a.jpg\t', 'line 3: no phrase after the tab'),
    (b'\tthe sky', 'line 3: no file name before the tab'),
])
def test_incomplete_lines_of_a_text_file(line, message, tmp_path):
    path = tmp_path / 'a.txt'
    path.write_bytes(b'the sky\n\n' + line + b'\n')
    with pytest.raises(ValueError, match=message):
        read_text_file(str(path))


def test_a_text_file_about_many_images_works_for_one(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('a.jpg\tx\nb.jpg\ty\nc.jpg\tz\n')
    for images, asked in [(['a.jpg'], {'a.jpg': ['x']}),
                            (['a.jpg', 'b.jpg', 'c.jpg'], {
                                'a.jpg': ['x'],
                                'b.jpg': ['y'],
                                'c.jpg': ['z']
                            })]:
        args = parse_args([*images, '--text-file', str(path)])
        assert assign_texts(args) == asked
    with pytest.raises(ValueError, match='not among those given: b.jpg, c'):
        assign_texts(parse_args(['a.jpg', 'd.jpg', '--text-file', str(path)]))


def test_text_file(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_bytes('\ufeffthe sky\n b.jpg \t a tree \n\n'.encode())
    assert read_text_file(str(path)) == {
        None: ['the sky'],
        'b.jpg': ['a tree']
    }
