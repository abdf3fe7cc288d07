"""The small vector language in which every kernel is written.

A kernel is one function, ``void kernel(const int64 *args, int64 begin, int64 end, int64 thread)``: it does the work
items ``begin <= item < end`` of one step of an inference. ``args`` holds pointers and sizes, all 64-bit. Kernels are
specialised on what changes the instructions (Python numbers while emitting) and take the rest from ``args``.

Integers are 64-bit and written with Python operators; a Python ``int`` is a constant. Vectors hold ``k.v`` lanes of the
kernel's element: ``target.vector`` of float32, half as many of float64. Variables are mutable; LLVM's SROA pass turns
them into registers.

    k = Kernel(target)
    x, y = k.pointer(0), k.pointer(1)
    with k.loop(k.begin, k.end) as block:
        offset = block * k.v
        k.store(k.max(k.load(x, offset), k.splat(0.0)), y, offset)
    module = k.finish()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Union

from llvmlite import ir

from convwright.codegen.target import Target

I64 = ir.IntType(64)
I32 = ir.IntType(32)
I1 = ir.IntType(1)
F32 = ir.FloatType()
F64 = ir.DoubleType()
PTR = ir.PointerType()
KERNEL = ir.FunctionType(ir.VoidType(), [PTR, I64, I64, I64])

Integer = Union[int, "Int"]


class _Splat(ir.Constant):
    """One number in every lane, written in one word: every lane's would be half of a kernel's text."""

    def _get_reference(self) -> str:
        element = self.constant[0]
        return f"splat ({element.type} {element.get_reference()})"


# Constants belong to no module: one that keeps its text from kernel to kernel saves a quarter of the time to write IR.
@lru_cache(maxsize=4096)
def _constant(kind: ir.Type, number: int) -> ir.Constant:
    return ir.Constant(kind, number)


@lru_cache(maxsize=4096)
def _splat(kind: ir.VectorType, number: str) -> ir.Constant:
    """``number`` as `float.hex` writes it, which tells zeros apart."""
    return _Splat(kind, float.fromhex(number))


@lru_cache(maxsize=1024)
def _splat_int(kind: ir.VectorType, number: int) -> ir.Constant:
    return _Splat(kind, number)


@lru_cache(maxsize=16)
def _undefined(kind: ir.VectorType) -> ir.Constant:
    return _Splat(kind, ir.Undefined)


@lru_cache(maxsize=1024)
def _lanes(lanes: tuple[int, ...]) -> ir.Constant:
    kind = ir.VectorType(I32, len(lanes))
    return _Splat(kind, lanes[0]) if len(set(lanes)) == 1 else ir.Constant(kind, list(lanes))


class Int:
    """A 64-bit signed integer known when the kernel runs."""

    __slots__ = ("k", "value")

    def __init__(self, k: Kernel, value: ir.Value):
        self.k, self.value = k, value

    def __add__(self, other: Integer) -> Int:
        return self if other == 0 else Int(self.k, self.k.b.add(self.value, self.k.int_value(other)))

    def __mul__(self, other: Integer) -> Int:
        if isinstance(other, int) and other in (0, 1):
            return self if other else Int(self.k, _constant(I64, 0))
        return Int(self.k, self.k.b.mul(self.value, self.k.int_value(other)))

    __radd__, __rmul__ = __add__, __mul__

    def __sub__(self, other: Integer) -> Int:
        return Int(self.k, self.k.b.sub(self.value, self.k.int_value(other)))

    def __rsub__(self, other: Integer) -> Int:
        return Int(self.k, self.k.b.sub(self.k.int_value(other), self.value))

    def __floordiv__(self, other: Integer) -> Int:
        """Quotient of non-negative numbers."""
        return self if other == 1 else Int(self.k, self.k.b.udiv(self.value, self.k.int_value(other)))

    def __mod__(self, other: Integer) -> Int:
        """Remainder of non-negative numbers."""
        return Int(self.k, self.k.b.urem(self.value, self.k.int_value(other)))

    def unravel(self, *counts: Integer) -> list[Int]:
        """The indices that this number stands for, the last one fastest: what is left, then one below each count."""
        rest, indices = self, []
        for count in reversed(counts):
            rest, index = rest // count, rest % count
            indices.append(index)
        return [rest, *reversed(indices)]

    def __lt__(self, other: Integer) -> ir.Value:
        return self.k.b.icmp_signed("<", self.value, self.k.int_value(other))

    def __ge__(self, other: Integer) -> ir.Value:
        return self.k.b.icmp_signed(">=", self.value, self.k.int_value(other))

    def equals(self, other: Integer) -> ir.Value:
        return self.k.b.icmp_signed("==", self.value, self.k.int_value(other))


class Variable:
    """A mutable value: ``variable.get()``, ``variable.set(value)``."""

    __slots__ = ("_integer", "_k", "_slot", "_type")

    def __init__(self, k: Kernel, initial: Any):
        initial = initial if isinstance(initial, ir.Value) else k.int_value(initial)
        self._k, self._type, self._integer = k, initial.type, initial.type == I64
        with k.b.goto_entry_block():
            self._slot = k.b.alloca(initial.type)
        k.b.store(initial, self._slot)

    def get(self) -> Any:
        value = self._k.b.load(self._slot, typ=self._type)
        return Int(self._k, value) if self._integer else value

    def set(self, value: Any) -> None:
        self._k.b.store(value if isinstance(value, ir.Value) else self._k.int_value(value), self._slot)


class _Callable:
    """An address together with the type llvmlite looks up on whatever it is asked to call."""

    def __init__(self, pointer: ir.Value, function_type: ir.FunctionType):
        self.function_type, self.type, self.get_reference = function_type, pointer.type, pointer.get_reference


_ELEMENTS = {"f32": (F32, 4), "f64": (F64, 8)}


def lanes(target: Target, element: str = "f32") -> int:
    """Elements in one vector register."""
    return target.vector * 4 // _ELEMENTS[element][1]


class Kernel:
    """One kernel being written; ``finish()`` gives its module.

    ``element``: what vectors and scalars hold, "f32" or "f64"; offsets count elements.
    """

    def __init__(self, target: Target, name: str = "kernel", element: str = "f32"):
        self.target = target
        self.element = element
        self.scalar_type, self.width = _ELEMENTS[element]
        self.v = lanes(target, element)
        self.module = ir.Module(name)
        self.vector_type = ir.VectorType(self.scalar_type, self.v)
        self.int_vector_type = ir.VectorType(I32, self.v)
        self.mask_type = ir.VectorType(I1, self.v)
        function = ir.Function(self.module, KERNEL, name)
        function.attributes.add("nounwind")
        self.function = function
        entry = function.append_basic_block("entry")
        self.b = ir.IRBuilder(entry)
        self.args_pointer, begin, end, thread = function.args
        self.begin, self.end, self.thread = Int(self, begin), Int(self, end), Int(self, thread)
        self._declared: dict[str, ir.Function] = {}

    def finish(self) -> ir.Module:
        self.b.ret_void()
        return self.module

    # -- integers and control ------------------------------------------------------------------------------------------

    def int_value(self, number: Integer) -> ir.Value:
        return number.value if isinstance(number, Int) else _constant(I64, number)

    def arg(self, index: int) -> Int:
        """The integer in ``args[index]``."""
        slot = self.b.gep(self.args_pointer, [_constant(I64, index)], source_etype=I64)
        return Int(self, self.b.load(slot, typ=I64, align=8))

    def pointer(self, index: int) -> ir.Value:
        """The pointer in ``args[index]``."""
        slot = self.b.gep(self.args_pointer, [_constant(I64, index)], source_etype=I64)
        return self.b.load(slot, typ=PTR, align=8)

    def load_int(self, pointer: ir.Value, index: Integer) -> Int:
        """Element ``index`` of a table of int64."""
        slot = self.b.gep(pointer, [self.int_value(index)], source_etype=I64)
        return Int(self, self.b.load(slot, typ=I64, align=8))

    def store_int(self, number: Integer, pointer: ir.Value, index: Integer) -> None:
        """Set element ``index`` of a table of int64."""
        self.b.store(self.int_value(number), self.b.gep(pointer, [self.int_value(index)], source_etype=I64), align=8)

    def call(self, address: Int, args: ir.Value, begin: Integer, end: Integer, thread: Int) -> None:
        """Run another kernel, whose address is known when this one runs."""
        callee = _Callable(self.b.inttoptr(address.value, PTR), KERNEL)
        self.b.call(callee, [args, self.int_value(begin), self.int_value(end), thread.value])

    def advance(self, pointer: ir.Value, offset: Integer) -> ir.Value:
        """The pointer ``offset`` elements further on."""
        if isinstance(offset, int) and offset == 0:
            return pointer
        return self.b.gep(pointer, [self.int_value(offset)], source_etype=self.scalar_type)

    def opaque(self, pointer: ir.Value) -> ir.Value:
        """The same pointer, of which LLVM does not know where it points: loads through it are loaded again.

        For values that several steps of an unrolled loop share, and that would fill the registers if they were kept.
        """
        return self.b.asm(ir.FunctionType(PTR, [PTR]), "", "=r,0", [pointer], False)

    def opaque_int(self, number: Int) -> Int:
        """The same integer, of which LLVM does not know how it changes along a loop.

        For the index of a loop whose addresses lie many run-time strides apart: they are computed anew in each turn,
        some instructions, where LLVM's strength reduction would weigh all ways to let pointers move along. That took
        five sixths of the time to compile a Winograd kernel, and made more code of it.
        """
        return Int(self, self.b.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [number.value], False))

    def done(self, vectors: Sequence[ir.Value]) -> list[ir.Value]:
        """The same vectors, computed before anything that follows touches memory.

        For sums whose products LLVM would put off until later ones, keeping in registers all that they read.
        """
        count = len(vectors)
        register = "w" if not self.target.is_x86 else "v" if self.target.registers > 16 else "x"
        constraints = ",".join([*[f"={register}"] * count, *map(str, range(count)), "~{memory}"])
        types = [vector.type for vector in vectors]
        result = types[0] if count == 1 else ir.LiteralStructType(types)
        made = self.b.asm(ir.FunctionType(result, types), "", constraints, list(vectors), True)
        return [made] if count == 1 else [self.b.extract_value(made, number) for number in range(count)]

    def variable(self, initial: Any) -> Variable:
        return Variable(self, initial)

    def minimum(self, a: Integer, b: Integer) -> Integer:
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        x, y = self.int_value(a), self.int_value(b)
        return Int(self, self.b.select(self.b.icmp_signed("<", x, y), x, y))

    def smaller(self, a: Int, b: Integer) -> Int:
        """``minimum`` of numbers of which one is known only when the kernel runs."""
        return Int(self, self.int_value(self.minimum(a, b)))

    def maximum(self, a: Integer, b: Integer) -> Integer:
        if isinstance(a, int) and isinstance(b, int):
            return max(a, b)
        x, y = self.int_value(a), self.int_value(b)
        return Int(self, self.b.select(self.b.icmp_signed(">", x, y), x, y))

    def choose(self, condition: ir.Value, a: Integer, b: Integer) -> Int:
        return Int(self, self.b.select(condition, self.int_value(a), self.int_value(b)))

    @contextmanager
    def loop(self, start: Integer, stop: Integer, step: Integer = 1) -> Iterator[Int]:
        """``for index in range(start, stop, step)``; the body may run no times."""
        index = self.variable(start)
        head = self.b.append_basic_block("head")
        body = self.b.append_basic_block("body")
        done = self.b.append_basic_block("done")
        self.b.branch(head)
        self.b.position_at_end(head)
        now = index.get()
        self.b.cbranch(now < stop, body, done)
        self.b.position_at_end(body)
        yield now
        index.set(now + step)
        self.b.branch(head)
        self.b.position_at_end(done)

    @contextmanager
    def when(self, condition: ir.Value) -> Iterator[None]:
        with self.b.if_then(condition):
            yield

    @contextmanager
    def either(self, condition: ir.Value) -> Iterator[tuple[Any, Any]]:
        """``with k.either(c) as (then, otherwise): with then: ...; with otherwise: ...``"""
        with self.b.if_else(condition) as branches:
            yield branches

    # -- vectors -------------------------------------------------------------------------------------------------------

    def splat(self, number: float) -> ir.Value:
        return _splat(self.vector_type, float(number).hex())

    def splat_int(self, number: int) -> ir.Value:
        return _splat_int(self.int_vector_type, number)

    def load(self, pointer: ir.Value, offset: Integer = 0, mask: ir.Value | None = None) -> ir.Value:
        """``v`` elements from ``offset`` on; lanes outside ``mask`` are zero and their memory is not touched."""
        where = self.advance(pointer, offset)
        if mask is None:
            return self.b.load(where, typ=self.vector_type, align=self.width)
        call = self.intrinsic(
            f"llvm.masked.load.v{self.v}{self.element}.p0",
            self.vector_type,
            [PTR, I32, self.mask_type, self.vector_type],
        )
        return self.b.call(call, [where, _constant(I32, self.width), mask, self.splat(0.0)])

    def store(self, value: ir.Value, pointer: ir.Value, offset: Integer = 0, mask: ir.Value | None = None) -> None:
        where = self.advance(pointer, offset)
        if mask is None:
            self.b.store(value, where, align=self.width)
            return
        call = self.intrinsic(
            f"llvm.masked.store.v{self.v}{self.element}.p0", ir.VoidType(), [self.vector_type, PTR, I32, self.mask_type]
        )
        self.b.call(call, [value, where, _constant(I32, self.width), mask])

    def load_repeated(self, pointer: ir.Value, offset: Integer, count: int) -> ir.Value:
        """``count`` elements from ``offset`` on, again and again in all lanes; ``count`` divides ``v``."""
        few = self.b.load(self.advance(pointer, offset), typ=ir.VectorType(self.scalar_type, count), align=self.width)
        return few if count == self.v else self.shuffle(few, few, [lane % count for lane in range(self.v)])

    def load_scalar(self, pointer: ir.Value, offset: Integer = 0) -> ir.Value:
        return self.b.load(self.advance(pointer, offset), typ=self.scalar_type, align=self.width)

    def store_scalar(self, value: ir.Value, pointer: ir.Value, offset: Integer = 0) -> None:
        self.b.store(value, self.advance(pointer, offset), align=self.width)

    def broadcast(self, scalar: ir.Value) -> ir.Value:
        """A scalar in every lane."""
        first = self.b.insert_element(_undefined(self.vector_type), scalar, _constant(I32, 0))
        return self.shuffle(first, first, [0] * self.v)

    def shuffle(self, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
        """Lanes of ``a`` (0..v-1) and ``b`` (v..2v-1), in the order given."""
        return self.b.shuffle_vector(a, b, _lanes(tuple(lanes)))

    def reduced(self, vector: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
        """What ``combine`` makes of all lanes, of floats or int32, half with half until one is left."""
        apart = self.v // 2
        while apart:
            vector = combine(vector, self.shuffle(vector, vector, [lane ^ apart for lane in range(self.v)]))
            apart //= 2
        return self.extract(vector, 0)

    def extract(self, vector: ir.Value, lane: int) -> ir.Value:
        return self.b.extract_element(vector, _constant(I32, lane))

    def insert(self, vector: ir.Value, scalar: ir.Value, lane: int) -> ir.Value:
        return self.b.insert_element(vector, scalar, _constant(I32, lane))

    def lane_ids(self) -> ir.Value:
        return _lanes(tuple(range(self.v)))

    def int_broadcast(self, number: Integer) -> ir.Value:
        """A 64-bit integer, truncated to 32 bits, in every lane."""
        if isinstance(number, int):
            return self.splat_int(number)
        short = self.b.trunc(number.value, I32)
        first = self.b.insert_element(_undefined(self.int_vector_type), short, _constant(I32, 0))
        return self.shuffle(first, first, [0] * self.v)

    def mask(self, low: Integer, high: Integer) -> ir.Value:
        """The lanes ``low <= lane < high``."""
        ids = self.lane_ids()
        below = self.b.icmp_signed("<", ids, self.int_broadcast(high))
        if isinstance(low, int) and low == 0:
            return below
        return self.b.and_(below, self.b.icmp_signed(">=", ids, self.int_broadcast(low)))

    def mask_of_bits(self, bits: Int) -> ir.Value:
        """The lanes whose bit of the number is set, lane 0 the lowest."""
        return self.b.bitcast(self.b.trunc(bits.value, ir.IntType(self.v)), self.mask_type)

    def gather(self, pointer: ir.Value, indices: ir.Value, mask: ir.Value | None = None) -> ir.Value:
        """The elements at ``pointer[indices[lane]]``; ``indices`` is a vector of int32."""
        addresses = self.b.gep(pointer, [indices], source_etype=self.scalar_type)
        vector_of_pointers = ir.VectorType(PTR, self.v)
        addresses.type = vector_of_pointers
        call = self.intrinsic(
            f"llvm.masked.gather.v{self.v}{self.element}.v{self.v}p0",
            self.vector_type,
            [vector_of_pointers, I32, self.mask_type, self.vector_type],
        )
        everywhere = _splat_int(self.mask_type, 1)
        return self.b.call(call, [addresses, _constant(I32, self.width), mask or everywhere, self.splat(0.0)])

    def load_ints(self, pointer: ir.Value, offset: Integer = 0) -> ir.Value:
        """``v`` int32 from a table of int32."""
        where = self.b.gep(pointer, [self.int_value(offset)], source_etype=I32)
        return self.b.load(where, typ=self.int_vector_type, align=4)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """``a * b + c``: one instruction where the target has it, two roundings where it has not."""
        if not self.target.has_fma:
            return self.b.fadd(self.b.fmul(a, b), c)
        return self.b.call(self._float_intrinsic("fma", a.type, 3), [a, b, c])

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fadd(a, b)

    def sub(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fsub(a, b)

    def mul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fmul(a, b)

    def div(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fdiv(a, b)

    def max(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The larger; NaN where ``a`` is NaN (compiles to one maxps: it returns its second operand on NaN)."""
        return self.b.select(self.b.fcmp_ordered(">", b, a), b, a)

    def min(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The smaller; NaN where ``a`` is NaN."""
        return self.b.select(self.b.fcmp_ordered("<", b, a), b, a)

    def unary(self, name: str, a: ir.Value) -> ir.Value:
        """An LLVM intrinsic of one operand: ``sqrt``, ``fabs``, ``floor``, ``ceil``, ``roundeven``, ``trunc``."""
        return self.b.call(self._float_intrinsic(name, a.type, 1), [a])

    def larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The larger of two signed integers, or of each lane's."""
        return self.b.select(self.b.icmp_signed(">", a, b), a, b)

    def any(self, mask: ir.Value) -> ir.Value:
        """Whether a mask has any lane."""
        lanes = ir.IntType(self.v)
        return self.b.icmp_unsigned("!=", self.b.bitcast(mask, lanes), _constant(lanes, 0))

    def select(self, condition: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.select(condition, a, b)

    def prefetch(self, pointer: ir.Value, offset: Integer = 0, locality: int = 3) -> None:
        call = self.intrinsic("llvm.prefetch.p0", ir.VoidType(), [PTR, I32, I32, I32])
        constants = [_constant(I32, number) for number in (0, locality, 1)]
        self.b.call(call, [self.advance(pointer, offset), *constants])

    # -- declarations --------------------------------------------------------------------------------------------------

    def intrinsic(self, name: str, result: ir.Type, operands: Sequence[ir.Type]) -> ir.Function:
        """A function declared by its full name, once a module."""
        if name not in self._declared:
            self._declared[name] = ir.Function(self.module, ir.FunctionType(result, list(operands)), name)
        return self._declared[name]

    def _float_intrinsic(self, name: str, kind: ir.Type, operands: int) -> ir.Function:
        suffix = self.element if kind == self.scalar_type else f"v{kind.count}{self.element}"
        return self.intrinsic(f"llvm.{name}.{suffix}", kind, [kind] * operands)
