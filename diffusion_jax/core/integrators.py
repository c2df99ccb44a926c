"""Single steps of dy/dt = f(t, y) from time t to time s. Adaptive solves use diffrax."""

from __future__ import annotations

from collections.abc import Callable

from diffusion_jax.core.types import Array

Field = Callable[[Array, Array], Array]  # f(t, y) -> dy/dt


def euler(f: Field, y: Array, t: Array, s: Array) -> Array:
    """Euler's method, y + h f(t, y): order 1, one evaluation.

    Args:
      f: the right-hand side, a function (t, y) -> dy/dt of y's shape.
      y: the state at time t, of any shape.
      t: the time at which the step begins, a scalar.
      s: the time at which it ends, a scalar before or after t.

    Returns:
      The state at time s, of y's shape.
    """
    return y + (s - t) * f(t, y)


def heun(f: Field, y: Array, t: Array, s: Array) -> Array:
    """Heun's method, the trapezoidal rule with an Euler predictor: order 2, two evaluations.

    Args:
      f: the right-hand side, a function (t, y) -> dy/dt of y's shape.
      y: the state at time t, of any shape.
      t: the time at which the step begins, a scalar.
      s: the time at which it ends, a scalar before or after t.

    Returns:
      The state at time s, of y's shape.
    """
    h, k1 = s - t, f(t, y)
    return y + 0.5 * h * (k1 + f(s, y + h * k1))


def rk4(f: Field, y: Array, t: Array, s: Array) -> Array:
    """The classical Runge-Kutta method: order 4, four evaluations.

    Args:
      f: the right-hand side, a function (t, y) -> dy/dt of y's shape.
      y: the state at time t, of any shape.
      t: the time at which the step begins, a scalar.
      s: the time at which it ends, a scalar before or after t.

    Returns:
      The state at time s, of y's shape.
    """
    h, mid = s - t, 0.5 * (t + s)
    k1 = f(t, y)
    k2 = f(mid, y + 0.5 * h * k1)
    k3 = f(mid, y + 0.5 * h * k2)
    k4 = f(s, y + h * k3)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
