# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Records: the common result of all readers of annotation files.

A record is an image with its refs:
``dict(file_name, img_id, height, width, refs)``. A ref is
``dict(ref_id, ann_id, split, category, segmentation, area, sent_ids,
sentences)``: no, one or several objects, and the sentences that refer to
them. See masks.py for the segmentation; the area is in pixels. A ref may have
``ignore``, a region that counts neither as target nor as background, and a
``kind``, by which scores are grouped. An image
whose picture is in a parquet file has ``picture``, ``[path, row]`` (its
content in samples that are read on demand), and ``picture_size`` if that is
not the annotated one.
"""
import os.path as osp
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from cris.io.files import FileError

from .masks import (
    MaskError,
    Segmentation,
    encode_mask,
    is_outside,
    mask_area,
    mask_files,
)

_SAMPLE_KEYS = ('ref_id', 'ann_id', 'segmentation', 'ignore', 'kind',
                'sent_ids', 'sentences')
_MAX_LISTED = 10
_MAX_SENTENCE = 5000  # characters; tokenizing longer texts takes seconds


class Fault(NamedTuple):
    """A fault of an entry; ``where`` names the entry."""
    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f'{self.where}: {self.message}' if self.where else self.message


class EntryError(FileError):
    """An entry that cannot be used; ``kind`` is that of its fault."""

    def __init__(self, message: str, kind: str = 'bad-entry'):
        super().__init__(message, kind)


class Records(NamedTuple):
    """What a reader returns.

    Args:
        images (list[dict]): The records.
        faults (list[Fault]): Entries that are not among them, and why.
        files (list[str]): The mask files that were read.
        notes (list[str]): Log messages about entries left out on purpose,
            e.g. '342 of 382 annotations have no expressions'.
    """
    images: list[dict]
    faults: list[Fault]
    files: list[str] = []
    notes: list[str] = []


class RecordBuilder:
    """Collects refs by image, in the order in which they are added."""

    def __init__(self):
        self.images: dict[int | str, dict] = {}
        self.faults: list[Fault] = []
        self.files: list[str] = []
        self.notes: list[str] = []
        self.dropped: Counter[str] = Counter()  # what was left out, how often
        self._ref_ids: set[int | str] = set()
        self._num_sent_ids = 0

    @contextmanager
    def entry(self, where: str) -> Iterator[None]:
        """Turn a data error in the block into a fault of the entry ``where``.

        Data errors are FileError (and so EntryError) and OSError. Any other
        error is a bug in the code and is not caught.
        """
        try:
            yield
        except (FileError, OSError) as error:
            self.fault(getattr(error, 'kind', 'bad-entry'), where, str(error))

    def fault(self, kind: str, where: str, message: str) -> None:
        self.faults.append(Fault(kind, where, message))

    def add(self, image: dict, *, ref_id: int | str, ann_id: Any, split: Any,
            segmentation: Segmentation, sentences: list[str],
            sent_ids: Any = None, category: Any = None,
            ignore: Segmentation = None, kind: Any = None) -> None:
        """Check a ref and add it to its image.

        Args:
            image (dict): ``file_name, img_id, height, width``.
            ref_id (int | str): Unique among all refs.
            sent_ids (list, optional): One per sentence; counted up over all
                refs by default.
            **others: As in records. What is not text becomes text in split,
                category and kind.

        Raises:
            EntryError: If the ref cannot be used.
        """
        if not isinstance(sent_ids, list | None):
            raise EntryError(f'its sent_ids {reprlib.repr(sent_ids)} are not '
                             'a list', 'bad-sentence')
        self.files += mask_files(segmentation)
        if sent_ids is None:
            first = self._num_sent_ids
            self._num_sent_ids += len(sentences)
            sent_ids = list(range(first, self._num_sent_ids))
        img_id, name = image['img_id'], image['file_name']
        check_id('image_id', img_id)
        check_id('ref_id', ref_id)
        if ref_id in self._ref_ids:
            raise EntryError('two refs have this id; give each a unique one',
                             'duplicate-ref')
        known = self.images.get(img_id, image)['file_name']
        if known != name:
            raise EntryError(f'its image {name!r} has the id {img_id!r} of '
                             f'{known!r}; give each a unique one',
                             'duplicate-id')
        _check_sentences(sentences, sent_ids)
        area = _checked_area(segmentation, image['height'], image['width'],
                             f'the mask of its ann_id {short(ann_id)}')
        ref = dict(
            ref_id=ref_id, ann_id=ann_id, split=short(split),
            category=None if category is None else short(category),
            segmentation=segmentation, sent_ids=sent_ids, sentences=sentences,
            area=area)
        if ignore is not None:
            _checked_area(ignore, image['height'], image['width'],
                          'its region to ignore')
            ref['ignore'] = ignore
        if kind is not None:
            ref['kind'] = short(kind)
        self._ref_ids.add(ref_id)
        image = self.images.setdefault(img_id, dict(image, refs=[]))
        image['refs'].append(ref)

    def records(self) -> Records:
        notes = [f'{n} {what}' for what, n in self.dropped.items()]
        return Records(list(self.images.values()), self.faults, self.files,
                       self.notes + notes)


def check_id(name: str, value: Any) -> None:
    """Raise an EntryError that names an id which is not hashable."""
    try:
        hash(value)
    except TypeError as error:
        raise EntryError(f'its {name} {reprlib.repr(value)} is not a number '
                         'or string') from error


def _check_sentences(sentences: list[str], sent_ids: list) -> None:
    if not sentences:
        raise EntryError('it has no sentence', 'no-sentence')
    for sentence in sentences:
        if len(sentence) > _MAX_SENTENCE:
            raise EntryError(
                f'its sentence {sentence[:60]!r}... has {len(sentence)} '
                f'characters, more than {_MAX_SENTENCE}', 'bad-sentence')
        try:
            sentence.encode()
        except UnicodeEncodeError as error:
            raise EntryError(f'its sentence {sentence!r} is not Unicode '
                             f'text: {error}', 'bad-sentence') from error
    if len(sent_ids) != len(sentences):
        raise EntryError(f'it has {len(sent_ids)} sent_ids for '
                         f'{len(sentences)} sentences', 'bad-sentence')


def _checked_area(segmentation: Segmentation, height: int, width: int,
                  what: str) -> int:
    """Area of a mask in pixels, 0 only if there is no target."""
    if segmentation is None:
        return 0
    try:
        area = 0 if segmentation == [] else mask_area(
            segmentation, height, width)
    except FileNotFoundError as error:
        raise EntryError(f'{what} is missing: the file {error.filename} does '
                         'not exist', 'missing-mask') from error
    except (FileError, OSError) as error:
        kind = error.kind if isinstance(error, MaskError) else 'bad-mask'
        raise EntryError(f'{what} cannot be read: {error}', kind) from error
    if area == 0 and is_outside(segmentation, height, width):
        raise EntryError(f'{what} is empty: it lies outside the image',
                         'outside-image')
    if area == 0:
        raise EntryError(f'{what} is empty', 'empty-mask')
    return area


def samples_of(image: dict, folder: str, count: int | None) -> list[dict]:
    """The samples of a dataset that an image yields.

    Args:
        image (dict): A record.
        folder (str): Of the images.
        count (int, optional): Refs of a sample in training, K. None, for
            evaluation, makes one sample of all.
    """
    refs = [{key: ref[key] for key in _SAMPLE_KEYS if key in ref}
            for ref in image['refs']]
    sample = {key: value for key, value in image.items()
              if key != 'file_name'}
    sample['img_path'] = osp.join(folder, image['file_name'])
    if count is None:
        return [dict(sample, refs=refs)]
    return [dict(sample, refs=refs[i:i + count], num_expressions=count)
            for i in range(0, len(refs), count)]


def plain_rle(segmentation: Segmentation, height: int, width: int) -> dict:
    """Encode a segmentation as ``dict(size, counts)`` for JSON."""
    rle = encode_mask(segmentation, height, width)
    return dict(size=[height, width], counts=rle['counts'].decode())


def as_splits(split: str | Iterable[str] | None) -> list[str] | None:
    """One split or several as a list; None (all splits) stays None."""
    return [split] if isinstance(split, str) else split and list(split)


def short(value: Any) -> str:
    """A value in a message: text as it is, anything else abbreviated."""
    return value if isinstance(value, str) else reprlib.repr(value)


def raise_faults(faults: Iterable[Fault | str], where: str) -> None:
    """Raise a ValueError that lists all faults of files, if there are any."""
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
