# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Permute the sentences among the refs of each split.

A model scored on the result is asked for one object and told of another: what
it still scores shows how far it gets without the words.
"""
import argparse
import os.path as osp
import pickle

import numpy as np

from cris.io.pickles import load_plain_pickle


def permute_sentences(refs: list, seed: int) -> list:
    """Give every ref the sentences of another one of its split.

    Args:
        refs (list[dict]): As in ``refs(<split_by>).p``.
        seed (int): Of the permutation.

    Returns:
        list[dict]: The same refs with other sentences; the only ref of a
        split keeps its own.
    """
    rng = np.random.default_rng(seed)
    permuted = [dict(ref) for ref in refs]
    for split in sorted({ref['split'] for ref in refs}):
        order = rng.permutation(
            [i for i, ref in enumerate(refs) if ref['split'] == split])
        # One cycle through all of them: none keeps its own.
        for i, j in zip(order, np.roll(order, 1), strict=True):
            for key in ('sentences', 'sent_ids'):
                if key in refs[j]:
                    permuted[i][key] = refs[j][key]
    return permuted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('src', help='refs(<split_by>).p')
    parser.add_argument('dst', help='where to write, e.g. refs(shuffled).p')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if osp.realpath(args.src) == osp.realpath(args.dst):
        parser.error('dst would overwrite src')
    refs = permute_sentences(load_plain_pickle(args.src), args.seed)
    with open(args.dst, 'wb') as file:
        pickle.dump(refs, file)


if __name__ == '__main__':
    main()
