"""The object cache on disk: machine code that earlier processes compiled, and what they chose (`model.choices`).

One file an object, named by the SHA-256 of everything that determines it. What is read back is executed, so an entry
counts only if nobody but this user can have written it and every byte is what was written: the directory and the file
must belong to this user and be writable to no one else, symbolic links are not followed, and a header holds the full
key and a checksum over itself and the code. Anything else is deleted and compiled anew.

Files appear under their name only when complete, so processes may share a directory without locks. A directory that
cannot be used or written costs one warning and the time to compile; it is never an error.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import stat
import struct
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import platformdirs

from convwright.errors import ConvwrightError

VARIABLE = "CONVWRIGHT_CACHE"
SIZE_VARIABLE = "CONVWRIGHT_CACHE_MB"
DEFAULT_MB = 256

_MAGIC = b"cwobject"
_FORMAT = 1
# Magic, format, bytes of code, key, hash of the IR, and a SHA-256 of all of these and the code.
_HEADER = struct.Struct("<8sIQ32s32s32s")
_CHECKSUM_BYTES = 32
_LARGEST = 64 << 20

_SUFFIX, _TEMPORARY = ".o", ".tmp"
# A use within this many seconds of the last is not recorded: reading an entry should not cost a write.
_TOUCH_AFTER = 60.0
# A temporary file that old was left by a process that died.
_ABANDONED_AFTER = 3600.0
# Other processes add entries that this one does not count: look at the directory again after so many of its own.
_RECOUNT_AFTER = 64
# Eviction goes below the limit by this share, so that it is rare.
_EVICT_TO = 0.9

_OPEN_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC
_OPEN_ENTRY = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | os.O_CLOEXEC
_OPEN_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | os.O_CLOEXEC

_warned = False


def _warn_once(message: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(f"kernels are compiled without the object cache: {message}", RuntimeWarning, stacklevel=3)


class Entry(NamedTuple):
    """One cached object: its machine code and the SHA-256 of the IR that it was compiled from."""

    payload: bytes
    ir_hash: bytes


class _UnusableError(Exception):
    """The directory must not or cannot be used; the message says why."""


def _check_owner(status: os.stat_result) -> str | None:
    """Why what `status` describes may have been written by another user, or None."""
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}, not {os.geteuid()}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"is writable to other users (mode {stat.S_IMODE(status.st_mode):o})"
    return None


class ObjectCache:
    """Machine code by key in one directory, at most `limit` bytes of it."""

    def __init__(self, directory: Path, limit: int):
        self.directory = directory
        self.limit = limit
        self._unusable = False  # for reading and writing
        self._read_only = False
        self._bytes: int | None = None  # known once the directory has been counted
        self._stored = 0

    def get(self, key: bytes) -> Entry | None:
        """The entry of the 32-byte `key`, or None; one that is damaged or not this user's is deleted."""
        if self._unusable:
            return None
        try:
            with self._open_directory(create=False) as directory:
                return self._read(directory, key)
        except FileNotFoundError:
            return None
        except (_UnusableError, OSError) as error:
            self._give_up(error)
            return None

    def put(self, key: bytes, payload: bytes, ir_hash: bytes) -> None:
        """Store an entry; a failure costs one warning and ends the attempts of this process."""
        if self._unusable or self._read_only or _HEADER.size + len(payload) > min(self.limit, _LARGEST):
            return
        try:
            with self._open_directory(create=True) as directory:
                self._write(directory, key, payload, ir_hash)
                self._bound(directory, _HEADER.size + len(payload))
        except _UnusableError as error:
            self._give_up(error)
        except OSError as error:
            self._read_only = True
            _warn_once(f"cannot write to {self.directory}: {error.strerror or error}")

    def _give_up(self, error: Exception) -> None:
        self._unusable = True
        reason = error.strerror if isinstance(error, OSError) else None
        _warn_once(f"{self.directory} {reason or error}")

    @contextmanager
    def _open_directory(self, create: bool) -> Iterator[int]:
        """A descriptor of the directory, checked; everything else is done relative to it.

        It is opened anew for every entry (some microseconds): a descriptor kept would outlive a directory deleted.
        """
        if create:
            os.makedirs(self.directory.parent.parent, exist_ok=True)
            for private in (self.directory.parent, self.directory):
                with suppress(FileExistsError):
                    os.mkdir(private, 0o700)
        try:
            descriptor = os.open(self.directory, _OPEN_DIRECTORY)
        except NotADirectoryError:
            raise _UnusableError("is not a directory") from None
        except OSError as error:
            if self.directory.is_symlink():
                raise _UnusableError("is a symbolic link") from None
            raise error
        try:
            reason = _check_owner(os.fstat(descriptor))
            if reason:
                raise _UnusableError(reason)
            yield descriptor
        finally:
            os.close(descriptor)

    @staticmethod
    def _name(key: bytes) -> str:
        return key.hex() + _SUFFIX

    def _read(self, directory: int, key: bytes) -> Entry | None:
        name = self._name(key)
        try:
            descriptor = os.open(name, _OPEN_ENTRY, dir_fd=directory)
        except FileNotFoundError:
            return None
        except OSError:  # a symbolic link, or not ours to read
            _remove(directory, name)
            return None
        try:
            status = os.fstat(descriptor)
            entry = None
            if stat.S_ISREG(status.st_mode) and _check_owner(status) is None and status.st_size <= _LARGEST:
                entry = _decode(_read_all(descriptor, status.st_size), key)
            if entry is None:
                _remove(directory, name)
            elif time.time() - status.st_mtime > _TOUCH_AFTER:
                with suppress(OSError):
                    os.utime(descriptor)
            return entry
        finally:
            os.close(descriptor)

    def _write(self, directory: int, key: bytes, payload: bytes, ir_hash: bytes) -> None:
        name = self._name(key)
        temporary = f"{name}.{os.getpid()}.{secrets.token_hex(8)}{_TEMPORARY}"
        descriptor = os.open(temporary, _OPEN_NEW, 0o600, dir_fd=directory)
        try:
            try:
                remaining = memoryview(_encode(key, payload, ir_hash))
                while remaining:
                    remaining = remaining[os.write(descriptor, remaining) :]
            finally:
                os.close(descriptor)
            # Not flushed to the device: a crash may leave a torn file, which its checksum gives away.
            os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            _remove(directory, temporary)
            raise

    def _bound(self, directory: int, added: int) -> None:
        """Keep the sum of all entries below the limit, dropping what was not used for longest."""
        self._stored += 1
        if self._bytes is not None:
            self._bytes += added
        if self._bytes is None or self._bytes > self.limit or self._stored % _RECOUNT_AFTER == 0:
            self._bytes = _evict(directory, self.limit)


