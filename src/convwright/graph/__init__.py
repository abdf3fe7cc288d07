"""Networks as data: `Graph`, its ONNX reader and writer, shape inference and rewrites.

Importing this package imports neither onnx nor NumPy-heavy helpers; each name is fetched when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .graph import Attribute, Graph, Node, ValueInfo
    from .onnx_reader import load
    from .onnx_writer import save
    from .rewrites import simplify
    from .shapes import Inferred, infer

_HOME = {
    "Attribute": ".graph",
    "Graph": ".graph",
    "Node": ".graph",
    "ValueInfo": ".graph",
    "Inferred": ".shapes",
    "infer": ".shapes",
    "load": ".onnx_reader",
    "save": ".onnx_writer",
    "simplify": ".rewrites",
}

__all__ = ["Attribute", "Graph", "Inferred", "Node", "ValueInfo", "infer", "load", "save", "simplify"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home, __name__), name)


def __dir__() -> list[str]:
    return __all__
