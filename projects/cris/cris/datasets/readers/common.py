# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""What the readers of own data share."""
import reprlib
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..files import image_size, safe_join
from ..records import EntryError


class ImageFolder:
    """Sizes of the images of a folder, each header read once.

    Args:
        folder (str): The folder.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self._sizes: Dict[str, Any] = {}

    def image(self, name: Any, img_id: Any = None) -> dict:
        """The image of an entry, as records have it, without refs.

        Args:
            name (str): File name, relative to the folder.
            img_id (int | str, optional): Its id; the name by default.

        Raises:
            EntryError: If the name leaves the folder, or the file is missing,
                no image, broken or too large.
        """
        try:
            path = safe_join(self.folder, name)
        except ValueError as error:
            raise EntryError('unsafe-name', f'its image: {error}') from error
        if name not in self._sizes:
            self._sizes[name] = _size_or_error(path)
        size = self._sizes[name]
        if isinstance(size, EntryError):
            raise size
        return dict(
            file_name=name,
            img_id=name if img_id is None else img_id,
            height=size[0],
            width=size[1])


def _size_or_error(path: str) -> Any:
    try:
        return image_size(path)
    except OSError:
        return EntryError('missing-image', f'image file {path} does not exist')
    except ValueError as error:
        kind = 'image-too-large' if 'limit' in str(error) else 'bad-image'
        return EntryError(kind, str(error))


def mask_path(folder: str, name: Any) -> str:
    """The path of a mask file that an entry names.

    Raises:
        EntryError: If the name leaves the folder of masks.
    """
    try:
        return safe_join(folder, name)
    except ValueError as error:
        raise EntryError('unsafe-name', f'its mask: {error}') from error


def flatten(value: Any) -> List[str]:
    """All strings in lists and dicts of any depth, in their order.

    Raises:
        EntryError: If there is anything else among them.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        raise EntryError('bad-sentence', f'{reprlib.repr(value)} among its '
                         'sentences is no string, list or dict')
    return [text for item in value for text in flatten(item)]


def sentence_ids(ids: Optional[Sequence], first: int,
                 count: int) -> Tuple[list, int]:
    """Ids of an entry's sentences and the next free one.

    Args:
        ids (list, optional): What the entry says.
        first (int): The id to go on with where it says nothing.
        count (int): How many sentences it has.
    """
    if ids is None:
        return list(range(first, first + count)), first + count
    if not isinstance(ids, list):
        raise EntryError('bad-sentence', f'its sent_ids {reprlib.repr(ids)} '
                         'are no list')
    return ids, first
