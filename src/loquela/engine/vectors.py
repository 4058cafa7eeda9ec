"""What kernels are written with: vectors of sixteen float32, numbers in memory by address, and atomics."""

# mypy: disable-error-code="import-untyped"
from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from loquela.engine.simd import F32, I8, I16, I32, I64, LANES, VI, Emit, V, define
from loquela.engine.simd import vector_type as vec

__all__ = [
    "add",
    "bits_to_float",
    "claim",
    "div",
    "exp",
    "fma",
    "get_f32",
    "get_i64",
    "load",
    "load_bf16",
    "load_f16",
    "load_first",
    "maximum",
    "mul",
    "pause",
    "peek",
    "publish",
    "quantise_lanes",
    "set_f32",
    "splat",
    "store",
    "store_f16",
    "store_first",
    "sub",
    "sum_lanes",
    "top_lane",
]

i64, f32, none = types.int64, types.float32, types.void

load = define("load", vec, (i64,), lambda e, a: e.load(a))
load_f16 = define("load_f16", vec, (i64,), lambda e, a: e.widen(e.load(a, ir.VectorType(ir.HalfType(), LANES))))
load_bf16 = define("load_bf16", vec, (i64,), lambda e, a: e.widen(e.load(a, ir.VectorType(I16, LANES))))
load_first = define("load_first", vec, (i64, i64), lambda e, a, n: e.load_first(a, n))
store = define("store", none, (i64, vec), lambda e, a, x: e.store(a, x))
store_first = define("store_first", none, (i64, vec, i64), lambda e, a, x, n: e.store_first(a, x, n))
splat = define("splat", vec, (f32,), lambda e, x: e.splat(x))
add = define("add", vec, (vec, vec), lambda e, x, y: e.b.fadd(x, y))
sub = define("sub", vec, (vec, vec), lambda e, x, y: e.b.fsub(x, y))
mul = define("mul", vec, (vec, vec), lambda e, x, y: e.b.fmul(x, y))
div = define("div", vec, (vec, vec), lambda e, x, y: e.b.fdiv(x, y))
fma = define("fma", vec, (vec, vec, vec), lambda e, x, y, z: e.fma(x, y, z))
exp = define("exp", vec, (vec,), lambda e, x: e.exp(x))


def _maximum(e: Emit, x: ir.Value, y: ir.Value) -> ir.Value:
    return e.b.select(e.b.fcmp_ordered(">", x, y), x, y)


maximum = define("maximum", vec, (vec, vec), _maximum)
sum_lanes = define("sum_lanes", f32, (vec,), lambda e, x: e.fold(x, LANES, e.b.fadd))
top_lane = define("top_lane", f32, (vec,), lambda e, x: e.fold(x, LANES, lambda a, b: _maximum(e, a, b)))
absolute = define("absolute", vec, (vec,), lambda e, x: e.intrinsic(f"llvm.fabs.v{LANES}f32", V, x))


def _negative_where(e: Emit, x: ir.Value, y: ir.Value) -> ir.Value:
    sign = e.b.and_(e.b.bitcast(y, VI), ir.Constant(VI, [-(2**31)] * LANES))
    return e.b.bitcast(e.b.or_(e.b.bitcast(x, VI), sign), V)


with_sign_of = define("with_sign_of", vec, (vec, vec), _negative_where)
"""A non-negative `x` with the sign of `y`."""


def _store_f16(e: Emit, address: ir.Value, x: ir.Value) -> None:
    e.store(address, e.narrow(x))


store_f16 = define("store_f16", none, (i64, vec), _store_f16)


def _quantise(e: Emit, x: ir.Value, address: ir.Value) -> ir.Value:
    magic = e.constant(12582912.0)
    whole = e.b.fptosi(e.b.fsub(e.b.fadd(x, magic), magic), VI)  # to the nearest, halves to even
    e.store(address, e.b.trunc(whole, ir.VectorType(I8, LANES)))
    return e.b.sext(e.fold(whole, LANES, e.b.add), I64)


quantise_lanes = define("quantise_lanes", i64, (vec, i64), _quantise)
"""Store a vector rounded to sixteen int8; returns their sum."""

get_f32 = define("get_f32", f32, (i64,), lambda e, a: e.load(a, F32))
set_f32 = define("set_f32", none, (i64, f32), lambda e, a, x: e.store(a, x))
get_f16 = define("get_f16", f32, (i64,), lambda e, a: e.widen_half(e.load(a, ir.HalfType())))
set_f16 = define("set_f16", none, (i64, f32), lambda e, a, x: e.store(a, e.narrow(x)))
get_f64 = define("get_f64", types.float64, (i64,), lambda e, a: e.load(a, ir.DoubleType()))
set_f64 = define("set_f64", none, (i64, types.float64), lambda e, a, x: e.store(a, x))
get_i64 = define("get_i64", i64, (i64,), lambda e, a: e.load(a, I64))
set_i32 = define("set_i32", none, (i64, i64), lambda e, a, x: e.store(a, e.b.trunc(x, I32)))
bits_to_float = define("bits_to_float", f32, (i64,), lambda e, x: e.b.bitcast(e.b.trunc(x, I32), F32))

# Between threads. A word is an int64 at an address of eight bytes' alignment.


def _peek(e: Emit, address: ir.Value) -> ir.Value:
    return e.b.load_atomic(e.at(address, I64), ordering="seq_cst", align=8)


def _publish(e: Emit, address: ir.Value, value: ir.Value) -> None:
    e.b.store_atomic(value, e.at(address, I64), ordering="seq_cst", align=8)


def _claim(e: Emit, address: ir.Value, old: ir.Value, new: ir.Value) -> ir.Value:
    pair = e.b.cmpxchg(e.at(address, I64), old, new, ordering="seq_cst", failordering="seq_cst")
    return e.b.zext(e.b.extract_value(pair, 1), I64)


def _pause(e: Emit) -> Any:
    if "x86_64" in e.b.module.triple:
        e.intrinsic("llvm.x86.sse2.pause", ir.VoidType())


peek = define("peek", i64, (i64,), _peek)
publish = define("publish", none, (i64, i64), _publish)
count_up = define(
    "count_up", i64, (i64, i64), lambda e, a, n: e.b.atomic_rmw("add", e.at(a, I64), n, ordering="seq_cst")
)
claim = define("claim", i64, (i64, i64, i64), _claim)
"""Replace the word `old` by `new`; returns 1 if it was still `old`."""
pause = define("pause", none, (), _pause)
get_u16 = define("get_u16", i64, (i64,), lambda e, a: e.b.zext(e.load(a, I16), I64))
set_u16 = define("set_u16", none, (i64, i64), lambda e, a, x: e.store(a, e.b.trunc(x, I16)))
get_u8 = define("get_u8", i64, (i64,), lambda e, a: e.b.zext(e.load(a, I8), I64))
set_u8 = define("set_u8", none, (i64, i64), lambda e, a, x: e.store(a, e.b.trunc(x, I8)))
float_bits = define("float_bits", i64, (f32,), lambda e, x: e.b.zext(e.b.bitcast(x, I32), I64))
