"""Rematerialization: which activations are kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from diffusion_jax.core import arrays
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array

REMAT = ("none", "block", "dots", "offload")
PRODUCT, HOST = "product", "pinned_host"


def product(x: Array) -> Array:
    """Marks the result of a convolution or matrix product with parameters, for remat 'dots'.

    The results to mark are those that the backward pass of a block reads; a result that is only
    added to another is not one of them.

    Args:
      x: any array.

    Returns:
      x.
    """
    return checkpoint_name(x, PRODUCT)


def rematerialized(
    module: type[nn.Module], remat: str | bool, static_argnums: tuple[int, ...] = ()
) -> type[nn.Module]:
    """The class of a block, or a variant that keeps fewer activations (Chen et al. 2016).

    The variant computes the missing activations again in the backward pass.

    Args:
      module: the class of the block.
      remat: what is kept of each block besides its input. 'none': everything, and nothing is
        computed twice. 'block': nothing; the block runs again, about a third more work. 'dots': the
        results marked by `product`; norms, activations and attention run again. 'offload': as
        'dots', but these results wait in the host's memory. False and True, of older configs, mean
        'none' and 'block'.
      static_argnums: static arguments of __call__, with self as 0.

    Returns:
      The class.

    Raises:
      UserError: for another remat, and for 'offload' on a device that cannot reach pinned host
        memory.
    """
    remat = {False: "none", True: "block"}.get(remat, remat)
    if remat not in REMAT:
        raise unknown("remat", remat, REMAT)
    if remat == "none":
        return module
    return nn.remat(module, policy=_policy(remat), static_argnums=static_argnums)


def _policy(remat: str) -> Callable:
    names = jax.checkpoint_policies
    if remat == "block":
        return names.nothing_saveable
    if remat == "dots":
        return names.save_only_these_names(PRODUCT)
    kinds = sorted(memory.kind for memory in jax.local_devices()[0].addressable_memories())
    # the memory of a device that is compiled for but not present is taken for granted
    if HOST not in kinds and arrays.platform() == jax.default_backend():
        raise UserError(
            f"remat=offload needs {HOST} memory, and this device has {', '.join(kinds)}; "
            "use remat=dots or block"
        )
    return names.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[PRODUCT],
        offload_src="device",
        offload_dst=HOST,
    )
