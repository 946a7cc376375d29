# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""A cache of the records read from annotation files.

A cache file is a line of JSON, ``{format, key, files, states, digest}``, and a
body of JSON. It is used only if the key (the request and the content of the
annotation files), the states of the mask files (size and times) and the digest
of the body agree. It is not a pickle, so that it cannot run code.
"""
import hashlib
import json
import os
import os.path as osp
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from mmengine.logging import print_log

from cris.io.files import dump_json, parse_json

_FORMAT = 3  # raise it with every change of the records


def cached(folder: str | None, request: Sequence, files: Sequence[str],
           compute: Callable[[], tuple[Any, Sequence[str] | None]]) -> Any:
    """The result of ``compute``, from the cache if possible.

    Args:
        folder (str, optional): Folder of the cache files; '' for no cache.
        request (Sequence): Everything else on which the result depends.
        files (Sequence[str]): Annotation files that are read.
        compute (Callable): Returns the result, of JSON's types, and further
            files on which it depends, or None if it must not be cached.
    """
    if not folder:
        return compute()[0]
    name = _digest([*request, *files])[:16]
    path = osp.join(folder, f'{name}.json')
    key = _digest([_FORMAT, *request, *map(_content, files)])
    value = _read(path, key)
    if value is None:
        value, more = compute()
        if more is not None:
            _write(path, key, value, more)
    return value


def _digest(content: bytes | list) -> str:
    if isinstance(content, list):
        content = json.dumps(content).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _content(path: str) -> str | None:
    """A digest of a file, None if it does not exist."""
    if not osp.isfile(path):
        return None
    if path.endswith('.parquet'):  # large: it may hold the pictures
        return _states([path])
    digest = hashlib.blake2b(digest_size=16)
    with open(path, 'rb') as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _states(files: Sequence[str]) -> str:
    """A digest of the sizes and times of files."""
    states = [os.stat(path) if osp.exists(path) else None for path in files]
    return _digest([state and [state.st_size, state.st_mtime_ns,
                               state.st_ctime_ns] for state in states])


def _read(path: str, key: str) -> Any:
    try:
        with open(path, 'rb') as file:
            head = json.loads(file.readline())
            if head['key'] != key or head['states'] != _states(head['files']):
                return None
            body = file.read()
        if head['digest'] != _digest(body):
            raise ValueError('its digest is wrong')
        return parse_json(body)
    except OSError:
        return None
    except (AttributeError, KeyError, TypeError, ValueError,
            RecursionError) as error:
        print_log(f'the cache {path} is broken and is rewritten: {error!r}',
                  'current')
        return None


def _write(path: str, key: str, value: Any, files: Sequence[str]) -> None:
    try:
        body = dump_json(value)
        if parse_json(body) != value:
            raise ValueError('there are ids that are not numbers or strings')
        head = dict(format=_FORMAT, key=key, files=list(files),
                    states=_states(files), digest=_digest(body))
        os.makedirs(osp.dirname(path), exist_ok=True)
        part = f'{path}.{uuid.uuid4().hex}'  # other processes write it, too
        try:
            with open(part, 'xb') as file:
                file.write(json.dumps(head).encode() + b'\n' + body)
            os.replace(part, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(part)
    except (TypeError, ValueError) as error:
        print_log(f'not cached: {error}', 'current')
    except OSError as error:
        print_log(f'no cache is written: {error}; give cache_dir a folder '
                  'that can be written, or cache_dir=False', 'current')
