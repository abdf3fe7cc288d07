"""The parent's end of the processes that hold a runtime each; `convwright.cli.worker` is the other end."""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Lost(Exception):
    """A worker that cannot go on, and why."""


class WorkerProcess:
    """The parent's end of a worker process."""

    def __init__(self, peer: str, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with open(log, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "convwright.cli.worker", peer],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, **environment},
            )

    def ask(self, patience: float | None = None, **request: Any) -> dict[str, Any]:
        """The answer to a request. One that takes more than `patience` seconds costs the process its life."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            # Answers are one line each, so that none can be waiting in the buffer, which select does not see.
            if patience is not None and not select.select([self.process.stdout], [], [], patience)[0]:
                self.process.kill()
                raise Lost(f"no answer within {patience:g} s")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise Lost(f"its process ended with code {self.process.wait()}" + "".join(f": {text}" for text in last))
        answer: dict[str, Any] = json.loads(line)
        for key in "unavailable", "failed":
            if key in answer:
                raise Lost(answer[key])
        return answer

    def close(self) -> None:
        for pipe in self.process.stdin, self.process.stdout:
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Workers(contextlib.AbstractContextManager["Workers"]):
    """Processes that may be kept from race to race, so that many short races import each runtime once.

    - `threads`: of each runtime.
    - `environment`: variables for the processes.
    """

    def __init__(self, threads: int, environment: Mapping[str, str] | None = None) -> None:
        self.threads = threads
        self._environment = dict(environment or {})
        self._stack = contextlib.ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="convwright-bench-")))
        self._workers: dict[str, WorkerProcess] = {}

    def get(self, name: str, peer: str, threads: int | None = None) -> WorkerProcess:
        """The process of this name, which holds the runtime `peer`; a new one where the last has ended.

        `threads`: of this one, where it is to have another number than the rest.
        """
        worker = self._workers.get(name)
        if worker is None or worker.process.poll() is not None:
            self.drop(name)
            environment = {"OMP_NUM_THREADS": str(threads or self.threads), **self._environment}
            worker = self._workers[name] = WorkerProcess(peer, self.folder / f"{name}.log", environment)
        return worker

    def drop(self, name: str) -> None:
        """End the process of this name, if there is one."""
        if name in self._workers:
            self._workers.pop(name).close()

    def __exit__(self, *details: object) -> None:
        for name in list(self._workers):
            self.drop(name)
        self._stack.close()
