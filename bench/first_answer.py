"""One first answer in this fresh process, and what its seconds went into: JSON on standard output.

    python bench/first_answer.py MODEL INPUT.npy THREADS

- `import`: of the package and of all modules that an inference needs;
- `read`: `cw.load`, the file to the graph;
- `compile`: `cw.compile` alone, the graph to a model whose kernels are compiled, or loaded from the cache, and whose
  weights are packed; nothing of it is left to the first inference where the file fixes the input's shape;
- `pack`: what of that went into putting weights into the kernels' order, which touches most of the file's pages for the
  first time;
- `run`: the first inference;
- `total`: all of it, from the first import of the package to the answer.
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

spent = {"pack": 0.0}


def timed(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, its seconds added to `pack`."""

    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent["pack"] += time.perf_counter() - begin

    return wrapper


def main(path: str, file: str, threads: int) -> dict[str, float]:
    x = np.load(file)
    begin = time.perf_counter()
    import convwright as cw
    import convwright.model
    from convwright.model.weights import Weights

    imported = time.perf_counter()
    for name in "get", "derived", "channels":
        setattr(Weights, name, timed(getattr(Weights, name)))
    graph = cw.load(path)
    read = time.perf_counter()
    model = cw.compile(graph, threads=threads)
    compiled = time.perf_counter()
    packed = spent["pack"]
    model(x)
    end = time.perf_counter()
    return {
        "import": imported - begin,
        "read": read - imported,
        "compile": compiled - read,
        "pack": packed,
        "run": end - compiled,
        "total": end - begin,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
