"""The arithmetic of integer convolutions: 32-bit words that hold several channels, and sums of their products.

A word has four channels of 8 bits ("bytes": the input unsigned, the weights signed, for instructions that add four
such products to a lane) or two of 16 bits ("halves", both signed, from which zero points are already subtracted). All
sums are exact in 32 bits, or wrap where 32 bits do not hold them: no instruction used here saturates.
"""

from __future__ import annotations

from llvmlite import ir

from convwright.codegen.lang import I32, Integer, Kernel
from convwright.codegen.target import Target

I8 = ir.IntType(8)
I16 = ir.IntType(16)

CHANNELS = {"bytes": 4, "halves": 2}
"""Channels in a word of each form."""

_PAIRS = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}

# float32 with this added holds an integer between -2^22 and 2^22 in its lowest bits, rounded half to even.
_ROUND = 1.5 * 2**23
ROUND_BITS = 0x4B400000


def accumulates(target: Target) -> bool:
    """Whether products are added to a lane by the instruction that makes them."""
    return target.has_vnni


def add_word(k: Kernel, form: str, total: ir.Value, x: ir.Value, w: ir.Value) -> ir.Value:
    """``total`` plus, in each lane, the sum of the products of the channels of words ``x`` and ``w``."""
    kind = k.int_vector_type
    if k.target.has_vnni:
        name = "vpdpbusd" if form == "bytes" else "vpdpwssd"
        call = k.intrinsic(f"llvm.x86.avx512.{name}.{32 * k.v}", kind, [kind] * 3)
        return k.b.call(call, [total, x, w])
    assert form == "halves", form
    return k.b.add(total, _sum_of_pairs(k, x, w))


def _sum_of_pairs(k: Kernel, x: ir.Value, w: ir.Value) -> ir.Value:
    halves = ir.VectorType(I16, 2 * k.v)
    x, w = k.b.bitcast(x, halves), k.b.bitcast(w, halves)
    if k.target.is_x86:
        call = k.intrinsic(_PAIRS[k.v], k.int_vector_type, [halves, halves])
        return k.b.call(call, [x, w])
    products = []
    for side in (0, 1):
        lanes = range(side, 2 * k.v, 2)
        a, b = (k.b.sext(k.shuffle(each, each, lanes), k.int_vector_type) for each in (x, w))
        products.append(k.b.mul(a, b))
    return k.b.add(*products)


def load_word(k: Kernel, pointer: ir.Value, offset: Integer = 0) -> ir.Value:
    """One word, in every lane."""
    return splat_word(k, k.b.load(k.advance(pointer, offset), typ=I32, align=1))


def splat_word(k: Kernel, word: ir.Value) -> ir.Value:
    """A 32-bit integer in every lane."""
    first = k.b.insert_element(ir.Constant(k.int_vector_type, ir.Undefined), word, ir.Constant(I32, 0))
    return k.shuffle(first, first, [0] * k.v)


def load_byte(k: Kernel, pointer: ir.Value, signed: bool) -> ir.Value:
    """The byte at the pointer as a 32-bit integer."""
    byte = k.b.load(pointer, typ=I8, align=1)
    return k.b.sext(byte, I32) if signed else k.b.zext(byte, I32)


def advance_bytes(k: Kernel, pointer: ir.Value, offset: Integer) -> ir.Value:
    """The pointer ``offset`` bytes further on."""
    return k.b.gep(pointer, [k.int_value(offset)], source_etype=I8)


def padding_word(k: Kernel, form: str, signed: bool, zero: ir.Value) -> ir.Value:
    """A word of padding, for an input whose zero point is the 32-bit integer ``zero``."""
    if form == "halves":
        return ir.Constant(I32, 0)
    byte = k.b.and_(k.b.xor(zero, ir.Constant(I32, 128 if signed else 0)), ir.Constant(I32, 255))
    return k.b.mul(byte, ir.Constant(I32, 0x01010101))


def join(k: Kernel, form: str, signed: bool, channels: list[ir.Value], zero: ir.Value) -> ir.Value:
    """Words from vectors of the bytes of their channels; channels that are missing are zero."""
    if form == "bytes":
        flip = ir.Constant(channels[0].type, [-128] * k.v)
        parts = [k.b.zext(k.b.xor(each, flip) if signed else each, k.int_vector_type) for each in channels]
    else:
        widen = k.b.sext if signed else k.b.zext
        zeros = splat_word(k, zero)
        parts = [k.b.sub(widen(each, k.int_vector_type), zeros) for each in channels]
        if len(parts) > 1:
            parts[0] = k.b.and_(parts[0], k.splat_int(0xFFFF))
    word = parts[0]
    for place, part in enumerate(parts[1:], 1):
        word = k.b.or_(word, k.b.shl(part, k.splat_int(32 // CHANNELS[form] * place)))
    return word


def zero_of_bytes(k: Kernel, signed: bool, zero: ir.Value) -> ir.Value:
    """The input's zero point as words of the form "bytes" hold it, in every lane."""
    return splat_word(k, k.b.add(zero, ir.Constant(I32, 128)) if signed else zero)


def requantise(
    k: Kernel, total: ir.Value, scale: ir.Value, low: ir.Value, high: ir.Value, offset: ir.Value
) -> ir.Value:
    """``round_half_even(clamp(total * scale, low, high)) + offset + ROUND_BITS`` in 32-bit lanes.

    The product is one float32 multiplication, as onnxruntime's; ``low`` and ``high`` are integers below 2^22.
    """
    value = k.mul(k.b.sitofp(total, k.vector_type), scale)
    value = k.min(k.max(value, low), high)
    return k.b.add(k.b.bitcast(k.add(value, k.splat(_ROUND)), k.int_vector_type), offset)
