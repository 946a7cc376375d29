# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Find the faults of a dataset before it is used."""
import hashlib
import os.path as osp
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

from cris.datasets.headers import check_headers, image_content
from cris.datasets.masks import is_outside
from cris.datasets.records import Fault
from cris.datasets.tokenizer import count_tokens
from cris.io.images import open_image

from .locate import Located

TINY = 16  # masks with fewer pixels are reported
#: Kinds that leave a dataset usable, and what they mean.
WARNINGS = {
    'duplicate-annotation': 'several refs of a split have the same annotation',
    'duplicate-image': 'the same image file under two names',
    'duplicate-sentence': 'a sentence twice in one ref',
    'empty-sentence': 'a sentence without a word',
    'leaking-image':
    'an image of train that is also in another split (the google splits of '
    'RefCOCO are made that way); exclude=[...] of the dataset leaves such '
    'images out of training',
    'left-out': 'images or annotations that are not used',
    'long-sentence': 'a sentence that is cut at the context length',
    'partly-outside':
    'a polygon with points outside the image; that part is lost',
    'resized-image':
    'a picture that is not of the annotated size: the picture, or in training '
    'the mask, is resized',
    'tiny-mask': f'a mask of fewer than {TINY} pixels',
}
_KINDS_OF_IMAGES = ('bad-image', 'image-size', 'image-too-large',
                    'missing-image')
Counts = dict[str, dict[str, int]]


class Result(NamedTuple):
    """What :func:`check` found."""
    located: Located
    counts: Counts  # usable refs, ... by split
    findings: list[Fault]  # errors and warnings, in a fixed order
    images: list[dict]  # the records

    @property
    def errors(self) -> list[Fault]:
        return [f for f in self.findings if f.kind not in WARNINGS]

    @property
    def usable(self) -> bool:
        return not self.errors and bool(self.images)


def check(located: Located, context_length: int | None = None,
          decode_images: bool = False, workers: int = 0) -> Result:
    """Read a dataset and report what is wrong with it; raises nothing.

    Args:
        located (Located): Its files.
        context_length (int, optional): Where sentences are cut. Defaults to
            that of the dataset.
        decode_images (bool): Whether to decode every image, not only its
            header. Defaults to False.
        workers (int): Processes that decode images; 0 for this one.
    """
    findings = list(located.missing)
    images: list[dict] = []
    if located.can_be_read:
        try:
            records = located.read()
            images = records.images
            findings += _once_per_image(records.faults)
            findings += [Fault('left-out', '', note) for note in records.notes]
        except (ImportError, OSError, ValueError) as error:
            findings.append(Fault('broken-file', '', str(error)))
    if osp.isdir(located.img_folder):
        faults = _once_per_image(check_headers(images, located.img_folder))
        if located.size_mismatch != 'error':
            faults = [fault._replace(kind='resized-image')
                      if fault.kind == 'image-size' else fault
                      for fault in faults]
        findings += faults
    if decode_images:
        bad = {f.where for f in findings if f.kind not in WARNINGS}
        findings += _decode_all(
            {image['file_name']: image for image in images
             if image['file_name'] not in bad}, located.img_folder, workers)
    findings += _check_refs(
        images, context_length or located.info.context_length)
    counts = count_splits(images)
    if located.can_be_read:
        findings += _compare_counts(counts, located)
    return Result(located, counts, findings, images)


def count_splits(images: list[dict]) -> Counts:
    """Numbers of ``refs``, ``sentences`` and ``images`` by split."""
    counts: Counts = {}
    names = defaultdict(set)
    for image in images:
        for ref in image['refs']:
            split = counts.setdefault(
                ref['split'], dict(refs=0, sentences=0, images=0))
            split['refs'] += 1
            split['sentences'] += len(ref['sentences'])
            names[ref['split']].add(image['file_name'])
            split['images'] = len(names[ref['split']])
    return counts