def _evict(directory: int, limit: int) -> int:
    """Delete the least recently used entries where all take more than `limit` bytes; bytes that are left."""
    now = time.time()
    entries = []
    with os.scandir(directory) as found:
        for item in found:
            try:
                status = item.stat(follow_symlinks=False)
            except OSError:  # deleted meanwhile by another process
                continue
            if item.name.endswith(_TEMPORARY) and now - status.st_mtime > _ABANDONED_AFTER:
                _remove(directory, item.name)
            elif item.name.endswith(_SUFFIX):
                entries.append((status.st_mtime, status.st_size, item.name))
    total = sum(size for _, size, _ in entries)
    if total > limit:
        for _, size, name in sorted(entries):
            _remove(directory, name)
            total -= size
            if total <= limit * _EVICT_TO:
                break
    return total


def _remove(directory: int, name: str) -> None:
    with suppress(OSError):
        os.unlink(name, dir_fd=directory)


def _read_all(descriptor: int, size: int) -> bytes:
    pieces = []
    while size > 0:
        piece = os.read(descriptor, size)
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _encode(key: bytes, payload: bytes, ir_hash: bytes) -> bytes:
    header = _HEADER.pack(_MAGIC, _FORMAT, len(payload), key, ir_hash, b"")[:-_CHECKSUM_BYTES]
    return header + hashlib.sha256(header + payload).digest() + payload


def _decode(data: bytes, key: bytes) -> Entry | None:
    """The entry in `data` if it is whole and belongs to `key`."""
    if len(data) < _HEADER.size:
        return None
    magic, version, size, written_key, ir_hash, checksum = _HEADER.unpack_from(data)
    payload = data[_HEADER.size :]
    if (magic, version, size, written_key) != (_MAGIC, _FORMAT, len(payload), key):
        return None
    if hashlib.sha256(data[: _HEADER.size - _CHECKSUM_BYTES] + payload).digest() != checksum:
        return None
    return Entry(payload, ir_hash)


def cache_directory() -> Path | None:
    """Where this package keeps what it may lose: CONVWRIGHT_CACHE, or the user's cache directory; None where off."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return Path(platformdirs.user_cache_dir("convwright", appauthor=False))
    if wanted.strip().lower() in ("", "0", "off"):
        return None
    return Path(wanted).expanduser().absolute()


@functools.lru_cache(maxsize=8)
def _opened(directory: Path, limit: int) -> ObjectCache:
    return ObjectCache(directory, limit)


def object_cache() -> ObjectCache | None:
    """The cache that the environment asks for, or None where it is off.

    Raises ConvwrightError where CONVWRIGHT_CACHE_MB is not a number of megabytes.
    """
    directory = cache_directory()
    if directory is None or not hasattr(os, "geteuid") or os.open not in os.supports_dir_fd:
        return None
    size = os.environ.get(SIZE_VARIABLE, "").strip() or str(DEFAULT_MB)
    try:
        megabytes = float(size)
    except ValueError:
        megabytes = -1.0
    if not 0 <= megabytes < 1e9:
        raise ConvwrightError(f"{SIZE_VARIABLE}={size!r}: give a number of megabytes, 0 or more")
    return _opened(directory / "objects", int(megabytes * 2**20)) if megabytes else None
