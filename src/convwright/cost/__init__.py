"""What every layer costs: reads specs and graphs, runs nothing. Each name is imported when it is first used.

The room itself is called: `cw.cost(graph)` is the function `cost.analysis.cost`, whatever was imported before it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convwright.cost.analysis import cost
    from convwright.cost.receptive_field import AxisField, ReceptiveField, receptive_fields
    from convwright.cost.report import Cost, Group, Layer, NotCounted

_HOME = {
    "AxisField": "convwright.cost.receptive_field",
    "Cost": "convwright.cost.report",
    "Group": "convwright.cost.report",
    "Layer": "convwright.cost.report",
    "NotCounted": "convwright.cost.report",
    "ReceptiveField": "convwright.cost.receptive_field",
    "cost": "convwright.cost.analysis",
    "receptive_fields": "convwright.cost.receptive_field",
}

__all__ = ["AxisField", "Cost", "Group", "Layer", "NotCounted", "ReceptiveField", "cost", "receptive_fields"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _Room(ModuleType):
    """A module that is called as the function of its own name, which it would otherwise hide in the package's face."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return __getattr__("cost")(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
