"""Tables as files, written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from convwright.errors import ConvwrightError


@contextlib.contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A temporary file beside `path` that takes its name on success and vanishes on failure."""
    place = Path(path)
    temporary = ""
    try:
        if place.is_dir():
            raise ConvwrightError(f"cannot write {str(place)!r}: it is a directory")
        handle, temporary = tempfile.mkstemp(prefix=f".{place.name}-", dir=place.parent)
        with open(handle, "w", encoding="utf-8", newline="") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, place)
    except BaseException as error:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise ConvwrightError(f"cannot write {str(place)!r}: {error.strerror or error}") from error
        raise


def write_csv(path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]]) -> None:
    """One line a record, the columns of the first."""
    with _replacing(path) as file:
        writer = csv.DictWriter(file, list(records[0]) if records else ["name"])
        writer.writeheader()
        writer.writerows(records)


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    with _replacing(path) as file:
        json.dump(value, file, indent=2)
        file.write("\n")
