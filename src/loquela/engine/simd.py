"""Vectors of sixteen float32 in Numba: a type, and intrinsics that emit LLVM's vector instructions.

LLVM lowers a vector of sixteen to whatever the processor has: one AVX-512 register, two of AVX2, four of NEON or SSE.
Memory is named by its address, an int64.
"""

# mypy: allow-untyped-calls, disable-error-code="import-untyped,attr-defined"
from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic, models, register_model

__all__ = ["LANES", "Emit", "define", "features", "vector_type"]

LANES = 16
I1, I8, I16, I32, I64 = (ir.IntType(width) for width in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
V = ir.VectorType(F32, LANES)
VI = ir.VectorType(I32, LANES)
B64 = ir.VectorType(I8, 64)
BF16_16 = ir.VectorType(I16, LANES)


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name="float32x16")


vector_type = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, V)


def features() -> frozenset[str]:
    """What the processor that Numba compiles for can do, by LLVM's names (`avx2`, `avx512vnni`, …)."""
    if config.CPU_FEATURES is not None:  # the user's NUMBA_CPU_FEATURES
        return frozenset(f[1:] for f in config.CPU_FEATURES.split(",") if f.startswith("+"))
    return frozenset(name for name, there in llvm.get_host_cpu_features().items() if there)


