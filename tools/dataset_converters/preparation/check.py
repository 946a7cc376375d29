# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Everything that can be wrong with a data set, found before it is used."""
import hashlib
import os.path as osp
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from cris.datasets.headers import check_headers
from cris.datasets.masks import is_outside
from cris.datasets.records import Fault
from cris.datasets.tokenizer import count_tokens
from cris.io.files import read_bytes
from cris.io.images import is_truncated_jpeg, open_image

from .layouts import Located

#: Masks with fewer pixels are reported.
TINY = 16
#: What can be lived with; every other kind makes a set unusable.
WARNINGS = {
    'duplicate-annotation':
    'several refs of a split mean the same annotation',
    'duplicate-image':
    'the same image file under two names',
    'duplicate-sentence':
    'a sentence twice in one ref',
    'empty-sentence':
    'a sentence without a word: it says nothing to the model',
    'leaking-image':
    'an image of train that is in another split, too (in the google splits '
    'of RefCOCO they are by design); exclude=[...] of the data set leaves '
    'them out of training',
    'long-sentence':
    'a sentence that is cut at the context length',
    'partly-outside':
    'a polygon with points outside the image; what is outside is lost',
    'tiny-mask':
    f'a mask of fewer than {TINY} pixels',
}


class Result(NamedTuple):
    """What :func:`check` found.

    Args:
        name (str): Of the data set.
        split_by (str, optional): Which splits.
        counts (dict): By split: refs, sentences and images that can be used.
        findings (list[Fault]): Faults and warnings, in a fixed order.
        images (list[dict]): The records.
        img_folder (str, optional): Where the images lie.
    """
    name: str
    split_by: str | None
    counts: dict[str, dict[str, int]]
    findings: list[Fault]
    images: list[dict]
    img_folder: str | None

    @property
    def errors(self) -> list[Fault]:
        return [f for f in self.findings if f.kind not in WARNINGS]

    @property
    def usable(self) -> bool:
        return not self.errors and bool(self.images)


def check(located: Located,
          context_length: int | None = None,
          decode_images: bool = False,
          workers: int = 0) -> Result:
    """Read a data set and report whatever is wrong with it.

    Args:
        located (Located): Its files.
        context_length (int, optional): At which sentences are cut; that of
            the data set by default.
        decode_images (bool): Whether to decode every image, not only to read
            its header.
        workers (int): Processes that decode images; 0 for this one.

    Returns:
        Result: Nothing is raised for what is wrong with the data.
    """
    findings = list(located.missing)
    images: list[dict] = []
    if located.can_be_read:
        try:
            images, faults = located.read()[:2]
            findings += _once_per_image(faults)
        except (ImportError, OSError, ValueError) as error:
            findings.append(Fault('broken-file', '', str(error)))
    if located.img_folder and osp.isdir(located.img_folder):
        findings += _once_per_image(
            check_headers(images, located.img_folder))
    if decode_images:
        findings += _decode_all(images, located, findings, workers)
    findings += _refs(images, context_length
                      or located.dataset.context_length)
    findings += _leaks(images)
    counts = count_splits(images)
    if located.can_be_read:
        findings += _counts(counts, located)
    return Result(located.name, located.split_by, counts, findings, images,
                  located.img_folder)


def count_splits(images: list[dict]) -> dict[str, dict[str, int]]:
    """Refs, sentences and images by split."""
    counts: dict[str, dict[str, int]] = {}
    names = defaultdict(set)
    for image in images:
        for ref in image['refs']:
            split = counts.setdefault(
                ref['split'], dict(refs=0, sentences=0, images=0))
            split['refs'] += 1
            split['sentences'] += len(ref['sentences'])
            names[ref['split']].add(image['file_name'])
    for split, files in names.items():
        counts[split]['images'] = len(files)
    return counts


def _once_per_image(faults: list[Fault]) -> list[Fault]:
    """Without the repetitions of an image's fault in each of its entries."""
    firsts: dict[Any, Fault] = {}
    for i, fault in enumerate(faults):
        of_image = fault.kind in ('missing-image', 'bad-image', 'image-size',
                                  'image-too-large')
        firsts.setdefault(fault[::2] if of_image else i, fault)
    return list(firsts.values())


