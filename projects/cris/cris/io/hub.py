# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Files of the Hugging Face Hub: whole, or not at all."""
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .files import FileError

PREFIX = 'hf://'
_BLOCK = 1 << 22  # bytes


def fetch(url: str) -> str:
    """Path of a file of the Hub; it is downloaded if it is not in the cache.

    The Hub's own settings apply: ``HF_ENDPOINT``, ``HF_HOME``,
    ``HF_TOKEN``, ``HF_HUB_OFFLINE``.

    Args:
        url (str): ``hf://OWNER/REPO/FILE`` or ``hf://OWNER/REPO@REVISION/FILE``
            of a model.

    Raises:
        ValueError: If the URL has another form.
        FileNotFoundError, OSError, ImportError: As of :func:`download`.
    """
    match = re.fullmatch(r'hf://([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)', url)
    if match is None:
        raise ValueError(f'{url!r} is not of the form '
                         'hf://OWNER/REPO/FILE or '
                         'hf://OWNER/REPO@REVISION/FILE')
    repo, revision, name = match.groups()
    return download(repo, name, 'model', revision=revision)


def list_files(repo: str, kind: str = 'dataset') -> dict[str, int]:
    """Files of a repository with their sizes in bytes.

    Raises:
        FileNotFoundError: If there is no such repository.
        ConnectionError: If the Hub does not answer.
        ImportError: If huggingface_hub is missing.
    """
    hub = _hub()
    with _explained(hub, repo, kind):
        info = hub.HfApi().repo_info(repo, repo_type=kind, files_metadata=True)
        return {file.rfilename: file.size or 0 for file in info.siblings}


def download(repo: str,
             name: str,
             kind: str = 'dataset',
             folder: str | None = None,
             revision: str | None = None) -> str:
    """Download a file, or go on with a download that was interrupted.

    Args:
        repo (str): ``OWNER/REPO``.
        name (str): The file in it.
        kind (str): 'dataset' or 'model'.
        folder (str, optional): Where to write it; the Hub's cache by default.
        revision (str, optional): Branch, tag or commit.

    Returns:
        str: Path of the file. Its size and, where the Hub has one, its
        SHA-256 are those of the Hub.

    Raises:
        FileNotFoundError: If there is no such repository or file.
        ConnectionError: If the Hub does not answer.
        FileError: If the content is not that of the Hub ('bad-file'); it is
            removed.
        OSError: If the disk is full, or hf_xet fails.
        ImportError: If huggingface_hub is missing.
    """
    hub = _hub()
    options = dict(repo_type=kind, revision=revision)
    with _explained(hub, repo, kind, name):
        before = hub.try_to_load_from_cache(repo, name, **options)
        path = hub.hf_hub_download(repo, name, local_dir=folder, **options)
        if folder is None and before == path:
            return path  # checked when it was downloaded
        url = hub.hf_hub_url(repo, name, **options)
        found = hub.get_hf_file_metadata(url)
    if re.fullmatch('[0-9a-f]{64}', found.etag or '') and (
            _sha256(path) != found.etag):
        os.remove(os.path.realpath(path))
        raise FileError(
            f'{name} of {repo} arrived with another SHA-256 than the Hub has '
            f'({found.etag}): it is removed; try again')
    return path


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError('files of the Hugging Face Hub need '
                          'huggingface_hub: pip install huggingface_hub'
                          ) from error
    return huggingface_hub


@contextmanager
def _explained(hub: Any, repo: str, kind: str, name: str = '') -> Iterator:
    """Raise the Hub's errors as built-in ones that say what to do."""
    not_shown = (
        f'the Hub shows no {kind} {repo}: check owner and name. A private or '
        'gated one needs a token in HF_TOKEN, and its terms accepted on its '
        'page')
    try:
        yield
    except hub.errors.HFValidationError as error:
        raise FileNotFoundError(f'{repo!r} is not a name on the Hub; it has '
                                'the form OWNER/REPO') from error
    except hub.errors.RepositoryNotFoundError as error:  # or a gated one
        raise FileNotFoundError(not_shown) from error
    except hub.errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f'{repo} has no such revision') from error
    except hub.errors.LocalEntryNotFoundError as error:
        raise ConnectionError(
            f'{name} of {repo} is not in the cache of this machine, and the '
            f'Hub cannot be reached: {_line(error.__cause__ or error)}'
        ) from error
    except hub.errors.EntryNotFoundError as error:
        near = difflib.get_close_matches(name, list_files(repo, kind), 3, 0.3)
        raise FileNotFoundError(
            f'{repo} has no file {name}; near it: '
            f'{", ".join(near) or "none"}') from error
    except (hub.errors.HfHubHTTPError, hub.errors.HTTPError) as error:
        response = getattr(error, 'response', None)
        if response is not None and response.status_code in (401, 403):
            raise FileNotFoundError(not_shown) from error
        raise ConnectionError(
            f'{hub.constants.ENDPOINT} does not serve {name or repo}: '
            f'{_line(error)}') from error
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError,
            UnicodeDecodeError) as error:  # of the Hub's client
        raise ConnectionError(
            f'{hub.constants.ENDPOINT} does not answer as the Hub does: does '
            'this network want a login, or is HF_ENDPOINT wrong?') from error
    except RuntimeError as error:  # hf_xet has no other class
        raise OSError(
            f'{name} of {repo} could not be downloaded: {_line(error)}. With '
            'HF_HUB_DISABLE_XET=1 it comes another way') from error


def _line(error: BaseException) -> str:
    """The first line of a message; the Hub's client explains at length."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
