# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Permute the sentences among the refs of each split.

A model that is tested on the result gets the sentences of other objects. Its
score shows how far it gets without the words. The only ref of a split keeps
its sentences.
"""
import argparse
import os.path as osp
import pickle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('src', help='refs(<split_by>).p')
    parser.add_argument('dst', help='where to write, e.g. refs(shuffled).p')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if osp.realpath(args.src) == osp.realpath(args.dst):
        parser.error('dst would overwrite src')
    import numpy as np

    from cris.io.pickles import load_plain_pickle
    refs = load_plain_pickle(args.src)
    rng = np.random.default_rng(args.seed)
    permuted = [dict(ref) for ref in refs]
    for split in sorted({ref['split'] for ref in refs}):
        order = rng.permutation(
            [i for i, ref in enumerate(refs) if ref['split'] == split])
        # One cycle through all of them: none keeps its sentences.
        for i, j in zip(order, np.roll(order, 1), strict=True):
            for key in {'sentences', 'sent_ids'} & refs[j].keys():
                permuted[i][key] = refs[j][key]
    with open(args.dst, 'wb') as file:
        pickle.dump(permuted, file)


if __name__ == '__main__':
    main()
