# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
from collections.abc import Sequence
from functools import cache

import torch
from open_clip import SimpleTokenizer
from torch import Tensor


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


def tokenize(texts: str | list[str], context_length: int) -> Tensor:
    """CLIP's token ids at a short context length.

    Start and end of text count. A longer text is cut and its last id becomes
    the end of text; a shorter one is padded with 0.

    Args:
        texts (str | list[str]): One text or N of them.
        context_length (int): The paper uses 17 for RefCOCO and RefCOCO+ and
            22 for G-Ref.

    Returns:
        Tensor: int64 ``(N, context_length)``.

    Raises:
        TypeError: If a text is not a string.
        ValueError: If context_length leaves no room for a word.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f'an expression must be a string, got {text!r}')
    if context_length < 3:
        raise ValueError(f'context_length={context_length} leaves no room '
                         'between start and end of text; it must be >= 3')
    if not texts:
        return torch.zeros(0, context_length, dtype=torch.long)
    return _tokenizer()(texts, context_length)


def count_tokens(text: str) -> int:
    """Length of a text in tokens, with start and end, before it is cut."""
    return len(_tokenizer().encode(text)) + 2


def split_words(ids: Sequence[int]) -> list[tuple[str, slice]]:
    """Words of one row of :func:`tokenize`, and the tokens that make them.

    Returns:
        list[tuple[str, slice]]: ``<start>``, the words, punctuation on its
        own, and ``<end>``. Padding is in none of the slices.
    """
    tokenizer = _tokenizer()
    ids = [int(i) for i in ids]
    end = ids.index(tokenizer.eot_token_id)
    words, first = [('<start>', slice(0, 1))], 1
    for i in range(1, end):
        # A word that was cut has no piece that closes it.
        closed = tokenizer.decoder[ids[i]].endswith('</w>')
        if closed or i == end - 1:
            text = tokenizer.decode(ids[first:i + 1]).strip()
            words.append((text, slice(first, i + 1)))
            first = i + 1
    return words + [('<end>', slice(end, end + 1))]
