"""Machine code from objects to memory, by the few rules of ELF that LLVM needs for a kernel.

LLVM's own linker wants a target machine first: 7 MB of its pages and some milliseconds, in a process whose kernels all
come from the cache. A kernel's object on x86-64 has code, constants, references from the one to the other, relative to
the referring place, and calls of C functions. What has anything else is left to LLVM.

Formats and relocations: System V Application Binary Interface, AMD64 Architecture Processor Supplement, chapter 4.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

ENTRY = "kernel"

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QIIq")
_SHIFT = struct.Struct("<i")

_IDENTITY = b"\x7fELF\x02\x01\x01"  # 64 bits, little-endian
_RELOCATABLE, _X86_64 = 1, 62
_BITS, _SYMBOLS, _RELOCATIONS, _ZEROS = 1, 2, 4, 8  # types of sections; others hold nothing for the process
_WRITTEN, _LOADED, _THREAD_LOCAL = 1, 2, 0x400  # flags of sections
_UNDEFINED, _RESERVED = 0, 0xFF00  # numbers of sections
_RELATIVE, _CALL = 2, 4  # R_X86_64_PC32, R_X86_64_PLT32
_JUMP = b"\xff\x25\x00\x00\x00\x00"  # jmp [rip], to the address that follows
_LINE = 64  # bytes of a cache line
_LARGEST = 64 << 20  # bytes of a section


class _Unknown(Exception):
    """The object has something that is not understood here."""


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry: int


class _Image:
    """What an object becomes in memory, relative to its beginning; it may begin at any cache line."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.code = bytearray()
        self.entry = -1
        self.jumps: dict[str, int] = {}
        kind, machine = struct.unpack_from("<HH", data, 16)
        if not data.startswith(_IDENTITY) or (kind, machine) != (_RELOCATABLE, _X86_64):
            raise _Unknown
        (table,) = struct.unpack_from("<Q", data, 40)
        size, count = struct.unpack_from("<HH", data, 58)
        if size != _SECTION.size:
            raise _Unknown
        self.sections = [_Section(*_SECTION.unpack_from(data, table + size * place)) for place in range(count)]
        self.places = [self._placed(section) for section in self.sections]
        for section in self.sections:
            if section.kind == _SYMBOLS:
                self.entry = self._find(section)
            if section.kind == _RELOCATIONS and self.places[section.info] is not None:
                self._relocate(section)
        if self.entry < 0:
            raise _Unknown

    def _placed(self, section: _Section) -> int | None:
        """Where the section begins; None for one that the process does not need."""
        if not section.flags & _LOADED:
            return None
        if section.kind not in (_BITS, _ZEROS) or section.flags & (_WRITTEN | _THREAD_LOCAL):
            raise _Unknown
        if section.alignment > _LINE or section.size > _LARGEST:
            raise _Unknown
        place = self._room()
        content = bytes(section.size) if section.kind == _ZEROS else self._bytes(section.offset, section.size)
        self.code += content
        return place

    def _room(self) -> int:
        """Where the next bytes go: to a cache line, as loops were placed within lines."""
        self.code += bytes(-len(self.code) % _LINE)
        return len(self.code)

    def _bytes(self, offset: int, size: int) -> bytes:
        found = self.data[offset : offset + size]
        if len(found) < size:
            raise _Unknown
        return found

    def _find(self, section: _Section) -> int:
        """Where the kernel begins."""
        for place in range(section.offset, section.offset + section.size, _SYMBOL.size):
            name, _, _, where, value, _ = _SYMBOL.unpack_from(self.data, place)
            if where != _UNDEFINED and self._name(section, name) == ENTRY:
                return self._address(where, value)
        raise _Unknown

    def _name(self, section: _Section, offset: int) -> str:
        start = self.sections[section.link].offset + offset
        return self.data[start : self.data.index(0, start)].decode()

    def _address(self, where: int, value: int) -> int:
        place = self.places[where] if where < _RESERVED else None
        if place is None:
            raise _Unknown
        return place + value

    def _relocate(self, section: _Section) -> None:
        base, symbols = self.places[section.info], self.sections[section.link]
        assert base is not None
        for offset, form, symbol, addend in _RELOCATION.iter_unpack(self._bytes(section.offset, section.size)):
            name, _, _, where, value, _ = _SYMBOL.unpack_from(self.data, symbols.offset + symbol * _SYMBOL.size)
            if form == _CALL and where == _UNDEFINED:
                target = self._jump_to(self._name(symbols, name))
            elif form in (_RELATIVE, _CALL):
                target = self._address(where, value)
            else:
                raise _Unknown
            place = base + offset
            _SHIFT.pack_into(self.code, place, target + addend - place)

    def _jump_to(self, name: str) -> int:
        """Where a jump to a function of the process stands, which may lie farther away than a call reaches."""
        if name not in self.jumps:
            address = _function(name).to_bytes(8, "little")
            self.jumps[name] = self._room()
            self.code += _JUMP + address
        return self.jumps[name]


@functools.cache
def _process() -> Any:
    process = ctypes.CDLL(None)
    process.mmap.restype = ctypes.c_void_p
    process.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    process.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return process


def _function(name: str) -> int:
    try:
        address = ctypes.cast(getattr(_process(), name), ctypes.c_void_p).value
    except AttributeError:
        raise _Unknown from None
    if not address:
        raise _Unknown
    return address


def load(objects: Sequence[bytes]) -> list[int | None]:
    """Addresses of the objects' kernels, valid as long as the process; None for one that is not understood.

    All lie in one mapping, which can be written until it can be executed.
    """
    images = [_image(data) for data in objects]
    starts, size = [], 0
    for image in images:
        starts.append(size)
        size += -(-len(image.code) // _LINE) * _LINE if image else 0
    if not size:
        return [None] * len(objects)
    whole = b"".join(bytes(image.code) + bytes(-len(image.code) % _LINE) for image in images if image)
    base = _executable(whole)
    if base is None:
        return [None] * len(objects)
    return [base + start + image.entry if image else None for start, image in zip(starts, images, strict=True)]


def _image(data: bytes) -> _Image | None:
    try:
        return _Image(data)
    except (_Unknown, struct.error, IndexError, ValueError):
        return None


def _executable(code: bytes) -> int | None:
    """Memory that holds the code, never unmapped: threads may run it until the process ends. None where refused."""
    process = _process()
    base = process.mmap(None, len(code), mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if base in (None, ctypes.c_void_p(-1).value):
        return None
    ctypes.memmove(base, code, len(code))
    if process.mprotect(base, len(code), mmap.PROT_READ | mmap.PROT_EXEC):
        return None
    return int(base)
