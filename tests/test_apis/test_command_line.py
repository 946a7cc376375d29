# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""demo/image_demo.py, as processes."""
import json
import os

import cv2
import numpy as np
import pytest
import torch
from conftest import REPO, tool
from hostile import Call, animation, large_png
from PIL import Image
from pycocotools import mask as coco_mask

from cris.apis.command_line import parse_args, read_text_file

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
        ([evil, '--text', 'x'], 'evil.pth cannot be decoded'),
        ([gif, '--text', 'x'], 'a.gif is an animation (GIF): save the'),
        ([large, '--text', 'x'], 'large.png has more pixels than the limit'),
        ([PICTURE], 'nothing is asked: give --text'),
        ([PICTURE, '--text', ' '], 'expression 1 of 1 is empty'),
        ([PICTURE, '--text', 'x', '--threshold', '2'], 'must be in [0, 1]'),
        ([PICTURE, '--text', 'x', tiny, evil], 'evil.pth is not a checkp'),
        ([PICTURE, '--text', 'x', r50, weights], 'does not fit the model'),
        ([PICTURE, '--text', 'x', '--model', 'tiny'], "no model 'tiny' in"),
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


def test_a_long_phrase_is_cut_with_a_warning(tmp_path):
    log = tool(DEMO, PICTURE, '--text', 'red ' * 2500, cwd=tmp_path)
    assert 'has 2502 tokens, but the model reads 17' in log
    assert (tmp_path / 'shapes_1_segmented.jpg').is_file()


@pytest.mark.parametrize('arguments, message', [
    (['a.jpg', 'c.py'], 'give the CHECKPOINT after the config c.py'),
    (['a.jpg', 'c.py', 'w.pth', '--model', 'm'], 'not both'),
    (['.', '--out-file', 'o.jpg'], '--out-dir is for a'),
    (['a.jpg', '--out-file', 'o.txt'], 'end o.txt in one of .jpg'),
])
def test_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_args(arguments)
    assert message in capsys.readouterr().err


def test_text_file(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_bytes('\ufeffthe sky\n b.jpg \t a tree \n\n'.encode())
    assert read_text_file(str(path)) == {
        None: ['the sky'],
        'b.jpg': ['a tree']
    }
