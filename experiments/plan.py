"""What a train step will cost on devices that need not be here: memory, collectives, and a bound on its speed.

python -m experiments.plan --config=configs/imagenet256_latent.py:flow --topology=v5e:16x16 --config.mesh.fsdp=16
python -m experiments.plan --config=configs/cifar10.py:edm,full --topology=v5e:2x4 --search

Topologies: a TPU slice (v5e, v5p, v6e; pip install 'diffusion_jax[tpu]', no TPU needed), cpu:8, or gpu, those of this
machine. The real step is compiled, which takes minutes for large networks; --search compiles several, keeps each card in
--out as it comes, and goes on from there if it was interrupted. See docs/plan.md.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from absl import flags

from experiments import cli


def main(config) -> None:
    import jax

    from diffusion_jax import planning, provenance

    FLAGS = flags.FLAGS
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is measured
    where, out = planning.target(FLAGS.topology), _out(FLAGS.out)
    hbm = FLAGS.hbm * planning.GIB or None
    record = {"topology": FLAGS.topology, "hbm": hbm, "config": config.to_dict(),
              "provenance": provenance.provenance(config.to_dict(), config.seed)}  # fmt: skip
    if FLAGS.search:
        record["cards"] = _search(config, where, hbm, record)
        record["cheapest"] = planning.cheapest(record["cards"])
        record["card"] = record["cards"].get(record["cheapest"])
    else:
        record["card"] = planning.card(config, where, hbm=hbm)
    if out:
        provenance.save_json(out, record)
    if FLAGS.json:
        print(provenance.canonical_json(record))
        return
    print(planning.text(record["card"]) if record["card"] else "nothing that was tried fits: more devices, or a smaller batch")
    if record.get("cheapest"):
        print(f"the cheapest of {len(record['cards'])} settings that were tried:\n  {record['cheapest']}")


def _out(text: str) -> Path | None:
    """The file of --out, if there is one."""
    return cli.output("out", text, ".json")[".json"] if text else None


def _search(config, where, hbm, record) -> dict:
    """planning.search, telling each card in one line and keeping it in --out."""
    from diffusion_jax import planning, provenance

    out, began, cards = _out(flags.FLAGS.out), time.monotonic(), {}
    known = _known(out, record)

    def tell(name: str, card: dict) -> None:
        cards[name] = card
        bound = f"{1e3 * card['roofline']['step']:.3g} ms" if card["roofline"] else "-"
        no = f"does not fit: {card['refused'] or ''}"
        said = {True: f"fits, at least {bound}", None: "compiles"}.get(card["fits"], no[:90])
        print(f"{len(cards)} [{time.monotonic() - began:.0f} s] {name}: {said}", file=sys.stderr, flush=True)
        if out:
            provenance.save_json(out, record | {"cards": cards})

    return planning.search(config, where, hbm=hbm, known=known, tell=tell)


def _known(out: Path | None, record: dict) -> dict:
    """The cards of an interrupted search of the same config by the same code and versions."""
    from diffusion_jax import planning, provenance, reading

    origin = reading.record({"commit": reading.anything, "versions": reading.anything})
    rule = reading.record({"provenance": origin, "cards": reading.table(planning.rule)})
    old, new = reading.kept(out, lambda path: reading.json_file(path, rule)) if out else None, provenance.plain(record)
    if not old:
        return {}
    same = all(old.get(key) == new[key] for key in ("topology", "hbm", "config")) and all(
        old["provenance"][key] == new["provenance"][key] for key in ("commit", "versions"))  # fmt: skip
    return old["cards"] if same else {}


if __name__ == "__main__":
    if cli.typed("topology") != "gpu":
        os.environ["JAX_PLATFORMS"] = "cpu"  # before jax: a plan for others takes no accelerator of this machine
    flags.DEFINE_string("topology", None, "v5e:16x16 (v5p, v6e), cpu:8, or gpu", required=True)
    flags.DEFINE_bool("search", False, "find the cheapest remat, fsdp and accumulation that fit")
    flags.DEFINE_float("hbm", 0.0, "GiB per device; 0: what the chip has", lower_bound=0, upper_bound=1e6)
    flags.DEFINE_bool("json", False, "print JSON")
    cli.path_flag("out", "", "the file of all numbers; '': none")
    cli.launch(main, config="file", short=())
