"""The generated code of a parallel region: how threads share the steps of a job, wait for each other, and sleep.

The table is an int64 array ``[steps][STEP_COLUMNS]``: address of the kernel, address of its arguments, number of work
items, whether a barrier follows. Every thread walks it, does its share of each step's items, helps those that are
behind, and meets the others at the barriers.

Nobody waits for a thread that has not woken up yet. The steps between two barriers are a stage; who comes late joins
the stage that the others are at, and a barrier is for those who have joined. All of that is one word, changed by
compare-and-exchange alone while it is open:

    members << 48 | arrived << 32 | stage

- The caller opens it with one member, itself, when everything that a member reads (table, cursors, first step of the
  stage) is in place. A worker joins by adding a member, which it may not where there is none: the job is over.
- The last of the members to arrive starts the next stage: it sets `arrived` to zero and counts `stage` on. It can only
  be the last if nobody joined in between, else its exchange fails and it looks again.
- So a stage does not end before all who joined it have arrived, and none of them touches an item of it after that.
  After the last stage, the last to arrive leaves no member: the word is closed, and only the caller, who waits for
  that, opens it again.
- `stage` never goes back, from job to job neither, so that an exchange prepared in one stage fails in any other (but
  for a thread that is kept from running for exactly 2^32 stages).
- The first step of a stage lies in one of two places, by the parity of `stage`: whoever may be the last writes the
  next stage's before its exchange, which may still fail, and those who join meanwhile read the other place.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

from llvmlite import ir
from llvmlite.ir.instructions import StoreAtomicInstr

from convwright.codegen.lang import I32, I64, PTR, Int, Kernel
from convwright.codegen.target import host_target

STEP_COLUMNS = 4
LINE = 8  # int64 a cache line: each field that threads fight over has a line of its own
FIELDS = 11
JOB, _STAGE, _FIRST, _JOB_SLEEPERS, _STAGE_SLEEPERS, _STEPS, _COUNT, THREADS, SPINS, STOP, CURSORS = (
    LINE * place for place in range(FIELDS)
)
_MEMBER, _ARRIVED, _STAGES = 1 << 48, 1 << 32, (1 << 32) - 1  # of the word in _STAGE
_PIECES = 4  # into which a thread's share of a step is cut, so that others can take over what it has not begun
FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if sys.platform == "linux" else None
_FUTEX_WAIT, FUTEX_WAKE = 128, 129  # the process-private operations
MOST_THREADS = 1024


class _Synchronised(Kernel):
    """A kernel that also has atomics and can sleep."""

    def field(self, shared: ir.Value, place: int) -> ir.Value:
        return self.b.gep(shared, [ir.Constant(I64, place)], source_etype=I64)

    def read(self, address: ir.Value, ordering: str = "acquire") -> Int:
        return Int(self, self.b.load_atomic(address, ordering, 8, typ=I64))

    def write(self, value: int | Int, address: ir.Value, ordering: str = "seq_cst") -> None:
        # The builder's own method asks an opaque pointer for the type it points to.
        block = self.b.block
        self.b._insert(StoreAtomicInstr(block, self.int_value(value), address, ordering, 8))

    def exchange(self, address: ir.Value, old: Int, new: Int) -> tuple[Int, ir.Value]:
        """Store ``new`` if ``old`` is there; what was there, and whether it was."""
        result = self.b.cmpxchg(address, old.value, new.value, "seq_cst", "acquire")
        return Int(self, self.b.extract_value(result, 0)), self.b.extract_value(result, 1)

    def stage_of(self, word: Int) -> Int:
        return Int(self, self.b.and_(word.value, ir.Constant(I64, _STAGES)))

    def members_of(self, word: Int) -> Int:
        return word // _MEMBER

    def first_step(self, shared: ir.Value, stage: Int) -> ir.Value:
        """Where the first step of that stage is told."""
        return self.b.gep(self.field(shared, _FIRST), [(stage % 2).value], source_etype=I64)

    def fetch_add(self, address: ir.Value, amount: int) -> Int:
        return Int(self, self.b.atomic_rmw("add", address, ir.Constant(I64, amount), "seq_cst"))

    def pause(self) -> None:
        if "x86" in platform.machine() or platform.machine() == "AMD64":
            self.b.call(self.intrinsic("llvm.x86.sse2.pause", ir.VoidType(), []), [])
        else:
            self.b.call(self.intrinsic("llvm.aarch64.hint", ir.VoidType(), [I32]), [ir.Constant(I32, 1)])

    def futex(self, address: ir.Value, operation: int, value: Int | int) -> None:
        if FUTEX is None:  # no futex here: a short sleep in its place
            usleep = self.intrinsic("usleep", I32, [I32])
            if operation == _FUTEX_WAIT:
                self.b.call(usleep, [ir.Constant(I32, 50)])
            return
        if "syscall" not in self._declared:
            kind = ir.FunctionType(I64, [I64], var_arg=True)
            self._declared["syscall"] = ir.Function(self.module, kind, "syscall")
        number, what, zero = (ir.Constant(I64, word) for word in (FUTEX, operation, 0))
        self.b.call(self._declared["syscall"], [number, address, what, self.int_value(value), zero, zero, zero])

    def wait_while(self, shared: ir.Value, place: int, old: Int, sleepers: int) -> None:
        """Until the lower half of the field is no longer ``old``: spin, then sleep."""
        address = self.field(shared, place)
        spins = self.read(self.field(shared, SPINS))
        spun = self.variable(0)
        head, body, sleep, spin, done = (self.b.append_basic_block(name) for name in ("w", "wb", "ws", "wp", "wd"))
        self.b.branch(head)
        self.b.position_at_end(head)
        self.b.cbranch(self.stage_of(self.read(address)).equals(old), body, done)
        self.b.position_at_end(body)
        self.b.cbranch(spun.get() < spins, spin, sleep)
        self.b.position_at_end(spin)
        self.pause()
        spun.set(spun.get() + 1)
        self.b.branch(head)
        self.b.position_at_end(sleep)
        self.fetch_add(self.field(shared, sleepers), 1)
        self.futex(address, _FUTEX_WAIT, old)
        self.fetch_add(self.field(shared, sleepers), -1)
        self.b.branch(head)
        self.b.position_at_end(done)

    def wake(self, shared: ir.Value, place: int, sleepers: int) -> None:
        """Wake whoever sleeps on a field that was changed just now: who counts itself later does not fall asleep."""
        count = self.read(self.field(shared, sleepers), "seq_cst")
        with self.when(Int(self, self.b.sub(ir.Constant(I64, 0), count.value)) < 0):
            self.futex(self.field(shared, place), FUTEX_WAKE, MOST_THREADS)

    def join(self, shared: ir.Value, closed: Any) -> Int:
        """Become a member, and tell the stage; continues at the block ``closed`` where no job is under way."""
        address = self.field(shared, _STAGE)
        word = self.variable(self.read(address))
        head, attempt, joined = (self.b.append_basic_block(name) for name in ("join", "attempt", "joined"))
        self.b.branch(head)
        self.b.position_at_end(head)
        self.b.cbranch(self.members_of(word.get()).equals(0), closed, attempt)
        self.b.position_at_end(attempt)
        old = word.get()
        found, done = self.exchange(address, old, old + _MEMBER)
        word.set(found)
        self.b.cbranch(done, joined, head)
        self.b.position_at_end(joined)
        return self.stage_of(word.get())

    def arrive(self, shared: ir.Value, following: Int, last_stage: bool, wait: bool) -> Int:
        """The end of a stage, and the step that the next begins with: ``wait`` for all members. The next stage."""
        address = self.field(shared, _STAGE)
        word = self.variable(self.read(address))
        stage = self.stage_of(word.get())  # it stays the same until this member, too, has arrived
        after = self.stage_of(stage + 1)
        head, attempt, arrived = (self.b.append_basic_block(name) for name in ("arrive", "attempt", "arrived"))
        complete = self.variable(0)
        self.b.branch(head)
        self.b.position_at_end(head)
        old = word.get()
        members, here = self.members_of(old), old // _ARRIVED % (_MEMBER // _ARRIVED)
        is_last = (here + 1).equals(members)
        complete.set(Int(self, self.b.zext(is_last, I64)))
        with self.when(is_last):
            self.write(following, self.first_step(shared, after), "release")
        self.b.branch(attempt)
        self.b.position_at_end(attempt)
        opened = after if last_stage else members * _MEMBER + after
        found, done = self.exchange(address, old, self.choose(is_last, opened, old + _ARRIVED))
        word.set(found)
        self.b.cbranch(done, arrived, head)
        self.b.position_at_end(arrived)
        with self.either(complete.get().equals(1)) as (last, others):
            with last:
                self.wake(shared, _STAGE, _STAGE_SLEEPERS)
            with others:
                if wait:
                    self.wait_while(shared, _STAGE, stage, _STAGE_SLEEPERS)
        return after

    def walk(
        self, shared: ir.Value, steps: ir.Value, first: Int, count: Int, thread: Int, stage: Int, is_caller: bool,
        times: ir.Value | None = None,
    ) -> None:  # fmt: skip
        """The steps of the table from ``first``, which begins ``stage``: of each this thread's share, piece by piece,
        then pieces of shares not yet finished.

        ``cursors[step][owner]`` says how far an owner's share has been taken, by whomever, and in which stage: what it
        says of another stage means nothing. ``times``: the cycle counter at the start and after each step.
        """
        threads = self.read(self.field(shared, THREADS))
        cursors = self.b.inttoptr(self.read(self.field(shared, CURSORS)).value, PTR)
        now = self.variable(stage)
        if times is not None:
            self.note_time(times, 0)
        with self.loop(first, count) as step:
            function, arguments, items, meet = (self.load_int(steps, step * STEP_COLUMNS + i) for i in range(4))
            with self.loop(0, threads) as ahead:
                owner = (thread + ahead) % threads
                cursor = self.line(cursors, step * threads + owner)
                share = items * owner // threads, items * (owner + 1) // threads
                self.take(function, arguments, *share, cursor, now.get(), thread)
            with self.when((meet * -1) < 0):
                now.set(self.arrive(shared, step + 1, last_stage=False, wait=True))
            if times is not None:
                self.note_time(times, step + 1)
        self.arrive(shared, count, last_stage=True, wait=is_caller)

    def alone(self, steps: ir.Value, count: Int, times: ir.Value | None = None) -> None:
        """All steps by a thread that has nobody beside it."""
        if times is not None:
            self.note_time(times, 0)
        with self.loop(0, count) as step:
            function, arguments, items = (self.load_int(steps, step * STEP_COLUMNS + i) for i in range(3))
            zero = Int(self, ir.Constant(I64, 0))
            with self.when(zero < items):
                self.call(function, self.b.inttoptr(arguments.value, PTR), 0, items, zero)
            if times is not None:
                self.note_time(times, step + 1)

    def note_time(self, times: ir.Value, index: Int | int) -> None:
        clock = self.intrinsic("llvm.readcyclecounter", I64, [])
        self.b.store(self.b.call(clock, []), self.b.gep(times, [self.int_value(index)], source_etype=I64))

    def line(self, lines: ir.Value, index: Int) -> ir.Value:
        return self.b.gep(lines, [(index * LINE).value], source_etype=I64)

    def take(
        self, function: Int, arguments: Int, begin: Int, end: Int, cursor: ir.Value, stage: Int, thread: Int
    ) -> None:
        """Do pieces of the items ``begin <= item < end`` for as long as there are some."""
        piece = self.maximum((end - begin) // _PIECES, 1)
        head, body, attempt, done = (self.b.append_basic_block(name) for name in ("take", "piece", "attempt", "taken"))
        self.b.branch(head)
        self.b.position_at_end(head)
        old = self.read(cursor)
        known = self.choose((old // _ARRIVED).equals(stage), self.stage_of(old), 0)
        first = begin + known
        self.b.cbranch(first < end, attempt, done)
        self.b.position_at_end(attempt)
        _, ours = self.exchange(cursor, old, stage * _ARRIVED + known + piece)
        self.b.cbranch(ours, body, head)
        self.b.position_at_end(body)
        self.call(function, self.b.inttoptr(arguments.value, PTR), first, self.minimum(first + piece, end), thread)
        self.b.branch(head)
        self.b.position_at_end(done)


def build_runner(timed: bool) -> ir.Module:
    """``kernel(shared, steps, count, times)``: post the job, do thread 0's share, return when the job is over."""
    k = _Synchronised(host_target())
    shared = k.args_pointer
    steps = k.b.inttoptr(k.begin.value, PTR)
    k.write(k.begin, k.field(shared, _STEPS), "release")
    k.write(k.end, k.field(shared, _COUNT), "release")
    times = k.b.inttoptr(k.thread.value, PTR) if timed else None
    zero = Int(k, ir.Constant(I64, 0))
    stage = k.read(k.field(shared, _STAGE))  # closed: without members
    with k.either((k.read(k.field(shared, THREADS)) * -1) < -1) as (together, single):
        with together:
            k.write(0, k.first_step(shared, stage), "release")
            k.write(stage + _MEMBER, k.field(shared, _STAGE))
            k.write(k.stage_of(k.read(k.field(shared, JOB)) + 1), k.field(shared, JOB))
            k.wake(shared, JOB, _JOB_SLEEPERS)
            k.walk(shared, steps, zero, k.end, zero, stage, True, times)
        with single:
            k.alone(steps, k.end, times)
    return k.finish()


