"""Blocks of a network, from the names of its nodes.

Names are paths: of modules with dots (`features.3.expand`), as PyTorch has them, or as its exporter writes them with
slashes and the operator last (`/features/features.3/expand/Conv`). A layer's block is the path without its last part,
or the whole path where other layers lie below it.
"""

from __future__ import annotations

from collections.abc import Sequence

Path = tuple[str, ...]


def module_path(name: str) -> Path:
    """The modules that a node lies in, from the outermost.

    >>> module_path("features.3.expand")
    ('features', '3', 'expand')
    >>> module_path("/features/features.3/expand/Conv"), module_path("/layer1/layer1.0/relu_1/Relu")
    (('features', '3', 'expand'), ('layer1', '0', 'relu_1'))
    """
    if "/" not in name:
        return tuple(name.split("."))
    modules = [part for part in name.split("/") if part][:-1]
    path: list[str] = []
    before = ""
    for module in modules:
        # The exporter repeats the path of a module that is an element of another.
        path += (module[len(before) + 1 :] if before and module.startswith(f"{before}.") else module).split(".")
        before = module
    return tuple(path)


def block_paths(names: Sequence[str], depth: int | None = None) -> list[Path]:
    """The block of each node, cut to its first `depth` parts.

    >>> block_paths(["conv1", "layer1.0.conv1", "layer1.0.add", "fc"])
    [('conv1',), ('layer1', '0'), ('layer1', '0'), ('fc',)]
    >>> block_paths(["/layer1/layer1.0/conv1/Conv", "/layer1/layer1.0/Add"])
    [('layer1', '0'), ('layer1', '0')]
    """
    paths = [module_path(name) for name in names]
    inner = {path[:length] for path in paths for length in range(1, len(path))}
    blocks = [path if path in inner or len(path) < 2 else path[:-1] for path in paths]
    return [block[:depth] for block in blocks]
