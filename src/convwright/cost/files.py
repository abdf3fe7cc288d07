"""Tables as files, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convwright.errors import ConvwrightError
from convwright.files import replacing


def write_csv(path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]]) -> None:
    """One line a record (RFC 4180), the columns of the first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else ["name"])
    writer.writeheader()
    writer.writerows(records)
    _write(path, text.getvalue())


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    _write(path, json.dumps(value, indent=2) + "\n")


def _write(path: str | os.PathLike[str], text: str) -> None:
    place = Path(path)
    try:
        if place.is_dir():
            raise ConvwrightError(f"cannot write {str(place)!r}: it is a directory")
        with replacing(place) as file:
            file.write(text.encode())
    except OSError as error:
        raise ConvwrightError(f"cannot write {str(place)!r}: {error.strerror or error}") from error