def _once_per_image(faults: list[Fault]) -> list[Fault]:
    """An image's fault is repeated in each of its entries: keep the first."""
    firsts: dict = {}
    for i, fault in enumerate(faults):
        of_image = fault.kind in _KINDS_OF_IMAGES
        firsts.setdefault((fault.kind, fault.message) if of_image else i,
                          fault)
    return list(firsts.values())


def _compare_counts(counts: Counts, located: Located) -> Iterator[Fault]:
    published = located.info.counts.get(located.split_by or '', {})
    for split, numbers in published.items():
        parts = counts if split == 'all' else {split} & counts.keys()
        for key, number in zip(('refs', 'sentences', 'images'), numbers,
                               strict=True):
            found = sum(counts[part][key] for part in parts)
            if number is not None and found != number:
                yield Fault(
                    'wrong-count', f'split {split}', f'{found} {key} can be '
                    f'used, but {located.name} ({located.split_by}) has '
                    f'{number}: the files are incomplete or of another '
                    'version, or entries are faulty')


def _check_refs(images: list[dict], context_length: int) -> Iterator[Fault]:
    refs_of_ann, splits_of_image = defaultdict(list), defaultdict(dict)
    for image in images:
        name, size = image['file_name'], [image['height'], image['width']]
        for ref in image['refs']:
            where = f'ref {ref["ref_id"]}'
            splits_of_image[name][ref['split']] = True
            yield from _check_sentences(ref, where, context_length)
            if ref['segmentation'] is None:
                continue
            # The list of several objects (gRefCOCO) is not an annotation.
            if not isinstance(ref['ann_id'], list):
                refs_of_ann[ref['split'], name, str(ref['ann_id'])].append(
                    ref['ref_id'])
            if ref['area'] < TINY:
                yield Fault('tiny-mask', where, f'its mask in {name} has only '
                            f'{ref["area"]} pixels')
            if is_outside(ref['segmentation'], *size):
                yield Fault(
                    'partly-outside', where, 'its polygon leaves the image '
                    f'{name} of size {size} (height, width)')
    for (split, _, ann_id), refs in refs_of_ann.items():
        if len(refs) > 1:
            yield Fault(
                'duplicate-annotation', f'ref {refs[1]}',
                f'the refs {", ".join(map(str, refs))} of split {split} all '
                f'have the annotation {ann_id}')
    for name, splits in splits_of_image.items():
        if splits.pop('train', False) and splits:
            yield Fault('leaking-image', name,
                        f'it is in train and in {", ".join(splits)}')


def _check_sentences(ref: dict, where: str,
                     context_length: int) -> Iterator[Fault]:
    seen = set()
    for sentence in ref['sentences']:
        words = ' '.join(sentence.lower().split())
        if not words:
            yield Fault('empty-sentence', where, 'it has an empty sentence')
        elif words in seen:
            yield Fault('duplicate-sentence', where,
                        f'it has the sentence {sentence!r} twice')
        seen.add(words)
        length = count_tokens(sentence)
        if length > context_length:
            yield Fault(
                'long-sentence', where,
                f'{sentence!r} has {length} tokens with start and end, more '
                f'than the context length of {context_length}')


def _decode_all(images: dict[str, dict], folder: str,
                workers: int) -> Iterator[Fault]:
    decode = partial(_decode, folder=folder)
    if workers:
        with ProcessPoolExecutor(workers) as pool:
            results = list(pool.map(decode, images.values(), chunksize=16))
    else:
        results = map(decode, images.values())
    seen: dict[str, str] = {}
    for name, (digest, message) in zip(images, results, strict=True):
        if message:
            yield Fault('bad-image', name, message)
        elif seen.setdefault(digest, name) != name:
            yield Fault('duplicate-image', name,
                        f'it is the same file as {seen[digest]}')


def _decode(image: dict, folder: str) -> tuple[str, str]:
    """Digest of an image file and, if it cannot be decoded, why."""
    name = image['file_name']
    try:
        content = image_content(image, folder)
        open_image(content, name).load()
    except Exception as error:  # decoders raise all kinds of errors
        return '', f'{name} cannot be decoded: {error}'
    return hashlib.sha256(content).hexdigest(), ''
