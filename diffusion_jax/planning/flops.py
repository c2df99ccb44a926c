"""The FLOPs of a program as it is written: matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any


def count(jaxpr: Any) -> float:
    """FLOPs of the matrix products and convolutions of a jaxpr, 2 for each multiply-add.

    Loops of known length are multiplied out; of a conditional the most expensive branch counts, of
    a while loop one iteration. Work that rematerialization repeats counts again. Element-wise work
    does not count, nor what is inside a kernel (cuDNN's attention).

    Args:
      jaxpr: jax.make_jaxpr(f)(*args), or jax.jit(f).trace(*args).jaxpr.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return float(sum(_equation(equation) for equation in jaxpr.eqns))


def _equation(equation: Any) -> float:
    """FLOPs of one equation, with those of the jaxprs inside it."""
    name = equation.primitive.name
    if name == "dot_general":
        return _product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [count(jaxpr) for value in equation.params.values() for jaxpr in _jaxprs(value)]
    if name == "cond":
        return max(inner, default=0.0)
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * prod(equation.outvars[0].aval.shape) * prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
    """Every output uses a whole kernel; the zeros of a dilated input (backwards) cost nothing."""
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
    window = prod(kernel[axis] for axis in numbers[1:])  # input channels of a group, height, width
    outputs = prod(equation.outvars[0].aval.shape)
    return 2.0 * outputs * window / prod(equation.params["lhs_dilation"] or (1,))


def _jaxprs(value: Any) -> Iterator[Any]:
    """The jaxprs in a parameter of an equation."""
    if hasattr(value, "eqns") or hasattr(value, "jaxpr"):  # an (open or closed) jaxpr
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _jaxprs(item)
