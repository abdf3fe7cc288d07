"""What was measured once and need not be measured again: JSON values in one SQLite file beside the object cache.

A key says what a value holds for; who writes one puts the machine, the version and everything else into it that the
value depends on. Processes may write at the same time. The file holds nothing that cannot be measured again: one that
is damaged is replaced, one that cannot be used is gone without, and `CONVWRIGHT_CACHE=off` keeps none.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from convwright.codegen.cache import cache_directory

_FILE = "measured.sqlite"
_WAIT_SECONDS = 10.0
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)  # the last: another table of this name
_TABLE = (
    "CREATE TABLE IF NOT EXISTS measured (kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, "
    "PRIMARY KEY (kind, key)) WITHOUT ROWID"
)


def store_path() -> Path | None:
    """The store's file, whether or not it exists; None where CONVWRIGHT_CACHE is off."""
    directory = cache_directory()
    return None if directory is None else directory / _FILE


def recall(kind: str, key: Mapping[str, Any]) -> Any:
    """The value stored under this key, or None."""

    def read(database: sqlite3.Connection) -> Any:
        row = database.execute("SELECT value FROM measured WHERE kind = ? AND key = ?", (kind, _text(key))).fetchone()
        return None if row is None else json.loads(row[0])

    path = store_path()
    return None if path is None or not path.exists() else _with(path, read)


def remember(kind: str, key: Mapping[str, Any], value: Any) -> None:
    """Store a value, in place of an older one."""
    path = store_path()
    if path is None:
        return

    def write(database: sqlite3.Connection) -> None:
        with database:  # one transaction
            database.execute("INSERT OR REPLACE INTO measured VALUES (?, ?, ?)", (kind, _text(key), json.dumps(value)))

    _written(path, write)


def _written(path: Path, work: Callable[[sqlite3.Connection], Any]) -> Any:
    """The result of `work` on the store, whose folder is made; None where it cannot be used."""
    with suppress(OSError):
        os.makedirs(path.parent.parent, exist_ok=True)
        with suppress(FileExistsError):
            os.mkdir(path.parent, 0o700)
        return _with(path, work)
    return None


def agree(kind: str, key: Mapping[str, Any], value: Any) -> Any:
    """The value stored under this key; where there is none, this one, which is stored.

    Of several processes that have something to store at the same time, all get what the first has stored.
    """
    path = store_path()
    if path is None:
        return value

    def write(database: sqlite3.Connection) -> Any:
        with database:  # one transaction
            database.execute("INSERT OR IGNORE INTO measured VALUES (?, ?, ?)", (kind, _text(key), json.dumps(value)))
        row = database.execute("SELECT value FROM measured WHERE kind = ? AND key = ?", (kind, _text(key))).fetchone()
        return json.loads(row[0])

    found = _written(path, write)
    return value if found is None else found


def _with(path: Path, work: Callable[[sqlite3.Connection], Any]) -> Any:
    """The result of `work` on the open store; None where it cannot be used."""
    for _ in range(2):
        try:
            with closing(sqlite3.connect(path, timeout=_WAIT_SECONDS)) as database:
                database.execute(_TABLE)
                return work(database)
        except (sqlite3.DatabaseError, ValueError) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
            if code not in _DAMAGED:  # busy for too long, full, or not ours to open
                return None
            for name in (path, path.with_name(f"{path.name}-journal")):
                with suppress(OSError):
                    name.unlink()
    return None


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