def _counts(counts: dict[str, dict[str, int]],
            located: Located) -> Iterator[Fault]:
    published = located.dataset.counts.get(located.split_by or '', {})
    total = {
        key: sum(split[key] for split in counts.values())
        for key in ('refs', 'sentences', 'images')
    }
    for split, numbers in published.items():
        found = total if split == 'all' else counts.get(split, {})
        for key, number in zip(('refs', 'sentences', 'images'), numbers,
                               strict=True):
            if number is not None and found.get(key, 0) != number:
                yield Fault(
                    'wrong-count', f'split {split}',
                    f'{found.get(key, 0)} {key} can be used, but '
                    f'{located.name} ({located.split_by}) has {number}: the '
                    'files are incomplete or of another version, or entries '
                    'are at fault')


def _refs(images: list[dict], context_length: int) -> Iterator[Fault]:
    anns = defaultdict(list)
    for image in images:
        for ref in image['refs']:
            where = f'ref {ref["ref_id"]}'
            yield from _sentences(ref, where, context_length)
            if ref['segmentation'] is None:
                continue
            # Several objects, as in gRefCOCO, are no annotation of their own.
            if not isinstance(ref['ann_id'], list):
                anns[ref['split'], image['file_name'],
                     str(ref['ann_id'])].append(ref['ref_id'])
            if ref['area'] < TINY:
                yield Fault(
                    'tiny-mask', where, f'its mask in {image["file_name"]} '
                    f'has only {ref["area"]} pixels')
            if is_outside(ref['segmentation'], image['height'],
                          image['width']):
                yield Fault(
                    'partly-outside', where, 'its polygon leaves the image '
                    f'{image["file_name"]} of size '
                    f'{[image["height"], image["width"]]} (height, width)')
    for (split, _, ann_id), refs in anns.items():
        if len(refs) > 1:
            listed = ', '.join(map(str, refs))
            yield Fault('duplicate-annotation', f'ref {refs[1]}',
                        f'the refs {listed} of split {split} all mean the '
                        f'annotation {ann_id}')


def _sentences(ref: dict, where: str, context_length: int) -> Iterator[Fault]:
    seen = set()
    for sentence in ref['sentences']:
        words = ' '.join(sentence.lower().split())
        if not words:
            yield Fault('empty-sentence', where, 'it has an empty sentence')
        elif words in seen:
            yield Fault('duplicate-sentence', where,
                        f'it says {sentence!r} twice')
        seen.add(words)
        length = count_tokens(sentence)
        if length > context_length:
            yield Fault(
                'long-sentence', where,
                f'{sentence!r} has {length} tokens with start and end, more '
                f'than the context length of {context_length}')


def _leaks(images: list[dict]) -> Iterator[Fault]:
    splits = defaultdict(dict)
    for image in images:
        for ref in image['refs']:
            splits[image['file_name']].setdefault(ref['split'])
    for name, found in splits.items():
        others = [split for split in found if split != 'train']
        if 'train' in found and others:
            yield Fault('leaking-image', name,
                        f'it is in train and in {", ".join(others)}')


def _decode_all(images: list[dict], located: Located, known: list[Fault],
                workers: int) -> Iterator[Fault]:
    bad = {fault.where for fault in known}
    paths = {
        image['file_name']:
        image.get('img_path')
        or osp.join(located.img_folder, image['file_name'])
        for image in images if image['file_name'] not in bad
    }
    if workers:
        with ProcessPoolExecutor(workers) as pool:
            results = list(pool.map(_decode, paths.values(), chunksize=16))
    else:
        results = list(map(_decode, paths.values()))
    seen: dict[str, str] = {}
    for name, (digest, message) in zip(paths, results, strict=True):
        if message:
            yield Fault('bad-image', name, message)
        elif digest in seen:
            yield Fault('duplicate-image', name,
                        f'it is the same file as {seen[digest]}')
        else:
            seen[digest] = name


def _decode(path: str) -> Any:
    """Digest of an image file and what is wrong with it, if anything."""
    try:
        content = read_bytes(path)
        truncated = is_truncated_jpeg(content)
        if not truncated:
            open_image(content, path).load()
    except Exception as error:  # whatever a decoder raises
        return '', f'{path} cannot be decoded: {error}'
    if truncated:
        return '', f'{path} cannot be decoded: the JPEG ends too early'
    return hashlib.blake2b(content, digest_size=16).hexdigest(), ''


