"""The cheapest settings of remat, fsdp and accumulation that fit some devices."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.planning.cards import card, changed, remat_of
from diffusion_jax.planning.devices import Topology

Card = dict[str, Any]


def search_settings(
    config: ConfigDict,
    where: Topology,
    *,
    hbm: float | None = None,
    known: Mapping[str, Card] | None = None,
    tell: Callable[[str, Card], None] = lambda name, card: None,
) -> dict[str, Card]:
    """Make cards for settings of remat, fsdp and accumulation.

    For each pair of the first two, accumulation grows until the step fits, or cannot.

    Args:
      config: the config.
      where: the devices.
      hbm: bytes of memory of a device, instead of the chip's.
      known: cards that need not be made again, by their names.
      tell: called with the name and the card of each as it comes.

    Returns:
      The cards by their names; see `cheapest`.
    """
    cards, known = {}, known or {}
    for pair in _pairs(config, len(where.devices)):
        for accumulate in _parts(config, len(where.devices)):
            changes = {**pair, "training.accumulate": accumulate}
            name = " ".join(f"--config.{key}={value}" for key, value in changes.items())
            cards[name] = known.get(name) or card(changed(config, changes), where, hbm=hbm)
            tell(name, cards[name])
            if cards[name]["fits"] is not False or cards[name]["state_bytes_per_device"] > (
                cards[name]["hbm"] or float("inf")
            ):
                break  # more parts only cost more; or they cannot help
    return cards


def cheapest(cards: Mapping[str, Card]) -> str | None:
    """The name of the card that fits with the least time of a step; None if none fits.

    Args:
      cards: the cards by their names; where they have no times, the FLOPs decide.
    """
    fitting = {name: card for name, card in cards.items() if card["fits"] is not False}
    return min(fitting, key=lambda name: _cost(fitting[name]), default=None)


def _cost(card: Card) -> tuple[float, float]:
    return card["roofline"]["step"] if card["roofline"] else 0.0, card["flops"]


def _pairs(config: ConfigDict, devices: int) -> Iterator[dict[str, Any]]:
    """Settings of fsdp and remat, the config's own first, then fsdp over 8, 16, ... devices."""
    tensor = max(config.mesh.tensor, 1)
    most = devices // tensor
    sizes = [
        config.mesh.fsdp,
        *(n for n in (8, 16, 64, 256, most) if n <= most and devices % (n * tensor) == 0),
    ]
    remats = (
        dict.fromkeys([remat_of(config), "none", "dots", "block"])
        if "remat" in config.model
        else [None]
    )
    for remat, fsdp in itertools.product(remats, dict.fromkeys(sizes)):
        mesh = {
            "mesh.data": config.mesh.data if fsdp == config.mesh.fsdp else -1,
            "mesh.fsdp": fsdp,
        }
        yield mesh | ({"model.remat": remat} if remat else {})


def _parts(config: ConfigDict, devices: int) -> list[int]:
    """Numbers of microbatches that leave every device an example: the config's own, and doubled."""
    own, size = config.training.accumulate, config.data.batch_size
    doubled = (own * 2**i for i in range(1, 20))
    return [own, *(n for n in doubled if n <= size // devices and size % (n * devices) == 0)]