class Emit:
    """Shorthands for emitting vector code with an IR builder."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder
        x86 = llvm.get_default_triple().startswith(("x86", "i686"))
        self.fused = "fma" in features() or not x86
        self.halves = "f16c" in features() or not x86

    def intrinsic(self, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        """Call an LLVM intrinsic."""
        signature = ir.FunctionType(result, [a.type for a in arguments])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, signature, name), arguments)

    def at(self, address: ir.Value, kind: ir.Type) -> ir.Value:
        """A pointer to `kind` at an address."""
        return self.b.inttoptr(address, kind.as_pointer())

    def load(self, address: ir.Value, kind: ir.Type = V, align: int = 1) -> ir.Value:
        """Load a `kind` from an address; nothing is assumed of its alignment."""
        return self.b.load(self.at(address, kind), align=align)

    def store(self, address: ir.Value, value: ir.Value) -> None:
        """Store at an address."""
        self.b.store(value, self.at(address, value.type), align=1)

    def prefetch(self, address: ir.Value, write: bool = False) -> None:
        """Have the line of memory at an address, which need not be one, fetched."""
        given = (ir.Constant(I32, number) for number in (int(write), 2, 1))  # into the second-level cache, data
        self.intrinsic("llvm.prefetch.p0", ir.VoidType(), self.at(address, I8), *given)

    def plus(self, address: ir.Value, *terms: ir.Value | int) -> ir.Value:
        """An address, or a number, and what is added to it."""
        for term in terms:
            address = self.b.add(address, ir.Constant(I64, term) if isinstance(term, int) else term)
        return address

    def times(self, a: ir.Value, b: int) -> ir.Value:
        """An int64 times a constant."""
        return self.b.mul(a, ir.Constant(I64, b))

    def rows(self, base: ir.Value, stride: ir.Value, count: int) -> list[ir.Value]:
        """The addresses of `count` rows."""
        return [self.plus(base, self.times(stride, row)) for row in range(count)]

    def splat(self, scalar: ir.Value, lanes: int = LANES) -> ir.Value:
        """A vector of one value."""
        kind = ir.VectorType(scalar.type, lanes)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        return self.b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """`a · b + c`, rounded once where the processor can."""
        if self.fused:
            return self.intrinsic(f"llvm.fma.v{LANES}f32", V, a, b, c)
        return self.b.fadd(self.b.fmul(a, b), c)

    def constant(self, value: float) -> ir.Value:
        """A vector of a constant."""
        return ir.Constant(V, [value] * LANES)

    def first(self, count: ir.Value) -> ir.Value:
        """The mask of the first `count` (int64) lanes."""
        lanes = ir.Constant(VI, list(range(LANES)))
        return self.b.icmp_signed("<", lanes, self.splat(self.b.trunc(count, I32)))

    def load_first(self, address: ir.Value, count: ir.Value, kind: ir.VectorType = V) -> ir.Value:
        """Load the first `count` lanes, the others zero; memory behind them is not touched."""
        name = f"llvm.masked.load.v{LANES}{_suffix(kind)}.p0"
        return self.intrinsic(name, kind, self.at(address, kind), self.first(count), ir.Constant(kind, None))

    def store_first(self, address: ir.Value, value: ir.Value, count: ir.Value) -> None:
        """Store the first `count` lanes only."""
        name = f"llvm.masked.store.v{LANES}{_suffix(value.type)}.p0"
        self.intrinsic(name, ir.VoidType(), value, self.at(address, value.type), self.first(count))

    def fold(self, x: ir.Value, lanes: int, join: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
        """Join a vector's halves until one value is left: always in this order."""
        undefined = ir.Constant(x.type, ir.Undefined)
        while lanes > 1:
            lanes //= 2
            mask = ir.Constant(ir.VectorType(I32, LANES), [lanes + i if i < lanes else i for i in range(LANES)])
            x = join(x, self.b.shuffle_vector(x, undefined, mask))
        return self.b.extract_element(x, ir.Constant(I32, 0))

    def widen(self, x: ir.Value) -> ir.Value:
        """int8, bfloat16 (as int16), float16 or float32 to float32."""
        if x.type.element == I8:
            return self.b.sitofp(self.b.sext(x, VI), V)
        if x.type.element == I16:
            return self.b.bitcast(self.b.shl(self.b.zext(x, VI), ir.Constant(VI, [16] * LANES)), V)
        return x if x.type.element == F32 else self.widen_half(x)

    def widen_half(self, x: ir.Value) -> ir.Value:
        """Finite float16, one or a vector, to float32; by its bits where the processor cannot."""
        b = self.b
        wide, whole, like = _shaped(x.type, F32), _shaped(x.type, I32), _constant
        if self.halves:
            return b.fpext(x, wide)
        bits = b.zext(b.bitcast(x, _shaped(x.type, I16)), whole)
        size = b.bitcast(b.shl(b.and_(bits, like(whole, 0x7FFF)), like(whole, 13)), wide)
        sign = b.shl(b.and_(bits, like(whole, 0x8000)), like(whole, 16))
        return b.bitcast(b.or_(b.bitcast(b.fmul(size, like(wide, 2.0**112)), whole), sign), wide)

    def narrow(self, x: ir.Value) -> ir.Value:
        """float32, one or a vector, to the nearest float16."""
        b = self.b
        half, whole, like = _shaped(x.type, ir.HalfType()), _shaped(x.type, I32), _constant
        if self.halves:
            return b.fptrunc(x, half)
        bits = b.bitcast(x, whole)
        sign = b.lshr(b.and_(bits, like(whole, -(2**31))), like(whole, 16))
        size = b.bitcast(b.and_(bits, like(whole, 2**31 - 1)), x.type)
        size = b.select(b.fcmp_ordered("<", size, like(x.type, 65504.0)), size, like(x.type, 65504.0))
        bits = b.bitcast(b.fmul(size, like(x.type, 2.0**-112)), whole)
        odd = b.and_(b.lshr(bits, like(whole, 13)), like(whole, 1))
        bits = b.lshr(b.add(b.add(bits, like(whole, 0xFFF)), odd), like(whole, 13))
        return b.bitcast(b.trunc(b.or_(bits, sign), _shaped(x.type, I16)), half)

    def exp(self, x: ir.Value) -> ir.Value:
        """eˣ to 2 units in the last place: 2ⁿ · eʳ with |r| ≤ ln 2 / 2, eʳ by its series (Cephes' coefficients)."""
        b = self.b
        low = b.fcmp_ordered("<", x, self.constant(-87.0))
        x = b.select(b.fcmp_ordered(">", x, self.constant(88.0)), self.constant(88.0), x)
        x = b.select(low, self.constant(-87.0), x)
        magic = self.constant(12582912.0)  # 1.5 · 2²³: adding it leaves the rounded number in the low bits
        n = self.fma(x, self.constant(1.4426950408889634), magic)
        whole = b.fsub(n, magic)
        r = self.fma(whole, self.constant(-0.693359375), x)
        r = self.fma(whole, self.constant(2.12194440e-4), r)
        y = self.constant(1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5, 1.0, 1.0):
            y = self.fma(y, r, self.constant(c))
        bits = b.shl(b.bitcast(n, VI), ir.Constant(VI, [23] * LANES))
        power = b.bitcast(b.add(bits, ir.Constant(VI, [0x3F800000] * LANES)), V)
        return b.select(low, self.constant(0.0), b.fmul(y, power))


def _shaped(like: ir.Type, element: ir.Type) -> ir.Type:
    """`element`, or a vector of as many of it as `like` is one."""
    return ir.VectorType(element, like.count) if isinstance(like, ir.VectorType) else element


def _constant(kind: ir.Type, value: float) -> ir.Value:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def _suffix(kind: ir.VectorType) -> str:
    return {F32: "f32", I16: "i16", ir.HalfType(): "f16"}[kind.element]


def define(name: str, result: Any, arguments: tuple[Any, ...], body: Callable[..., ir.Value | None]) -> Any:
    """Make an intrinsic of Numba types whose code `body(emit, *values)` emits."""

    def typing(*_: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            got = body(Emit(builder), *values)
            return context.get_dummy_value() if got is None else got

        return result(*arguments), codegen

    typing.__name__ = typing.__qualname__ = name
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD  # Numba reads from the signature how many arguments there are
    names = ["typingctx", *(f"a{i}" for i in range(len(arguments)))]
    typing.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])
    return intrinsic(typing)