def build_pauses() -> ir.Module:
    """``kernel(_, begin, end, _)``: as many turns of waiting."""
    k = _Synchronised(host_target())
    with k.loop(k.begin, k.end):
        k.pause()
    return k.finish()


def build_worker() -> ir.Module:
    """``kernel(own)`` with ``own`` = (shared, thread): join every job that is still under way until told to stop.

    A worker that is late may find the job after the one that woke it, and later be woken for that once more; it then
    finds it closed, or its last stage without items.
    """
    k = _Synchronised(host_target())
    shared, thread = k.pointer(0), k.arg(1)
    seen = k.variable(0)
    again, work, leave = (k.b.append_basic_block(name) for name in ("again", "work", "leave"))
    k.b.branch(again)
    k.b.position_at_end(again)
    k.wait_while(shared, JOB, seen.get(), _JOB_SLEEPERS)
    seen.set(k.read(k.field(shared, JOB)))
    k.b.cbranch(k.read(k.field(shared, STOP)).equals(0), work, leave)
    k.b.position_at_end(work)
    stage = k.join(shared, again)
    first = k.read(k.first_step(shared, stage))
    steps = k.b.inttoptr(k.read(k.field(shared, _STEPS)).value, PTR)
    k.walk(shared, steps, first, k.read(k.field(shared, _COUNT)), thread, stage, False)
    k.b.branch(again)
    k.b.position_at_end(leave)
    return k.finish()
