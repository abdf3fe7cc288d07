"""Networks as data: `Graph`, its ONNX reader and writer, shape inference and rewrites.

Importing this package imports neither onnx nor NumPy-heavy helpers; each name is fetched when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convwright.graph.graph import Attribute, Graph, Node, ValueInfo
    from convwright.graph.onnx_reader import load
    from convwright.graph.onnx_writer import save
    from convwright.graph.rewrites import simplify
    from convwright.graph.shapes import Inferred, infer

_HOME = {
    "Attribute": "convwright.graph.graph",
    "Graph": "convwright.graph.graph",
    "Node": "convwright.graph.graph",
    "ValueInfo": "convwright.graph.graph",
    "Inferred": "convwright.graph.shapes",
    "infer": "convwright.graph.shapes",
    "load": "convwright.graph.onnx_reader",
    "save": "convwright.graph.onnx_writer",
    "simplify": "convwright.graph.rewrites",
}

__all__ = ["Attribute", "Graph", "Inferred", "Node", "ValueInfo", "infer", "load", "save", "simplify"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
