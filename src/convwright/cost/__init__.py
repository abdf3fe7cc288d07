"""What every layer costs: reads specs and graphs, runs nothing. Each name is imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convwright.cost.receptive_field import AxisField, ReceptiveField, receptive_fields

_HOME = {
    "AxisField": "convwright.cost.receptive_field",
    "ReceptiveField": "convwright.cost.receptive_field",
    "receptive_fields": "convwright.cost.receptive_field",
}

__all__ = ["AxisField", "ReceptiveField", "receptive_fields"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
