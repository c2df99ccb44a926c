"""The report of a plan, and the search for the cheapest layout."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from absl import flags

from diffusion_jax import files, parsing, reading
from diffusion_jax.planning import compile


def _out(text: str) -> Path | None:
    """The file of --out, if there is one."""
    return parsing.output("out", text, ".json")[".json"] if text else None


def _search(config, where, hbm, record) -> dict:
    """planning.search, telling each card in one line and keeping it in --out."""
    out, began, cards = _out(flags.FLAGS.out), time.monotonic(), {}
    known = _known(out, record)

    def tell(name: str, card: dict) -> None:
        cards[name] = card
        bound = f"{1e3 * card['roofline']['step']:.3g} ms" if card["roofline"] else "-"
        no = f"does not fit: {card['refused'] or ''}"
        said = {True: f"fits, at least {bound}", None: "compiles"}.get(card["fits"], no[:90])
        print(
            f"{len(cards)} [{time.monotonic() - began:.0f} s] {name}: {said}",
            file=sys.stderr,
            flush=True,
        )
        if out:
            files.save_json(out, record | {"cards": cards})

    return compile.search(config, where, hbm=hbm, known=known, tell=tell)


def _known(out: Path | None, record: dict) -> dict:
    """The cards of an interrupted search of the same config by the same code and versions."""
    origin = reading.record({"commit": reading.anything, "versions": reading.anything})
    rule = reading.record({"provenance": origin, "cards": reading.table(compile.rule)})
    old, new = (
        reading.kept(out, lambda path: reading.json_file(path, rule)) if out else None,
        files.plain(record),
    )
    if not old:
        return {}
    same = all(old.get(key) == new[key] for key in ("topology", "hbm", "config")) and all(
        old["provenance"][key] == new["provenance"][key] for key in ("commit", "versions")
    )
    return old["cards"] if same else {}
