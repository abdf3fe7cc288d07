"""Half vectors of float64 inside kernels of float32: where sums, or products that are rounded once, need them."""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from convwright.codegen.lang import F32, F64, I32, Int, Integer, Kernel


class Doubles:
    """Vectors of ``v // 2`` float64; offsets count float32, as the kernel's own do.

    `lanes`: the first lane of each of the two halves of a vector of float32.
    """

    def __init__(self, k: Kernel):
        self.k = k
        self.count = k.v // 2
        self.lanes = (0, self.count)
        self.kind = ir.VectorType(F64, self.count)
        self._floats = ir.VectorType(F32, self.count)
        self.ints = ir.VectorType(ir.IntType(64), self.count)

    def of_floats(self, pointer: ir.Value, offset: Integer) -> ir.Value:
        """Half a vector of float32."""
        where = self.k.advance(pointer, offset)
        return self.k.b.fpext(self.k.b.load(where, typ=self._floats, align=4), self.kind)

    def to_floats(self, value: ir.Value, pointer: ir.Value, offset: Integer) -> None:
        """Round to half a vector of float32."""
        self.k.b.store(self.k.b.fptrunc(value, self._floats), self.k.advance(pointer, offset), align=4)

    def load(self, pointer: ir.Value, offset: Integer) -> ir.Value:
        return self.k.b.load(self.k.advance(pointer, offset), typ=self.kind, align=8)

    def store(self, value: ir.Value, pointer: ir.Value, offset: Integer) -> None:
        self.k.b.store(value, self.k.advance(pointer, offset), align=8)

    def repeated(self, pointer: ir.Value, index: Integer) -> ir.Value:
        """Element ``index`` of a table of float64, in every lane."""
        where = self.k.b.gep(pointer, [self.k.int_value(index)], source_etype=F64)
        return self.broadcast(self.k.b.load(where, typ=F64, align=8))

    def broadcast(self, scalar: ir.Value) -> ir.Value:
        first = self.k.b.insert_element(ir.Constant(self.kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self._shuffle(first, [0] * self.count)

    def splat(self, number: float) -> ir.Value:
        return ir.Constant(self.kind, [number] * self.count)

    def splat_int(self, number: int) -> ir.Value:
        return ir.Constant(self.ints, [number] * self.count)

    def int_broadcast(self, number: Int) -> ir.Value:
        """A 64-bit integer in every lane."""
        first = self.k.b.insert_element(ir.Constant(self.ints, ir.Undefined), number.value, ir.Constant(I32, 0))
        return self._shuffle(first, [0] * self.count)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """``a * b + c``: one instruction where the target has it, two roundings where it has not."""
        if not self.k.target.has_fma:
            return self.k.add(self.k.mul(a, b), c)
        return self.k.b.call(self.k.intrinsic(f"llvm.fma.v{self.count}f64", self.kind, [self.kind] * 3), [a, b, c])

    def size(self, a: ir.Value) -> ir.Value:
        """Absolute values."""
        return self.k.b.call(self.k.intrinsic(f"llvm.fabs.v{self.count}f64", self.kind, [self.kind]), [a])

    def sum(self, a: ir.Value) -> ir.Value:
        """Of all lanes, a scalar."""
        apart = self.count // 2
        while apart:
            a = self.k.add(a, self._shuffle(a, [lane ^ apart for lane in range(self.count)]))
            apart //= 2
        return self.k.b.extract_element(a, ir.Constant(I32, 0))

    def _shuffle(self, a: ir.Value, lanes: Sequence[int]) -> ir.Value:
        return self.k.b.shuffle_vector(a, a, ir.Constant(ir.VectorType(I32, self.count), list(lanes)))
