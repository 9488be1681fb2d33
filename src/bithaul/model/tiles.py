"""Small blocks of integer products in registers, written as machine instructions through numba.

Computers with AVX2 and nothing newer have no instruction made for int8 dot products, and general libraries
therefore multiply in fp32. Ternary codes allow more: four bytes of `T + 1` in {0, 1, 2} times four
activations, for eight outputs, is two instructions, and 16 bits hold the sum of 64 of those, since
64 * 2 * 2 * -128 = -2^15. Gradients use pairs of 16-bit numbers the same way. `tile` makes a block for numba
code to loop over; `integer` does, and says how operands are laid out.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from typing import Any, Literal

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

COLUMNS = 16
"""Outputs side by side in one block."""

BYTE_STEPS = 64
"""Steps of bytes whose sums 16 bits hold."""

_BYTE, _WORD, _INT, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES, _WORDS, _INTS = ir.VectorType(_BYTE, 32), ir.VectorType(_WORD, 16), ir.VectorType(_INT, 8)
_VECTORS = COLUMNS * 4 // 32
_VECTOR_BYTES = 32


@functools.cache
def missing() -> str | None:
    """Why blocks cannot run on this machine, or None. Honours numba's caps of the instruction set."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"written for x86-64, this is {platform.machine()}"
    capped: str | None = vars(numba.config)["CPU_FEATURES"]
    host: Callable[[], str] = get_host_cpu_features
    features = host() if capped is None else capped
    return None if "+avx2" in features.split(",") else "there is no AVX2"


def tile(rows: int, kind: Literal["bytes", "words"]) -> Any:
    """`c[rows, 16] (+)= a . b`, int32: `rows` of `a` against one panel of `b`, over groups of 4 bytes.

    The function made takes `(a, a_at, a_stride, a_step, b, b_at, steps, c)`, positions in bytes: row r of
    step s reads the 4 bytes at `a_at + r * a_stride + s * a_step`, and the panel the 64 at `b_at + s * 64`.
    `bytes`: a int8, b the unsigned codes, at most `BYTE_STEPS` steps a call, added to `c`. `words`: pairs of
    int16 on both sides, `c` is overwritten. `steps` is at least 1. Nothing is checked.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, a_at, a_stride, a_step, b, b_at, steps, c = arguments
        block = _Block(builder, kind)
        start, panel, out = (
            _address(context, builder, signature.args[i], array) for i, array in ((0, a), (4, b), (7, c))
        )
        left = [builder.gep(start, [builder.add(a_at, _times(builder, a_stride, r))]) for r in range(rows)]
        sums = block.loop(left, a_step, builder.gep(panel, [b_at]), steps)
        for i, total in enumerate(sums):
            place = builder.bitcast(builder.gep(out, [_long(i * _VECTOR_BYTES)]), _INTS.as_pointer())
            if kind == "bytes":
                total = builder.add(block.pairs(total, ir.Constant(_WORDS, [1] * 16)), _load(builder, place))
            builder.store(total, place, align=1)
        return context.get_dummy_value()

    def run(typing, a, a_at, a_stride, a_step, b, b_at, steps, c):  # type: ignore[no-untyped-def]
        long = types.intp  # numba asks for exactly these arguments, by their types
        return types.void(a, long, long, long, b, long, long, c), code

    return intrinsic(run)


class _Block:
    def __init__(self, builder: Any, kind: Literal["bytes", "words"]) -> None:
        self.builder, self.kind = builder, kind
        self.operand = _BYTES if kind == "bytes" else _WORDS
        self.sum = _WORDS if kind == "bytes" else _INTS

    def pairs(self, left: Any, right: Any) -> Any:
        """16 products of 16 bits, neighbours added: 8 sums of 32 bits."""
        return self._call("llvm.x86.avx2.pmadd.wd", _INTS, _WORDS, left, right)

    def multiply(self, left: Any, panel: Any) -> Any:
        if self.kind == "words":
            return self.pairs(left, panel)
        return self._call("llvm.x86.avx2.pmadd.ub.sw", _WORDS, _BYTES, panel, left)

    def loop(self, left: list[Any], a_step: Any, panel: Any, steps: Any) -> list[Any]:
        """The sums of every row and vector after `steps` steps."""
        builder = self.builder
        before, body = builder.block, builder.append_basic_block("steps")
        after = builder.append_basic_block("done")
        builder.branch(body)
        builder.position_at_end(body)
        step = builder.phi(_LONG)
        step.add_incoming(_long(0), before)
        sums = [builder.phi(self.sum) for _ in range(len(left) * _VECTORS)]
        for total in sums:
            total.add_incoming(ir.Constant(self.sum, None), before)
        at = builder.mul(step, _long(_VECTORS * _VECTOR_BYTES))
        columns = [
            _load(builder, self._at(panel, builder.add(at, _long(v * _VECTOR_BYTES)), self.operand))
            for v in range(_VECTORS)
        ]
        made: list[Any] = []
        for row in left:
            wide = self._broadcast(_load(builder, self._at(row, builder.mul(step, a_step), _INT)))
            for column in columns:
                made.append(builder.add(sums[len(made)], self.multiply(wide, column)))
        following = builder.add(step, _long(1))
        for phi, value in ((step, following), *zip(sums, made, strict=True)):
            phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, steps), body, after)
        builder.position_at_end(after)
        return made

    def _at(self, pointer: Any, offset: Any, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(pointer, [offset]), kind.as_pointer())

    def _broadcast(self, group: Any) -> Any:
        """The same 4 bytes eight times."""
        empty = ir.Constant(_INTS, ir.Undefined)
        first = self.builder.insert_element(empty, group, ir.Constant(_INT, 0))
        eight = self.builder.shuffle_vector(first, empty, ir.Constant(_INTS, None))
        return self.builder.bitcast(eight, self.operand)

    def _call(self, name: str, result: Any, operand: Any, left: Any, right: Any) -> Any:
        signature = ir.FunctionType(result, [operand, operand])
        declare: Any = cgutils.get_or_insert_function
        return self.builder.call(declare(self.builder.module, signature, name), [left, right])


def _address(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return builder.bitcast(context.make_array(kind)(context, builder, array).data, _BYTE.as_pointer())


def _load(builder: Any, pointer: Any) -> Any:
    return builder.load(pointer, align=1)


def _long(value: int) -> Any:
    return ir.Constant(_LONG, value)


def _times(builder: Any, value: Any, factor: int) -> Any:
    return builder.mul(value, _long(factor))
