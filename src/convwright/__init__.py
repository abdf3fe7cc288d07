"""convwright: runs convolutional networks on the CPU with kernels that it generates itself through LLVM.

>>> import convwright as cw
>>> cw.__version__
'0.1.0'

`load` reads an ONNX file into a `Graph`; `compile` makes a `Model` of a graph or a file; a model is called with arrays.
Importing this package imports nothing else: each name brings what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convwright.errors import ConvwrightError
    from convwright.graph import Graph, load
    from convwright.matrix import col2im, conv_matrix, im2col
    from convwright.model import Model, compile
    from convwright.spec import ConvSpec

__version__ = "0.1.0"
__all__ = [
    "ConvSpec", "ConvwrightError", "Graph", "Model", "__version__", "col2im", "compile", "conv_matrix", "im2col",
    "load",
]  # fmt: skip

_HOME = {
    "ConvSpec": "convwright.spec",
    "ConvwrightError": "convwright.errors",
    "Graph": "convwright.graph",
    "Model": "convwright.model",
    "col2im": "convwright.matrix",
    "compile": "convwright.model",
    "conv_matrix": "convwright.matrix",
    "im2col": "convwright.matrix",
    "load": "convwright.graph",
}


def __getattr__(name: str) -> Any:
    """Import a name's room on first use and keep the name here (PEP 562)."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'convwright' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
