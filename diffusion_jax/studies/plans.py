"""The cost of a train step on devices that need not be here (planning/), as a command."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax.assembly import outputs
from diffusion_jax.core import files, provenance, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.planning import cards, sampling_cards, words
from diffusion_jax.planning.devices import GIB, Topology, find_topology
from diffusion_jax.planning.search import cheapest, search_settings
from diffusion_jax.planning.stored_cards import rule as card_rule


def plan(
    config: ConfigDict,
    *,
    topology: str,
    workdir: str = "",
    sampling: bool = False,
    search: bool = False,
    hbm: float = 0.0,
    compiled: bool = True,
    json: bool = False,
    out: str = "",
) -> None:
    """Print what the train step of a config, or sampling, costs on other devices.

    Args:
      config: the config of the run.
      topology: the devices, such as 'v5e:16x16', 'cpu:8' or 'gpu'.
      workdir: the trained model that the config is of; not used itself.
      sampling: whether the program that draws samples is planned, on one of the devices.
      search: find the cheapest remat, fsdp and accumulation that fit.
      hbm: memory of a device in GiB; 0 takes that of the chip.
      compiled: False leaves the compilation out: parameters, state and FLOPs, in seconds.
      json: print JSON instead of text.
      out: the JSON file to write; '' writes none.

    Raises:
      UserError: for a search of sampling or without compilation, and for a config that does not
        fit the devices.
    """
    if search and not compiled:
        raise UserError("--search compares compiled programs; leave --nocompiled out")
    if topology != "gpu":  # a plan for other devices takes no accelerator of this machine
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is measured
    where = find_topology(topology)
    path = outputs.named("out", out, ".json")[".json"] if out else None
    size = hbm * GIB or None
    record = {
        "topology": topology,
        "hbm": size,
        "config": config.to_dict(),
        "provenance": provenance.provenance(config.to_dict(), config.seed),
    }
    if search and sampling:
        raise UserError("--search plans a train step: leave out --search or --sampling")
    if sampling:
        record["card"] = sampling_cards.card(config, where, hbm=size, compiled=compiled)
    elif search:
        record["cards"] = _search(config, where, size, record, path)
        record["cheapest"] = cheapest(record["cards"])
        record["card"] = record["cards"].get(record["cheapest"])
    else:
        record["card"] = cards.card(config, where, hbm=size, compiled=compiled)
    if path:
        files.save_json(path, record)
    text = sampling_cards.describe(record["card"]) if sampling else _text(record)
    print(files.canonical_json(record) if json else text)


def _text(record: dict[str, Any]) -> str:
    """The card of a record, and which settings are the cheapest if several were compiled."""
    lines = [
        words.describe(record["card"])
        if record["card"]
        else "no compiled setting fits: use more devices, or a smaller batch"
    ]
    if record.get("cheapest"):
        lines += [
            f"the cheapest of {len(record['cards'])} compiled settings:",
            f"  {record['cheapest']}",
        ]
    return "\n".join(lines)


def _search(
    config: ConfigDict,
    where: Topology,
    hbm: float | None,
    record: dict[str, Any],
    out: Path | None,
) -> dict[str, Any]:
    """The search, which reports each card in one line and keeps it in `out`."""
    began, made = time.monotonic(), {}

    def tell(name: str, card: dict[str, Any]) -> None:
        made[name] = card
        bound = f"{1e3 * card['roofline']['step']:.3g} ms" if card["roofline"] else "-"
        no = f"does not fit: {card['refused'] or ''}"
        said = {True: f"fits, at least {bound}", None: "compiles"}.get(card["fits"], no[:90])
        seconds = time.monotonic() - began
        print(f"{len(made)} [{seconds:.0f} s] {name}: {said}", file=sys.stderr, flush=True)
        if out:
            files.save_json(out, record | {"cards": made})

    return search_settings(config, where, hbm=hbm, known=_known(out, record), tell=tell)


def _known(out: Path | None, record: dict[str, Any]) -> dict[str, Any]:
    """The cards of an interrupted search of the same config by the same code and versions."""
    origin = reading.record({"commit": reading.anything, "versions": reading.anything})
    rule = reading.record({"provenance": origin, "cards": reading.table(card_rule)})
    old = reading.kept(out, lambda path: reading.json_file(path, rule)) if out else None
    new = files.plain(record)
    if not old:
        return {}
    same = all(old.get(key) == new[key] for key in ("topology", "hbm", "config")) and all(
        old["provenance"][key] == new["provenance"][key] for key in ("commit", "versions")
    )
    return old["cards"] if same else {}
