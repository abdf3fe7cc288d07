"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(place: Path) -> Iterator[BinaryIO]:
    """A temporary file in the same folder that takes the name on success and vanishes on failure.

    Its permissions are those of a file that the process would create. Raises OSError, with the place's name.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(place)) from None
    try:
        with open(descriptor, "wb") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
