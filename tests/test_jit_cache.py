"""Compiling once: in the process, on disk, among processes, and never running what a stranger or an accident wrote."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import multiprocessing
import os
import shutil
import stat
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llvmlite import ir

from convwright.codegen import cache, jit
from convwright.codegen.cache import ObjectCache, object_cache
from convwright.codegen.jit import assembly, compile_kernel, compile_many
from convwright.codegen.target import host_target
from convwright.errors import ConvwrightError

I64 = ir.IntType(64)
KEY, OTHER_KEY, IR_HASH = (hashlib.sha256(word).digest() for word in (b"key", b"other", b"ir"))
PAYLOAD = bytes(range(256)) * 20


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An own cache directory, and a process that has not used a cache yet."""
    monkeypatch.setenv("CONVWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CONVWRIGHT_CACHE_MB", raising=False)
    monkeypatch.setattr(cache, "_warned", False)
    forget()
    yield tmp_path / "cache" / "objects"
    forget()


def forget() -> None:
    """Be a new process as far as kernels are concerned."""
    cache._opened.cache_clear()
    for target, key in list(jit._addresses):
        if key.startswith("test-"):
            del jit._addresses[target, key]


class Adder:
    """Builds `kernel(x) = x + number`, and counts how often it is asked to."""

    def __init__(self, number: int):
        self.number = number
        self.builds = 0

    def __call__(self) -> ir.Module:
        self.builds += 1
        module = ir.Module()
        function = ir.Function(module, ir.FunctionType(I64, [I64]), "kernel")
        builder = ir.IRBuilder(function.append_basic_block())
        builder.ret(builder.add(function.args[0], ir.Constant(I64, self.number)))
        return module


def run(build: Callable[[], Any], key: str = "test-add", x: int = 1) -> int:
    return call(compile_kernel(key, build, host_target()), x)


def call(address: int, x: int) -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(x))


