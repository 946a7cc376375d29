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


def ceiling(mask, size: int, target_resize: str, align_corners: bool,
            threshold: float) -> float:
    """IoU of a mask with its copy after the way there and back.

    Args:
        mask (np.ndarray): uint8 (h, w) of 0 and 1.
        size (int): Side of the input, in pixels.
        target_resize (str): As in the decode head, like the next two.
        align_corners (bool): Of the resizing of logits.
        threshold (float): On the probabilities.

    Returns:
        float: In [0, 1].
    """
    import cv2
    import torch
    import torch.nn.functional as F

    from cris.geometry import letterbox, unletterbox
    boxed = letterbox(mask * 255, size, cv2.INTER_LINEAR) / 255
    prob = torch.from_numpy(boxed)[None, None]
    prob = F.interpolate(prob, (size // 4, size // 4), mode=target_resize)
    prob = F.interpolate(
        prob, (size, size), mode='bicubic', align_corners=align_corners)
    kept = unletterbox(prob[0, 0].numpy(), *mask.shape) > threshold
    return (kept & (mask > 0)).sum() / (kept | (mask > 0)).sum()


def main() -> None:
    args = parse_args()
    import numpy as np
    from tqdm import tqdm

    from cris.datasets.masks import decode_mask
    from cris.datasets.readers.refer import load_refer
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
            ious.append(
                [ceiling(mask, *case, args.threshold) for case in cases])
            weights.append(len(ref['sentences']))
    print('input  target_resize  align_corners  mIoU of a perfect prediction')
    for (size, resize, align), best in zip(
            cases, np.average(ious, 0, weights), strict=True):
        print(f'{size:5}  {resize:13}  {align!s:13}  {100 * best:.1f}')


if __name__ == '__main__':
    main()
