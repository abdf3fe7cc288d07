"""The process that holds one runtime and one model for `convwright bench`, and times inferences when told to.

It reads one JSON object a line and answers each with one. It answers `open` and `time` only after its threads have come
to rest, because a runtime's spinning threads would slow whichever runtime is timed next.
"""

import json
import os
import sys
import time
import traceback
from importlib import import_module
from typing import Any, TextIO

import numpy as np

from convwright.cli.peers import (
    FLOAT64,
    GRAPH,
    PEERS,
    STRICT,
    TUNED,
    Accountable,
    Arrays,
    Peer,
    Runner,
    Unavailable,
)
from convwright.cli.streams import STREAMS


def _nothing(inputs: Arrays) -> dict[str, np.ndarray]:
    raise Unavailable("no model is open")


class Worker:
    """One runtime with one model at a time."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.inputs: dict[str, np.ndarray] = {}
        self.run: Runner = _nothing

    def open(self, path: str, inputs: str, names: list[str], threads: int) -> dict[str, Any]:
        """Open the model and run it once: `first_s` is the time from opening the file to the first answer.

        Importing the runtime comes before and is told apart; `baseline` is the memory held then, in bytes.
        """
        self.inputs, self.run = {}, _nothing  # the last model is gone before the next one comes
        reason = self.peer.why_not()
        if reason is not None:
            raise Unavailable(reason)
        with np.load(inputs) as arrays:
            self.inputs = {name: arrays[key] for name, key in zip(names, arrays.files, strict=True)}
        start = time.perf_counter()
        for module in self.peer.modules:
            import_module(module)
        imported = time.perf_counter()
        baseline = memory("VmRSS")
        shapes = {name: array.shape for name, array in self.inputs.items()}
        begin = time.perf_counter()
        self.run = self.peer.open(path, shapes, threads)
        self.run(self.inputs)
        first = time.perf_counter() - begin
        return {
            "version": self.peer.version(),
            "import_s": imported - start,
            "first_s": first,
            "baseline": baseline,
            "busy": settle(),
        }

    def time(self, count: int) -> dict[str, Any]:
        """The seconds of each of `count` inferences, after one that is not counted and warms the caches again."""
        self.run(self.inputs)
        seconds = []
        for _ in range(count):
            begin = time.perf_counter()
            self.run(self.inputs)
            seconds.append(time.perf_counter() - begin)
        return {"seconds": seconds, "busy": settle()}

    def finish(self, outputs: str) -> dict[str, Any]:
        """The process's memory in bytes, at its peak and now, and one more run's outputs, written to a .npz file.

        `account` is what the runtime itself says of its memory, where it says anything.
        """
        peak, resident = memory("VmHWM"), memory("VmRSS")
        account: dict[str, int] = self.run.account() if isinstance(self.run, Accountable) else {}
        np.savez(outputs, *self.run(self.inputs).values())
        return {"peak": peak, "resident": resident, "account": account}


def settle(limit: float = 1.0, window: float = 0.005) -> float:
    """Wait until this process's threads rest. The share of a core that they used in the last `window` seconds."""
    end = time.perf_counter() + limit
    while True:
        used, begin = time.process_time(), time.perf_counter()
        time.sleep(window)
        now = time.perf_counter()
        busy = (time.process_time() - used) / (now - begin)
        if busy < 0.1 or now > end:
            return busy


def memory(field: str) -> int:
    """This process's memory in bytes: VmRSS now, VmHWM at its peak. On a system without /proc, the peak for both."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def serve(worker: Worker, requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more."""
    for line in requests:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Unavailable as error:
            answer = {"unavailable": str(error)}
        except Exception as error:  # whatever a foreign runtime raises becomes its row of the table
            traceback.print_exc()
            answer = {"failed": " ".join(str(error).split()) or type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def start() -> None:
    """Serve standard input; what a runtime prints must not mix with the answers, so it goes to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        unlisted = {"float64": FLOAT64, "graph": GRAPH, "strict": STRICT, "tuned": TUNED}
        serve(Worker({**PEERS, **STREAMS, **unlisted}[sys.argv[1]]), sys.stdin, answers)


if __name__ == "__main__":
    start()
