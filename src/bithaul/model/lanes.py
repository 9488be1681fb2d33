"""Sixteen floats at a time, for loops too short for the compiler to see the gain.

A head of 32 values is two halves of 16, and a loop of 16 is left scalar by numba's compiler, which also
checks before every loop whether its arrays overlap. These two operations are written in its intermediate
language instead; it splits them into whatever vectors a machine has. Positions count floats. Nothing is
checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 16

_FLOATS = ir.VectorType(ir.FloatType(), LANES)


@intrinsic
def move(typing, x, x_at, out, out_at):  # type: ignore[no-untyped-def]
    """`out[out_at :] = x[x_at :]`, 16 floats of two arrays float32."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at = _Places(context, builder, signature)
        _store(builder, _load(builder, at(0, arguments[0], arguments[1])), at(2, arguments[2], arguments[3]))
        return context.get_dummy_value()

    return types.void(x, types.intp, out, types.intp), code


@intrinsic
def turn(typing, x, x_at, half, cos, sin, angle_at, sign, out, out_at):  # type: ignore[no-untyped-def]
    """Rotate 16 pairs: `a = x[x_at :]` and `b = x[x_at + half :]` by the angles at `angle_at`.

    `out` becomes `a cos - b sign sin` at `out_at` and `b cos + a sign sin` at `out_at + half`; a sign of -1
    turns back.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, x_at, half, cos, sin, angle_at, sign, out, out_at = arguments
        at = _Places(context, builder, signature)
        a = _load(builder, at(0, x, x_at))
        b = _load(builder, at(0, x, builder.add(x_at, half)))
        c = _load(builder, at(3, cos, angle_at))
        s = builder.fmul(_load(builder, at(4, sin, angle_at)), _everywhere(builder, sign))
        flags = ("contract",)
        product = [builder.fmul(left, right, flags=flags) for left, right in ((a, c), (b, s), (b, c), (a, s))]
        _store(builder, builder.fsub(product[0], product[1], flags=flags), at(7, out, out_at))
        ahead = builder.add(out_at, half)
        _store(builder, builder.fadd(product[2], product[3], flags=flags), at(7, out, ahead))
        return context.get_dummy_value()

    long = types.intp  # numba asks for exactly these arguments, by their types
    return types.void(x, long, long, cos, sin, long, types.float32, out, long), code


class _Places:
    """Where the floats of an array begin, `place` floats from its start."""

    def __init__(self, context: Any, builder: Any, signature: Any) -> None:
        self._context, self._builder, self._signature = context, builder, signature

    def __call__(self, argument: int, array: Any, place: Any) -> Any:
        kind = self._signature.args[argument]
        start = self._context.make_array(kind)(self._context, self._builder, array).data
        return self._builder.bitcast(self._builder.gep(start, [place]), _FLOATS.as_pointer())


def _load(builder: Any, pointer: Any) -> Any:
    return builder.load(pointer, align=4)


def _store(builder: Any, values: Any, pointer: Any) -> None:
    builder.store(values, pointer, align=4)


def _everywhere(builder: Any, value: Any) -> Any:
    empty = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), LANES), None))
