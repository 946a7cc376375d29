# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Records: what every reader makes of annotation files.

One record is an image with its refs:
``dict(file_name, img_id, height, width, refs)``; a ref is
``dict(ref_id, ann_id, split, category, segmentation, area, sent_ids,
sentences)``: an object (several, or none) with the sentences that mean it.
See masks.py for the segmentation; the area is in pixels. An image inside an
LMDB has ``img_path``, too.
"""
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .masks import Segmentation, encode_mask, is_outside, mask_area

_MAX_LISTED = 10
_MAX_SENTENCE = 5000  # characters; the tokenizer's time grows faster


class Fault(NamedTuple):
    """Something wrong with one entry: its kind, where, and what."""
    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f'{self.where}: {self.message}' if self.where else self.message


class EntryError(ValueError):
    """Why an entry cannot be used; ``kind`` is that of its fault."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class Records(NamedTuple):
    """What a reader returns.

    Args:
        images (list[dict]): The records.
        faults (list[Fault]): Entries that are not among them, and why.
        files (list[str]): The mask files that were read.
        notes (list[str]): Sentences about what was left out without being a
            fault, e.g. '342 of 382 annotations have no expressions'.
    """
    images: list[dict]
    faults: list[Fault]
    files: list[str] = []
    notes: list[str] = []


class RecordBuilder:
    """Collects refs by image, in the order in which they are added.

    Faults are collected, too: :meth:`entry` turns what is raised while an
    entry is read into one of them.
    """

    def __init__(self):
        self.images: dict[Any, dict] = {}
        self.faults: list[Fault] = []
        self.notes: list[str] = []
        self._ref_ids = set()

    def entry(self, where: str) -> '_Entry':
        """Context in which an error is a fault of the entry ``where``."""
        return _Entry(self.faults, where)

    def fault(self, kind: str, where: str, message: str) -> None:
        self.faults.append(Fault(kind, where, message))

    def add(self, image: dict, ref: dict) -> None:
        """Verify a ref and add it to its image.

        Args:
            image (dict): ``file_name, img_id, height, width``.
            ref (dict): A ref without its area.

        Raises:
            EntryError: If the ref cannot be used.
        """
        if ref['ref_id'] in self._ref_ids:
            raise EntryError('duplicate-ref', 'two refs have this id; give '
                             'each its own')
        known = self.images.get(image['img_id'], image)
        if known['file_name'] != image['file_name']:
            raise EntryError(
                'duplicate-id', f'its image {image["file_name"]!r} has the '
                f'id {image["img_id"]!r} of {known["file_name"]!r}; give each '
                'its own')
        area = verified_area(ref, image['height'], image['width'])
        self._ref_ids.add(ref['ref_id'])
        self.images.setdefault(image['img_id'],
                               dict(image, refs=[]))['refs'].append(
                                   dict(ref, area=area))

    def records(self, files: Sequence[str] = ()) -> Records:
        return Records(
            list(self.images.values()), self.faults, list(files), self.notes)


class _Entry:

    def __init__(self, faults: list[Fault], where: str):
        self._faults, self._where = faults, where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> bool:
        if isinstance(error, EntryError):
            self._faults.append(Fault(error.kind, self._where, str(error)))
        elif isinstance(error, FileNotFoundError):
            self._faults.append(
                Fault('missing-file', self._where,
                      f'the file {error.filename} does not exist'))
        elif isinstance(error, (AttributeError, KeyError, OSError, TypeError,
                                RecursionError, ValueError)):
            text = f'it has no {error}' if isinstance(error,
                                                      KeyError) else str(error)
            self._faults.append(Fault('bad-entry', self._where, text))
        else:
            return False
        return True


def verified_area(ref: dict, height: int, width: int) -> int:
    """Verify sentences and mask of a ref; return the mask's area in pixels.

    Raises:
        EntryError: If there is no sentence, or the mask is empty, broken or
            of another size.
    """
    if not ref['sentences']:
        raise EntryError('no-sentence', 'it has no sentence')
    for sentence in ref['sentences']:
        if not isinstance(sentence, str):
            raise EntryError('bad-sentence', f'its sentence {sentence!r} is '
                             'no string')
        if len(sentence) > _MAX_SENTENCE:
            raise EntryError(
                'bad-sentence', f'its sentence {sentence[:60]!r}... has '
                f'{len(sentence)} characters, more than {_MAX_SENTENCE}')
        try:
            sentence.encode()
        except UnicodeEncodeError as error:
            raise EntryError('bad-sentence', f'its sentence {sentence!r} is '
                             f'no Unicode text: {error}') from error
    if len(ref['sent_ids']) != len(ref['sentences']):
        raise EntryError(
            'bad-sentence', f'it has {len(ref["sent_ids"])} sent_ids for '
            f'{len(ref["sentences"])} sentences')
    if ref['segmentation'] is None:
        return 0
    what = f'the mask of its ann_id {ref["ann_id"]}'
    if ref['segmentation'] == []:
        raise EntryError('empty-mask', f'{what} is empty')
    try:
        area = mask_area(ref['segmentation'], height, width)
    except FileNotFoundError as error:
        raise EntryError('missing-mask',
                         f'{what} is missing: the file {error.filename} does '
                         'not exist') from error
    except Exception as error:  # pycocotools raises whatever comes
        kind = 'mask-size' if ' of size ' in str(error) else 'bad-mask'
        raise EntryError(kind, f'{what} cannot be read: {error}') from error
    if area == 0 and is_outside(ref['segmentation'], height, width):
        raise EntryError('outside-image', f'{what} is empty: it lies outside '
                         'the image')
    if area == 0:
        raise EntryError('empty-mask', f'{what} is empty')
    return area


def plain_rle(segmentation: Segmentation, height: int, width: int) -> dict:
    """A segmentation -> ``dict(size, counts)`` that JSON can hold."""
    rle = encode_mask(segmentation, height, width)
    counts = rle['counts']
    return dict(
        size=[height, width],
        counts=counts if isinstance(counts, str) else counts.decode())


def as_splits(split: Any) -> list[str] | None:
    """A split or several -> a list; None, which means all, stays."""
    return [split] if isinstance(split, str) else split and list(split)


def raise_faults(faults: Iterable, where: str) -> None:
    """Raise one ValueError that lists what is wrong, if anything is."""
    faults = [str(fault) for fault in faults]
    if not faults:
        return
    listed = '\n  '.join(faults[:_MAX_LISTED])
    more = len(faults) - _MAX_LISTED
    raise ValueError(
        f'{len(faults)} fault(s) in {where}:\n  {listed}' +
        (f'\n  ... and {more} more' if more > 0 else '') +
        '\nCorrect these entries, or remove them from the annotation files; '
        "on_error='skip' leaves them out and counts them.")