def in_fork(body: Callable[[], bool]) -> bool:
    """Whether `body` returns True in a forked child, within half a minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if body() else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


# -- compiling ---------------------------------------------------------------------------------------------------------


def test_a_kernel_is_built_once_a_process() -> None:
    build = Adder(5)
    assert [run(build), run(build, x=7)] == [6, 12]
    assert build.builds == 1


def test_the_second_process_finds_it_on_disk() -> None:
    first, second = Adder(5), Adder(5)
    assert run(first) == 6
    forget()
    assert run(second) == 6
    assert (first.builds, second.builds) == (1, 0)


@pytest.mark.parametrize("off", ["", "0", "off", "OFF"])
def test_the_cache_can_be_turned_off(off: str, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setenv("CONVWRIGHT_CACHE", off)
    build = Adder(5)
    run(build)
    forget()
    assert run(build) == 6
    assert build.builds == 2
    assert not directory.exists()


def test_many_kernels_at_once_keep_their_order() -> None:
    builds = [Adder(number) for number in range(13)]
    kernels = [(f"test-add-{build.number}", build) for build in builds]
    addresses = compile_many([*kernels, kernels[3]], host_target(), workers=3)
    assert [call(address, 100) for address in addresses] == [*range(100, 113), 103]
    forget()
    for build in builds:
        build.builds = 0
    assert [call(address, 0) for address in compile_many(kernels, host_target())] == list(range(13))
    assert not any(build.builds for build in builds)


def test_what_a_worker_fails_at_is_an_error_here() -> None:
    def fail() -> ir.Module:
        raise ZeroDivisionError("no such tile")

    kernels: list[tuple[str, Callable[[], Any]]] = [(f"test-add-{number}", Adder(number)) for number in range(8)]
    with pytest.raises(ZeroDivisionError, match="no such tile"):
        compile_many([*kernels, ("test-fail", fail)], host_target(), workers=3)
    assert run(Adder(3), "test-add-3") == 4


def test_where_this_process_fails_no_file_of_a_worker_stays_open() -> None:
    parent = os.getpid()

    class FailsHere(Adder):
        def __call__(self) -> ir.Module:
            if os.getpid() == parent:
                raise ZeroDivisionError("no such tile")
            return super().__call__()

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    kernels = [(f"test-add-{number}", FailsHere(number)) for number in range(300)]
    with pytest.raises(ZeroDivisionError, match="no such tile"):
        compile_many(kernels, host_target(), workers=3)
    assert open_files() == before


def test_a_worker_that_dies_costs_nothing_but_time() -> None:
    parent = os.getpid()

    class Fatal(Adder):
        def __call__(self) -> ir.Module:
            if os.getpid() != parent:
                os._exit(3)
            return super().__call__()

    kernels = [(f"test-add-{number}", Fatal(number)) for number in range(12)]
    assert [call(address, 0) for address in compile_many(kernels, host_target(), workers=4)] == list(range(12))


def test_faulty_ir_names_the_kernel() -> None:
    def build() -> str:
        return "define i64 @kernel(i64 %x) {\n ret i32 0\n}"

    with pytest.raises(RuntimeError) as caught:
        run(build, "test-faulty")
    assert any("test-faulty" in note for note in caught.value.__notes__)


def test_the_process_symbols_are_there() -> None:
    text = """
    declare double @exp(double)
    declare i32 @sched_yield()
    declare i64 @syscall(i64, ...)
    declare ptr @memset(ptr, i32, i64)
    define i64 @kernel(i64 %x) {
      %buffer = alloca [64 x i8]
      %filled = call ptr @memset(ptr %buffer, i32 0, i64 %x)
      %zero = load volatile i8, ptr %filled
      %yielded = call i32 @sched_yield()
      %id = call i64 (i64, ...) @syscall(i64 39)
      %wide = sitofp i8 %zero to double
      %one = call double @exp(double %wide)
      %int = fptosi double %one to i64
      ret i64 %int
    }"""
    assert run(lambda: text, "test-symbols", 64) == 1


def test_threads_share_one_build() -> None:
    build = Adder(2)
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(run(build))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [3] * 8
    assert build.builds == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_forked_child_compiles_and_runs() -> None:
    address = compile_kernel("test-before", Adder(1), host_target())
    assert in_fork(lambda: call(address, 1) == 2 and run(Adder(9), "test-in-child") == 10)
    assert run(Adder(8), "test-after") == 9


def compiles_in_child(attempt: int) -> bool:
    return run(Adder(9), f"test-child-{attempt}") == 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_fork_while_another_thread_compiles() -> None:
    stop = threading.Event()

    def compile_on() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            run(Adder(number), f"test-busy-{number}")

    thread = threading.Thread(target=compile_on)
    thread.start()
    try:
        for attempt in range(5):
            assert in_fork(functools.partial(compiles_in_child, attempt))
    finally:
        stop.set()
        thread.join()


def compile_in_new_process(numbers: list[int], start: float) -> list[int]:
    time.sleep(max(0.0, start - time.time()))
    return [run(Adder(number), f"test-add-{number}") for number in numbers]


def test_processes_share_a_cold_cache(directory: Path) -> None:
    numbers = list(range(25))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        start = time.time() + 1.0
        results = [pool.apply_async(compile_in_new_process, (numbers, start)) for _ in range(3)]
        assert [result.get(60) for result in results] == [[number + 1 for number in numbers]] * 3
    names = os.listdir(directory)
    assert len(names) == 25
    assert all(name.endswith(".o") for name in names)
    build = Adder(7)
    assert run(build, "test-add-7") == 8
    assert build.builds == 0


def test_the_key_on_disk_covers_what_decides_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    target = host_target()
    keys = {jit._cache_key("a", target), jit._cache_key("b", target)}
    changes: list[Callable[[], None]] = [
        lambda: monkeypatch.setattr("convwright.__version__", "0.0.0"),
        lambda: monkeypatch.setattr("llvmlite.__version__", "0.0.0"),
        lambda: monkeypatch.setattr(jit, "sources_hash", lambda: b"changed"),
        lambda: monkeypatch.setattr(jit, "_PASSES", ("sroa",)),
    ]
    for change in changes:
        jit._cache_key_prefix.cache_clear()
        change()
        keys.add(jit._cache_key("a", target))
    jit._cache_key_prefix.cache_clear()
    assert len(keys) == 6


def test_a_changed_source_changes_the_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "convwright"
    for room in jit._ROOMS:
        shutil.copytree(Path(jit.__file__).parent.parent / room, package / room)
    monkeypatch.setattr(jit, "__file__", str(package / "codegen" / "jit.py"))
    monkeypatch.setattr(jit, "_room_hash", jit._room_hash.__wrapped__)
    original = jit.sources_hash.__wrapped__()
    assert original == jit.sources_hash()
    with open(package / "kernels" / "__init__.py", "a") as file:
        file.write("\n")
    assert jit.sources_hash.__wrapped__() != original
    assert jit.sources_hash.__wrapped__(("codegen", "runtime")) == jit.sources_hash(("codegen", "runtime"))


def test_assembly_is_text() -> None:
    assert "kernel" in assembly("test-add", Adder(1), host_target())


# -- entries -----------------------------------------------------------------------------------------------------------


def entry_path(directory: Path, key: bytes = KEY) -> Path:
    return directory / (key.hex() + ".o")


def opened() -> ObjectCache:
    """The cache of a process that has just started."""
    cache._opened.cache_clear()
    found = object_cache()
    assert found is not None
    return found


def test_an_entry_comes_back(directory: Path) -> None:
    opened().put(KEY, PAYLOAD, IR_HASH)
    assert opened().get(KEY) == (PAYLOAD, IR_HASH)
    assert opened().get(OTHER_KEY) is None
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(directory.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(entry_path(directory).stat().st_mode) == 0o600


@pytest.mark.parametrize("at", [0, 7, 8, 12, 19, 20, 51, 52, 84, 115, 116, 2000, -1])
def test_one_wrong_bit_is_noticed_anywhere(directory: Path, at: int) -> None:
    opened().put(KEY, PAYLOAD, IR_HASH)
    path = entry_path(directory)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert opened().get(KEY) is None
    assert not path.exists()


@pytest.mark.parametrize("length", [0, 1, 115, 116, 117, 5235])
def test_a_truncated_entry_is_noticed(directory: Path, length: int) -> None:
    opened().put(KEY, PAYLOAD, IR_HASH)
    path = entry_path(directory)
    os.truncate(path, length)
    assert opened().get(KEY) is None
    assert not path.exists()


def test_a_longer_entry_is_noticed(directory: Path) -> None:
    opened().put(KEY, PAYLOAD, IR_HASH)
    with open(entry_path(directory), "ab") as file:
        file.write(b"\0")
    assert opened().get(KEY) is None


def test_the_entry_of_another_key_is_noticed(directory: Path) -> None:
    opened().put(KEY, PAYLOAD, IR_HASH)
    os.rename(entry_path(directory), entry_path(directory, OTHER_KEY))
    assert opened().get(OTHER_KEY) is None
    # Another's payload under this key's header.
    opened().put(KEY, PAYLOAD, IR_HASH)
    opened().put(OTHER_KEY, PAYLOAD[::-1], IR_HASH)
    size = cache._HEADER.size
    mine, other = (entry_path(directory, key).read_bytes() for key in (KEY, OTHER_KEY))
    entry_path(directory).write_bytes(mine[:size] + other[size:])
    assert opened().get(KEY) is None


def test_a_damaged_entry_is_compiled_anew(directory: Path) -> None:
    run(Adder(5))
    (path,) = directory.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    forget()
    build = Adder(5)
    assert run(build) == 6
    assert build.builds == 1
    forget()
    assert run(build) == 6
    assert build.builds == 1


def test_an_entry_writable_to_others_is_rejected(directory: Path) -> None:
    opened().put(KEY, PAYLOAD, IR_HASH)
    entry_path(directory).chmod(0o620)
    assert opened().get(KEY) is None
    assert not entry_path(directory).exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_an_entry_of_another_user_is_rejected(directory: Path) -> None:
    opened().put(KEY, PAYLOAD, IR_HASH)
    os.chown(entry_path(directory), 12345, -1)
    assert opened().get(KEY) is None


def test_links_and_special_files_are_not_followed(directory: Path, tmp_path: Path) -> None:
    opened().put(KEY, PAYLOAD, IR_HASH)
    path = entry_path(directory)
    os.rename(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert opened().get(KEY) is None
    assert (tmp_path / "elsewhere").exists()
    os.mkfifo(path)
    assert opened().get(KEY) is None
    path.mkdir()
    assert opened().get(KEY) is None
    path.rmdir()
    # Writing replaces a link; it does not write through it.
    path.symlink_to(tmp_path / "target")
    opened().put(KEY, PAYLOAD, IR_HASH)
    assert opened().get(KEY) is not None
    assert not (tmp_path / "target").exists()


# -- directories -------------------------------------------------------------------------------------------------------


def works_without_cache(match: str) -> None:
    """Kernels are compiled and run, with one warning in all."""

    def several() -> list[int]:
        first = [run(Adder(number), f"test-add-{number}") for number in range(3)]
        cache._opened.cache_clear()
        return [*first, run(Adder(9), "test-add-9")]

    forget()
    with pytest.warns(RuntimeWarning, match=match) as caught:
        assert several() == [1, 2, 3, 10]
    assert len(caught) == 1


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_directory_writable_to_others_is_not_used(directory: Path, mode: int) -> None:
    run(Adder(5), "test-add-0")  # an entry that would give a wrong result
    directory.chmod(mode)
    works_without_cache("is writable to other users")


def test_the_directory_of_another_user_is_not_used(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(Adder(5), "test-add-0")
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    works_without_cache("belongs to user .*, not 54321")
    monkeypatch.undo()
    assert len(os.listdir(directory)) == 1


def test_a_linked_directory_is_not_used(directory: Path, tmp_path: Path) -> None:
    run(Adder(5), "test-add-0")
    directory.rename(tmp_path / "moved")
    directory.symlink_to(tmp_path / "moved")
    works_without_cache("is a symbolic link|is not a directory")


def test_a_file_in_the_place_of_the_directory(directory: Path) -> None:
    directory.parent.mkdir()
    directory.write_text("")
    works_without_cache("is not a directory")


def test_a_read_only_place(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    real = os.open

    def open_read_only(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_CREAT and "dir_fd" in named:
            raise PermissionError(13, "Permission denied", path)
        return real(path, flags, *rest, **named)

    # Supported operations are looked up by the function itself.
    monkeypatch.setattr(os, "supports_dir_fd", os.supports_dir_fd | {open_read_only})
    monkeypatch.setattr(os, "open", open_read_only)
    works_without_cache("cannot write to .*: Permission denied")
    assert os.listdir(directory) == []


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_still_read(directory: Path) -> None:
    run(Adder(5), "test-add-0")
    directory.chmod(0o500)
    forget()
    build = Adder(5)
    assert run(build, "test-add-0") == 6
    assert build.builds == 0
    directory.chmod(0o700)


def test_a_place_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CONVWRIGHT_CACHE", str(tmp_path / "file" / "below"))
    works_without_cache("Not a directory|is not a directory")


def test_a_full_disk_leaves_nothing_half_written(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            if len(data) < 500:
                raise OSError(28, "No space left on device")
            return real(descriptor, bytes(data[:100]))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    works_without_cache("No space left on device")
    assert os.listdir(directory) == []


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE")
def test_a_file_size_limit_leaves_nothing_half_written(directory: Path) -> None:
    def body() -> bool:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            right = run(Adder(5), "test-add-limited") == 6
        return right and len(caught) == 1 and os.listdir(directory) == []

    assert in_fork(body)


def test_a_directory_deleted_meanwhile_is_made_again(directory: Path) -> None:
    run(Adder(5))
    shutil.rmtree(directory.parent)
    assert run(Adder(6), "test-add-6") == 7
    assert len(os.listdir(directory)) == 1


# -- size --------------------------------------------------------------------------------------------------------------


def key_of(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def test_the_least_recently_used_go_first(directory: Path) -> None:
    limited = ObjectCache(directory, 60_000)
    now = time.time()
    for number in range(10):
        limited.put(key_of(number), PAYLOAD, IR_HASH)
        os.utime(entry_path(directory, key_of(number)), (now - 5000 + number, now - 5000 + number))
    assert limited.get(key_of(0)) is not None  # now the most recently used
    for number in range(10, 14):
        limited.put(key_of(number), PAYLOAD, IR_HASH)
        assert size_of(directory) <= 60_000
    assert limited.get(key_of(0)) is not None
    assert limited.get(key_of(1)) is None
    assert limited.get(key_of(13)) is not None


def test_use_is_recorded_but_not_every_time(directory: Path) -> None:
    opened().put(KEY, PAYLOAD, IR_HASH)
    path = entry_path(directory)
    for age, recorded in ((30.0, False), (3000.0, True)):
        old = time.time() - age
        os.utime(path, (old, old))
        assert opened().get(KEY) is not None
        assert (path.stat().st_mtime > old + 1) == recorded


def fill(directory: Path, first: int, limit: int) -> None:
    limited = ObjectCache(directory, limit)
    for number in range(first, first + 150):
        limited.put(key_of(number), PAYLOAD, IR_HASH)


def test_processes_keep_the_bound_together(directory: Path) -> None:
    limit = 400_000
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(fill, [(directory, first, limit) for first in (0, 1000, 2000)], chunksize=1)
    # A process counts the entries of the others now and then only.
    assert 0 < size_of(directory) <= 2 * limit
    fill(directory, 3000, limit)
    assert size_of(directory) <= limit


def test_files_abandoned_by_dead_processes_are_swept(directory: Path) -> None:
    opened().put(KEY, PAYLOAD, IR_HASH)
    old, young, foreign = (directory / name for name in ("a.o.1.x.tmp", "b.o.1.x.tmp", "notes.txt"))
    for path in (old, young, foreign):
        path.write_text("")
    os.utime(old, (0, 0))
    os.utime(foreign, (0, 0))
    opened().put(OTHER_KEY, PAYLOAD, IR_HASH)
    assert not old.exists()
    assert young.exists()
    assert foreign.exists()


def test_the_limit_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened().limit == 256 << 20
    monkeypatch.setenv("CONVWRIGHT_CACHE_MB", "1.5")
    assert opened().limit == 3 << 19
    monkeypatch.setenv("CONVWRIGHT_CACHE_MB", "0")
    assert object_cache() is None
    for wrong in ("many", "-1", "nan", "inf"):
        monkeypatch.setenv("CONVWRIGHT_CACHE_MB", wrong)
        with pytest.raises(ConvwrightError, match=f"CONVWRIGHT_CACHE_MB='{wrong}': give a number of megabytes"):
            object_cache()


def test_what_exceeds_the_limit_is_not_stored(directory: Path) -> None:
    ObjectCache(directory, 1000).put(KEY, PAYLOAD, IR_HASH)
    assert not directory.exists()


def test_the_default_directory_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CONVWRIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    found = cache.cache_directory()
    assert found is not None
    assert found.name == "convwright"
    if sys.platform == "linux":
        assert found.parent == tmp_path / "xdg"
