"""Forward-mode derivatives through networks.

Some operations of networks have a derivative in reverse mode alone (cuDNN's attention), or one
that is fast in reverse mode alone (convolutions on CPUs). Code that differentiates a network in
forward mode uses `jvp`, `linearize` and `jacfwd` of this module, which tell the network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

# JAX traces a jitted function again where the value differs.
_active = jax.make_user_context(default_value=False)


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """Networks that are traced in this context are differentiated in forward mode."""
    with _active(True):
        yield


def active() -> bool:
    """Returns whether networks are now traced within `forward_mode()`."""
    return _active.value


def jvp(f: Callable, primals: tuple, tangents: tuple, has_aux: bool = False) -> tuple[Any, ...]:
    """jax.jvp within `forward_mode`.

    Args:
      f: the function, which may evaluate networks.
      primals: its arguments, a tuple of pytrees.
      tangents: the direction of the derivative, a tuple like `primals`.
      has_aux: whether f returns a pair, of which the second part is not differentiated.

    Returns:
      The value, its derivative in the direction of the tangents and, with has_aux, the second part.
    """
    with forward_mode():
        return jax.jvp(f, primals, tangents, has_aux=has_aux)


def linearize(f: Callable, *primals: Any, has_aux: bool = False) -> tuple[Any, ...]:
    """jax.linearize within `forward_mode`.

    Args:
      f: the function, which may evaluate networks.
      *primals: its arguments, pytrees.
      has_aux: whether f returns a pair, of which the second part is not differentiated.

    Returns:
      The value, the derivative as a linear function of tangents and, with has_aux, the second part.
    """
    with forward_mode():
        return jax.linearize(f, *primals, has_aux=has_aux)


def jacfwd(f: Callable) -> Callable:
    """jax.jacfwd within `forward_mode`.

    Args:
      f: the function, which may evaluate networks.

    Returns:
      A function of the same arguments that returns the Jacobian by the first of them.
    """

    def jacobian(*args: Any) -> Any:
        with forward_mode():
            return jax.jacfwd(f)(*args)

    return jacobian
