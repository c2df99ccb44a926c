"""The work in a program as it is written, before any compiler: multiply-adds of matrix products and
convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any


def count(jaxpr: Any) -> float:
    """FLOPs of a jaxpr (jax.make_jaxpr(f)(*args), or jax.jit(f).trace(*args).jaxpr): 2 for each
    multiply-add of its products.

    Loops of known length are multiplied out; of a conditional the dearest branch counts, of a while
    loop one turn. Work that rematerialisation does again counts again. Element-wise work does not,
    nor what is inside a kernel (cuDNN's attention).
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return float(sum(_equation(equation) for equation in jaxpr.eqns))


def _equation(equation) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        return _product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [count(jaxpr) for value in equation.params.values() for jaxpr in _jaxprs(value)]
    if name == "cond":
        return max(inner, default=0.0)
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _product(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * prod(equation.outvars[0].aval.shape) * prod(left[axis] for axis in contracted)


def _convolution(equation) -> float:
    """Every output sees a whole kernel; the zeros between the pixels of a dilated input (a stride,
    backwards) cost nothing.
    """
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
    window = prod(kernel[axis] for axis in numbers[1:])  # input channels of a group, height, width
    outputs = prod(equation.outvars[0].aval.shape)
    return 2.0 * outputs * window / prod(equation.params["lhs_dilation"] or (1,))


def _jaxprs(value) -> Iterator[Any]:
    if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _jaxprs(item)
