"""What every description checks its values with: each function returns the value, normalised, or raises."""

import operator
from collections.abc import Iterable, Sequence

from convwright.errors import ConvwrightError

Pads = tuple[tuple[int, int], ...]
AxesLike = int | Sequence[int]
PaddingLike = int | Sequence[int | Sequence[int]] | str

INT64_MAX = 2**63 - 1


def set_field(spec: object, name: str, value: object) -> None:
    """Sets a field of a frozen description while it is made."""
    object.__setattr__(spec, name, value)


def show(value: object) -> str:
    """A value on one line, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def is_sequence(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | dict | set | frozenset)


def checked_int(name: str, value: object, minimum: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConvwrightError(f"{name} must be an int, got {show(value)}") from None
    if number < minimum:
        raise ConvwrightError(f"{name} must be at least {minimum}, got {number}")
    return checked_size(name, number)


def checked_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConvwrightError(f"{name} must be True or False, got {show(value)}")
    return value


def checked_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ConvwrightError(f"{name} must be one of {', '.join(map(repr, choices))}, got {show(value)}")
    return value


def checked_rank(rank: int, where: str) -> int:
    if rank not in (1, 2, 3):
        raise ConvwrightError(f"a convolution has 1, 2 or 3 spatial axes, got {where}")
    return rank


def checked_axes(name: str, value: AxesLike, rank: int, minimum: int) -> tuple[int, ...]:
    entries = tuple(value) if is_sequence(value) else (value,) * rank  # type: ignore[arg-type]
    if len(entries) != rank:
        raise ConvwrightError(f"{name} {show(value)} must have {rank} entries, one a spatial axis")
    return tuple(checked_int(name, entry, minimum) for entry in entries)


def checked_pairs(padding: int | Sequence[int | Sequence[int]], rank: int) -> Pads:
    entries = tuple(padding) if is_sequence(padding) else (padding,) * rank  # type: ignore[arg-type]
    if len(entries) != rank:
        raise ConvwrightError(f"padding {show(padding)} must have {rank} entries, one a spatial axis")
    pairs = [tuple(entry) if is_sequence(entry) else (entry, entry) for entry in entries]  # type: ignore[arg-type]
    if any(len(pair) != 2 for pair in pairs):
        raise ConvwrightError(f"padding {show(padding)} must be ints or (low, high) pairs")
    return tuple((checked_int("padding", low, 0), checked_int("padding", high, 0)) for low, high in pairs)


def checked_size(what: str, number: int) -> int:
    if number > INT64_MAX:
        raise ConvwrightError(f"{what} does not fit in 64 bits: {number}")
    return number
