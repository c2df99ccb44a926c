"""The benchmark of kernels: attention and convolutions as networks use them, and their peers."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.core import forward_mode
from diffusion_jax.core.types import Array
from diffusion_jax.models import attention
from diffusion_jax.models.convolution import convolve
from diffusion_jax.studies.benchmark.timing import (
    BenchmarkSettings,
    BenchmarkSubject,
    Part,
    compiled,
    spread,
    take_turns,
)

KERNELS = {
    "what": "kernel",
    "milliseconds": "ms",
    "spread_percent": "spread, %",
    "temporary_mib": "temporary memory, MiB",
}
TOKENS = ((64, 256, 8, 8), (8, 1024, 4, 32))  # batch, tokens, heads, width of a head
IMAGES = (16, 32, 32, 128)  # batch, height, width, channels
LOOP = 2  # iterations


def kernels(subject: BenchmarkSubject, settings: BenchmarkSettings) -> Part:
    """Time the kernels of networks, forward and backward; the config only names the row.

    Args:
      subject: the config.
      settings: repeats.

    Returns:
      A row for each kernel: attention by implementation, the gradient of a convolution in a loop.
    """
    programs = {
        f"attention {shape}, {impl}": compiled(_both_ways(impl), *3 * [jnp.ones(shape)])[0]
        for shape in TOKENS
        for impl in ("blocked", "plain", "fused")
    }
    arguments: dict[str, tuple[Array, ...]] = {
        name: 3 * (jnp.ones(TOKENS[i // 3]),) for i, name in enumerate(programs)
    }
    x, kernel = jnp.ones(IMAGES), jnp.ones((3, 3, IMAGES[-1], IMAGES[-1]))
    for name, inside in (("rule", False), ("JAX", True)):
        title = f"convolution {IMAGES} in a loop, gradients by {name}"
        programs[title] = compiled(_in_a_loop(inside), x, kernel)[0]
        arguments[title] = x, kernel
    for name, program in programs.items():
        jax.block_until_ready(program(*arguments[name]))
    seconds = take_turns(
        {name: _call(program, arguments[name]) for name, program in programs.items()},
        settings.repeats,
    )
    rows = []
    for name, program in programs.items():
        found = [one / (LOOP if "loop" in name else 1) for one in seconds[name]]
        rows.append(
            {
                "config": subject.title,
                "what": name,
                "seconds": found,
                "milliseconds": 1e3 * median(found),
                "spread_percent": 100 * spread(found),
                "temporary_mib": program.memory_analysis().temp_size_in_bytes / 2**20,
            }
        )
    return Part(rows, KERNELS, "Forward and backward, float32; median of all rounds.")


def _call(program: Callable[..., Any], arguments: tuple[Array, ...]) -> Callable[[], Any]:
    return lambda: program(*arguments)


def _both_ways(impl: str) -> Callable[..., Any]:
    """The value and the gradients of an attention."""

    def program(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
        out, pull = jax.vjp(lambda *a: attention.multi_head(*a, impl), q, k, v)
        return out, pull(out)

    return program


def _in_a_loop(plain: bool) -> Callable[..., Any]:
    """The value and the gradients of a convolution, LOOP times; those of JAX if `plain`."""

    def step(_: Array, args: tuple[Array, Array]) -> tuple[Array, Array]:
        out, pull = jax.vjp(lambda *a: convolve(*a, (1, 1), "SAME"), *args)
        return pull(1e-6 * out)

    def program(x: Array, kernel: Array) -> tuple[Array, Array]:
        return jax.lax.fori_loop(0, LOOP, step, (x, kernel))

    def without_rule(x: Array, kernel: Array) -> tuple[Array, Array]:
        with forward_mode.forward_mode():  # where convolutions have JAX's own rule
            return program(x, kernel)

    return without_rule if plain else program
