"""The package's face: importing it costs nothing, and its names come when they are asked for."""

import subprocess
import sys

import pytest

import convwright as cw


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_quick() -> None:
    # The bound is generous, for a busy machine; the usual time is a few milliseconds.
    times = python(
        "import time; begin = time.perf_counter(); import convwright; print(time.perf_counter() - begin)",
    )
    assert float(times) < 0.3


def test_import_brings_nothing_else() -> None:
    loaded = python("import sys, convwright; print(*sorted({name.partition('.')[0] for name in sys.modules}))").split()
    assert not {"numpy", "llvmlite", "onnx", "click", "rich", "PIL", "torch"} & set(loaded)


def test_command_line_starts_without_the_compiler() -> None:
    loaded = python(
        "import sys, convwright.cli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    ).split()
    assert not {"numpy", "llvmlite", "onnx", "torch"} & set(loaded)


@pytest.mark.parametrize("name", cw.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(cw, name) is not None
    assert name in dir(cw)


def test_a_name_comes_from_its_room() -> None:
    from convwright.errors import ConvwrightError

    assert cw.ConvwrightError is ConvwrightError
    assert issubclass(ConvwrightError, ValueError)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'convolve'"):
        cw.convolve
