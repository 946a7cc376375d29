# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Attention of the decoder to words."""
import cv2
import numpy as np
import pytest
import torch
from conftest import CONFIG, tool
from hypothesis import given, settings
from hypothesis import strategies as st

import cris
from cris.datasets.tokenizer import split_words, tokenize
from cris.visualization.attention import record_attention, word_attention

TINY = 'cris_tiny_1xb8-6e_refshapes-128x128'


@pytest.fixture(scope='module')
def model():
    return cris.init_model(TINY, device='cpu')


def make_image(height=90, width=140):
    image = np.full((height, width, 3), 128, np.uint8)
    cv2.circle(image, (35, 45), 20, (220, 30, 30), -1)
    return cv2.rectangle(image, (90, 30), (125, 65), (20, 60, 220), -1)


@pytest.mark.parametrize('layer', [0, -1])
def test_attention_adds_up_to_one_and_padding_has_none(model, layer):
    tokens = tokenize(['red circle', 'the blue square on the right'], 17)
    images = torch.randn(1, 3, 96, 160)
    index = torch.tensor([0, 0])
    with torch.no_grad():
        plain = model.predict_logits(images, tokens, index)
        with record_attention(model, layer) as recorded:
            logits = model.predict_logits(images, tokens, index)
        again = model.predict_logits(images, tokens, index)
    (attention, ) = recorded
    assert attention.shape == (2, 12 * 20, 17)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 240))
    padding = (tokens == 0)[:, None].expand_as(attention)
    assert (attention[padding] == 0).all()
    assert (attention[~padding] > 0).all()
    # Recording neither changes the model nor stays on.
    torch.testing.assert_close(logits, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again, plain)
    assert len(recorded) == 1


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=80))
def test_words_cover_all_tokens_once(text):
    (ids, ) = tokenize([text], 17)
    words = split_words(ids.tolist())
    assert words[0][0] == '<start>' and words[-1][0] == '<end>'
    covered = [i for _, own in words for i in range(own.start, own.stop)]
    # Zeros cannot be counted: a '!' before punctuation is 0, too.
    assert covered == list(range(int(ids.argmax()) + 1))


def test_tokens_are_merged_to_words():
    (ids, ) = tokenize(["The zebrafishlike dog's tail!"], 17)
    words = split_words(ids.tolist())
    assert [word for word, _ in words[1:-1]] == [
        'the', 'zebrafishlike', 'dog', "'s", 'tail', '!']
    assert words[2][1].stop - words[2][1].start > 1
    (cut, ) = tokenize(['zebrafishlike ' * 20], 17)
    words = split_words(cut.tolist())
    assert words[-1][1] == slice(16, 17)


@pytest.mark.parametrize('shape', [(90, 140), (140, 90), (33, 400)])
def test_maps_have_the_size_of_the_image_and_add_up_to_one(model, shape):
    image = make_image(*shape)
    attention = word_attention(model, image, 'red circle on the left')
    assert attention.words == [
        '<start>', 'red', 'circle', 'on', 'the', 'left', '<end>']
    assert attention.maps.shape == (7, *shape)
    assert attention.maps.dtype == np.float32
    assert attention.maps.min() >= 0
    np.testing.assert_allclose(attention.maps.sum(0), 1, atol=0.02)
    # A word of several tokens.
    attention_of_pieces = word_attention(model, image, 'zebrafishlike circle')
    np.testing.assert_allclose(attention_of_pieces.maps.sum(0), 1, atol=0.02)
    circle = cv2.circle(np.zeros(shape), (35, 45), 20, 1, -1) > 0
    if shape == (90, 140):  # the prediction is the model's
        both, either = attention.pred & circle, attention.pred | circle
        assert both.sum() / either.sum() > 0.5


def test_no_such_layer(model):
    for layer in (1, -2):
        with pytest.raises(ValueError, match='1 layers: choose one from -1'):
            word_attention(model, make_image(), 'a', layer)
    cfg = cris.engine.load_config(
        str(CONFIG), {'model.decode_head.num_layers': 0})
    bare = cris.init_model(cfg, pretrained=False, device='cpu')
    with pytest.raises(ValueError, match='no attention to words'):
        word_attention(bare, make_image(), 'a')


def test_command_line(tmp_path):
    image, out = tmp_path / 'a.png', tmp_path / 'new/attention.png'
    cv2.imwrite(str(image), make_image()[..., ::-1])
    demo = ('../demo/attention_demo.py', image, '--text', 'the red circle',
            '--out-file')
    assert 'knows coloured shapes only' in tool(*demo, out)
    # Image, prediction, three words, start and end: two rows of four.
    sheet = cv2.imread(str(out))
    assert sheet.shape[1] == 1200 and sheet.std() > 30
    for more, message in (((out, '--layer', 7), 'layer 7 of a decoder'),
                          ((out, '--model', 'tiny'), 'near it: cris_tiny'),
                          (('a.bmp', ), 'must end in .png or .jpg')):
        log = tool(*demo, *more, ok=False)
        assert message in log and 'Traceback' not in log
    image.write_text('not an image')
    log = tool(*demo, out, ok=False)
    assert 'cannot be decoded' in log and 'Traceback' not in log
