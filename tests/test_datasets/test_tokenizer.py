# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
import json

import pytest
import torch

from cris.datasets.tokenizer import tokenize


@pytest.mark.parametrize('length', [17, 22])
def test_ids_of_the_official_code(golden, length):
    rows = json.loads((golden / 'tokens.json').read_text())
    assert len(rows) > 50
    ids = tokenize([row['text'] for row in rows], length)
    assert ids.dtype == torch.int64
    for row, row_ids in zip(rows, ids.tolist(), strict=True):
        assert row_ids == row[f'ids{length}'], row['text']


def test_a_long_sentence_is_cut_and_ended():
    (ids, ) = tokenize('left ' * 50, 17).tolist()
    assert ids[0] == 49406 and ids[-1] == 49407 and 0 not in ids
    assert len(set(ids[1:-1])) == 1


def test_an_empty_sentence_is_start_and_end():
    assert tokenize('', 5).tolist() == [[49406, 49407, 0, 0, 0]]


@pytest.mark.parametrize('text', ['café à gauche', '左边的人', 'собака 🐶'])
def test_any_letters_have_ids(text):
    (ids, ) = tokenize(text, 40).tolist()
    end = ids.index(49407)
    assert end > 2 and not any(ids[end + 1:])
    assert tokenize(text.upper(), 40).tolist() == [ids]


def test_one_text_or_many():
    assert torch.equal(tokenize('a dog', 9), tokenize(['a dog'], 9))
    assert tokenize([], 9).shape == (0, 9)


def test_what_is_no_text_is_refused():
    with pytest.raises(TypeError, match='must be a string, got 3'):
        tokenize(['a', 3], 17)
    with pytest.raises(ValueError, match='context_length=2'):
        tokenize('a', 2)
