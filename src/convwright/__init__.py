"""convwright: runs convolutional networks on the CPU with kernels that it generates itself through LLVM.

>>> import convwright as cw
>>> cw.__version__
'0.1.0'

`load` reads an ONNX file into a `Graph`; `compile` makes a `Model` of a graph or a file; a model is called with arrays.
`networks` has the classic ones: `networks.resnet50()`; `cost` tells what each layer of a network costs. `conv`,
`conv_transpose` and the other kinds of convolution are functions of NumPy arrays.
Importing this package imports nothing else: each name brings what it needs when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convwright import networks
    from convwright.cost.analysis import cost
    from convwright.cost.receptive_field import ReceptiveField, receptive_field, receptive_fields
    from convwright.cost.roofline import roofline
    from convwright.errors import ConvwrightError
    from convwright.functional import (
        algorithms,
        channel_shuffle,
        conv,
        conv_integer,
        conv_transpose,
        deform_conv,
        het_conv,
        mix_conv,
        qlinear_conv,
        separable_conv,
        spatial_conv,
    )
    from convwright.graph import Graph, load
    from convwright.matrix import col2im, conv_matrix, im2col
    from convwright.model import Model, compile
    from convwright.spec import ConvSpec

__version__ = "0.1.0"
__all__ = [
    "ConvSpec", "ConvwrightError", "Graph", "Model", "ReceptiveField", "__version__", "algorithms", "channel_shuffle",
    "col2im", "compile", "conv", "conv_integer", "conv_matrix", "conv_transpose", "cost", "deform_conv", "het_conv",
    "im2col", "load", "mix_conv", "networks", "qlinear_conv", "receptive_field", "receptive_fields", "roofline",
    "separable_conv", "spatial_conv",
]  # fmt: skip

_NAMES = {
    "convwright.cost.receptive_field": "ReceptiveField receptive_field receptive_fields",
    "convwright.cost.roofline": "roofline",
    "convwright.errors": "ConvwrightError",
    "convwright.functional": "algorithms channel_shuffle conv conv_integer conv_transpose deform_conv het_conv "
    "mix_conv qlinear_conv separable_conv spatial_conv",
    "convwright.graph": "Graph load",
    "convwright.matrix": "col2im conv_matrix im2col",
    "convwright.model": "Model compile",
    "convwright.spec": "ConvSpec",
}
_ROOMS = {"cost", "networks"}
_HOME = {name: home for home, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a name's room on first use and keep the name here (PEP 562)."""
    if name in _ROOMS:
        return import_module(f"convwright.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'convwright' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_ROOMS})
