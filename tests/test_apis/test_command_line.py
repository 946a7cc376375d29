# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""demo/image_demo.py, as processes."""
import json
import os
import shutil
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import REPO, tool
from hostile import Call, animation, large_png
from PIL import Image
from pycocotools import mask as coco_mask

from cris.apis import command_line
from cris.apis.command_line import (
    assign_texts,
    main,
    parse_args,
    read_text_file,
    show_warnings_once,
)

DEMO = '../demo/image_demo.py'
PICTURE = REPO / 'demo/shapes_1.jpg'
PHRASES = ['the yellow triangle', 'the rightmost triangle']


def test_one_picture_with_the_weights_of_the_package(tmp_path, inferencer):
    log = tool(DEMO, PICTURE, '--text', PHRASES[0], cwd=tmp_path)
    assert os.listdir(tmp_path) == ['shapes_1_segmented.jpg']
    overlay = cv2.imread(str(tmp_path / 'shapes_1_segmented.jpg'))
    (expected, ) = inferencer(
        PICTURE, PHRASES[0], return_vis=True)['visualization']
    difference = np.abs(overlay.astype(int) - expected[..., ::-1])
    assert overlay.shape == expected.shape and difference.mean() < 6
    score = inferencer(PICTURE, PHRASES[0])['predictions'][0]['scores'][0]
    assert f'{score:.2f}  {PHRASES[0]}' in log


def test_folder_with_text_file(tmp_path, inferencer):
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for name in ('a.png', 'b.png', 'unasked.png'):
        Image.open(PICTURE).save(folder / name)
    (folder / 'broken.jpg').write_bytes(b'no image')
    texts = tmp_path / 'texts.txt'
    texts.write_text(f'a.png\t{PHRASES[0]}\n\nb.png\t{PHRASES[1]}\n'
                     f'b.png\t{PHRASES[0]}\nbroken.jpg\tx\n')
    log = tool(
        DEMO, folder, '--text-file', texts, '--out-dir', tmp_path / 'out',
        '--model', 'cris_tiny_1xb8-3e_refshapes-160x160', '--threshold',
        0.5, ok=False)
    assert 'error: ' in log and 'broken.jpg cannot be decoded' in log
    assert '2 of 3 pictures: ' in log and 'Traceback' not in log
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
    picture = tmp_path / 'own.jpg'
    shutil.copy(PICTURE, picture)
    broken, empty = tmp_path / 'broken.py', tmp_path / 'empty.py'
    broken.write_text('a=(1')
    empty.write_text('a=1')
    r50 = next((REPO / 'configs/cris').glob('cris_r50_*_refcoco-*.py'))
    tiny = next((REPO / 'configs/cris').glob('cris_tiny_*_refshapes-*.py'))
    weights = next((REPO / 'checkpoints').glob('*.safetensors'))
    # One process for all: starting it takes longer than the question.
    script = tmp_path / 'all.py'
    script.write_text('import sys\n'
                      'from cris.apis.command_line import main\n'
                      'for line in open(sys.argv[1]):\n'
                      '    try: main(eval(line))\n'
                      '    except SystemExit as error: print(error)\n')
    cases = [
        ([tmp_path / 'absent.jpg', '--text', 'x'], 'absent.jpg does not'),
        ([tmp_path / 'absent.jpg', '--text', 'x', '--out-file', picture],
         'absent.jpg does not'),
        ([evil, '--text', 'x'], 'evil.pth cannot be decoded'),
        ([gif, '--text', 'x'], 'a.gif is an animation (GIF): save the'),
        ([large, '--text', 'x'], 'large.png has more pixels than the limit'),
        ([picture, '--text', 'x', '--out-file', picture], 'would be lost'),
        ([PICTURE, '--text', 'x', '--out-file', evil / 'o.jpg'],
         'cannot write'),
        ([PICTURE, '--text', 'x', '--out-dir', evil], 'cannot write into'),
        ([PICTURE, '--text', 'x', broken, weights], 'broken.py is no config'),
        ([PICTURE, '--text', 'x', empty, weights], 'defines no model'),
        ([PICTURE], 'nothing is asked: give --text'),
        ([PICTURE, '--text', ' '], 'expression 1 of 1 is empty'),
        ([PICTURE, '--text', 'x', '--threshold', '2'], 'must be in [0, 1]'),
        ([PICTURE, '--text', 'x', tiny, evil], 'evil.pth is not a checkp'),
        ([PICTURE, '--text', 'x', r50, weights], 'does not fit the model'),
        ([PICTURE, '--text', 'x', '--model', 'tiny'], 'near it: cris_tiny_'),
        ([PICTURE, '--text', 'x', '--device', 'gpu'], "device 'gpu' cannot"),
        ([PICTURE, '--text-file', weights], 'is not UTF-8 text'),
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
    assert picture.read_bytes() == PICTURE.read_bytes()


def test_a_long_phrase_is_cut_with_a_warning(tmp_path):
    log = tool(DEMO, PICTURE, '--text', 'red ' * 2500, cwd=tmp_path)
    assert 'has 2502 tokens, but the model reads 17' in log
    assert (tmp_path / 'shapes_1_segmented.jpg').is_file()


@pytest.mark.parametrize('arguments, message', [
    (['a.jpg', 'c.py'], 'give one CHECKPOINT after the config c.py'),
    (['c.py', 'w.pth'], 'name a picture before the config c.py'),
    (['a.jpg', 'b.jpg', '--out-file', 'o.jpg'], '--out-dir is for several'),
    (['a.jpg', 'c.py', 'w.pth', '--model', 'm'], 'not both'),
    (['.', '--out-file', 'o.jpg'], '--out-dir is for several'),
    (['a.jpg', '--out-file', 'o.txt'], 'end o.txt in one of .jpg'),
])
def test_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_args(arguments)
    assert message in capsys.readouterr().err


def test_several_pictures_and_a_model_of_ones_own(tmp_path):
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
    """The answers about a picture are those of the last run about it."""
    monkeypatch.chdir(tmp_path)
    for name in 'ab':
        Image.open(PICTURE).save(f'{name}.png')
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
    with pytest.raises(SystemExit, match='of something else: name another'):
        main(['a.png', *question])
    assert Path('out/predictions.json').read_text() == '{"a": 1}'


def test_a_record_cannot_name_files_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.open(PICTURE).save('a.png')
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


def test_what_was_answered_is_written_when_it_is_stopped(
        tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in 'ab':
        Image.open(PICTURE).save(f'{name}.png')
    first = command_line.load_picture

    def stop_at_b(path):
        if path == 'b.png':
            raise KeyboardInterrupt
        return first(path)

    monkeypatch.setattr(command_line, 'load_picture', stop_at_b)
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
def test_lines_of_a_text_file_that_lack_a_part(line, message, tmp_path):
    path = tmp_path / 'a.txt'
    path.write_bytes(b'the sky\n\n' + line + b'\n')
    with pytest.raises(ValueError, match=message):
        read_text_file(str(path))


def test_a_text_file_of_many_pictures_serves_one(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('a.jpg\tx\nb.jpg\ty\nc.jpg\tz\n')
    for pictures, asked in [(['a.jpg'], {'a.jpg': ['x']}),
                            (['a.jpg', 'b.jpg', 'c.jpg'], {
                                'a.jpg': ['x'],
                                'b.jpg': ['y'],
                                'c.jpg': ['z']
                            })]:
        args = parse_args([*pictures, '--text-file', str(path)])
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
