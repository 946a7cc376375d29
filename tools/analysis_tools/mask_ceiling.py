# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What a perfect prediction scores: the limit set by input size and resizing.

Every mask is letterboxed, resized to the quarter size of the logits as in
training, taken back as in testing, and scored against itself.
"""
import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add('ann_file', help='instances.json')
    add('split_file', help='refs(<split_by>).p')
    add('--split', default='val')
    add('--sizes', type=int, nargs='+', default=[160, 416])
    add('--threshold', type=float, default=0.35)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    import cv2
    import numpy as np
    import torch
    import torch.nn.functional as F
    from tqdm import tqdm

    from cris.datasets.masks import decode_mask
    from cris.datasets.readers.refer import load_refer
    from cris.geometry import letterbox, unletterbox
    # Input size, target_resize and align_corners of the decode head.
    cases = [(size, *resizing) for size in args.sizes
             for resizing in (('nearest', True), ('area', False))]
    ious, weights = [], []
    images = load_refer(args.ann_file, args.split_file, args.split)
    for image in tqdm(images, leave=False):
        for ref in image['refs']:
            if ref['segmentation'] is None:  # no target
                continue
            mask = decode_mask(ref['segmentation'], image['height'],
                               image['width'])
            weights.append(len(ref['sentences']))
            for size, resize, align in cases:
                boxed = letterbox(mask * 255, size, cv2.INTER_LINEAR) / 255
                prob = F.interpolate(torch.from_numpy(boxed)[None, None],
                                     (size // 4, size // 4), mode=resize)
                prob = F.interpolate(prob, (size, size), mode='bicubic',
                                     align_corners=align)[0, 0].numpy()
                kept = unletterbox(prob, *mask.shape) > args.threshold
                ious.append(
                    (kept & (mask > 0)).sum() / (kept | (mask > 0)).sum())
    means = np.average(np.reshape(ious, (-1, len(cases))), 0, weights)
    print('input  target_resize  align_corners  mIoU of a perfect prediction')
    for (size, resize, align), mean in zip(cases, means, strict=True):
        print(f'{size:5}  {resize:13}  {align!s:13}  {100 * mean:.1f}')


if __name__ == '__main__':
    main()
