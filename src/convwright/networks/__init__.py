"""The classic networks as graphs with random weights: `networks.resnet50()`, `networks.mobilenet_v2(width=0.5)`.

Each name of `TABLE` is a function of this package. All take `classes`, `size` (height and width of the input), and
`seed`: of the random weights, or None for zeros that take no memory, which is all that costs need. `build` calls one by
its name, `from_state_dict` fills one with the weights that PyTorch has.

>>> import convwright as cw
>>> graph = cw.networks.vgg16(seed=None)
>>> sum(array.size for array in graph.constants.values())
138357544
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from convwright.errors import ConvwrightError

if TYPE_CHECKING:
    from convwright.graph import Graph
    from convwright.networks.state_dict import from_state_dict

TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "alexnet": ("alexnet", {}),
    "alexnet_grouped": ("alexnet", {"variant": "grouped"}),
    "alexnet_ungrouped": ("alexnet", {"variant": "ungrouped"}),
    **{f"vgg{depth}": ("vgg", {"depth": depth}) for depth in (11, 13, 16, 19)},
    **{f"vgg{depth}_bn": ("vgg", {"depth": depth, "batch_norm": True}) for depth in (11, 13, 16, 19)},
    "inception_v2": ("inception_v2", {}),
    "inception_v3": ("inception_v3", {}),
    "squeezenet1_0": ("squeezenet", {"version": "1.0"}),
    "squeezenet1_1": ("squeezenet", {"version": "1.1"}),
    **{f"resnet{depth}": ("resnet", {"depth": depth}) for depth in (18, 34, 50, 101, 152)},
    **{f"resnet{depth}_v1": ("resnet", {"depth": depth, "stride_first": True}) for depth in (50, 101, 152)},
    "resnext50_32x4d": ("resnet", {"depth": 50, "groups": 32, "group_width": 4}),
    "resnext101_32x8d": ("resnet", {"depth": 101, "groups": 32, "group_width": 8}),
    "xception": ("xception", {}),
    "mobilenet_v1": ("mobilenet_v1", {}),
    "mobilenet_v2": ("mobilenet_v2", {}),
    **{f"shufflenet_v1_g{groups}": ("shufflenet_v1", {"groups": groups}) for groups in (1, 2, 3, 4, 8)},
    **{f"mixnet_{variant}": ("mixnet", {"variant": variant}) for variant in "sml"},
    "hetconv_vgg16": ("hetconv_vgg16", {}),
}
"""By the network's name: the function that builds it, which lies in the file of the same name, and its arguments."""

__all__ = ["TABLE", "build", "from_state_dict"]


def build(name: str, **options: Any) -> Graph:
    """The network `name`; `options` as its function takes them.

    Raises ConvwrightError for a name that no network has.

    >>> print(build("vgg11", size=32 * 7, seed=None))
    Graph 'vgg11' (x: float32[N, 3, 224, 224]) -> classifier.6: 27 nodes
    """
    graph: Graph = _builder(require(name))(**options)
    return graph


def require(name: str) -> str:
    """`name` itself, if it is a network's.

    Raises ConvwrightError, with names that are close, if it is none.
    """
    if name not in TABLE:
        close = get_close_matches(name, TABLE, 3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`convwright networks` shows all"
        raise ConvwrightError(f"no network is called {name!r}: {hint}")
    return name


def _builder(name: str) -> Callable[..., Any]:
    function, arguments = TABLE[name]
    found = getattr(import_module(f"convwright.networks.{function}"), function)
    return partial(found, **arguments) if arguments else found  # type: ignore[no-any-return]


def __getattr__(name: str) -> Any:
    if name == "from_state_dict":
        return import_module("convwright.networks.state_dict").from_state_dict
    if name in TABLE:
        return _builder(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *TABLE})


class _Package(ModuleType):
    """Where a network has the name of its file, the attribute of this package is the network."""

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds a submodule that it has loaded to the package.
        if not (name in TABLE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
