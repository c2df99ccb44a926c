"""What a train step will cost on devices that need not be here: memory, collectives, and a bound on
its speed.

python -m experiments.plan --config=configs/imagenet256_latent.py:flow --topology=v5e:16x16 --config.mesh.fsdp=16
python -m experiments.plan --config=configs/cifar10.py:edm,full --topology=v5e:2x4 --search

Topologies: a TPU slice (v5e, v5p, v6e; pip install 'diffusion_jax[tpu]', no TPU needed), cpu:8, or gpu, those of this
machine. The real step is compiled, which takes minutes for large networks; --search compiles several, keeps each card in
--out as it comes, and goes on from there if it was interrupted. See docs/plan.md.
"""

from __future__ import annotations

import os

import jax
from absl import flags

from diffusion_jax import files, provenance
from diffusion_jax.planning import compile
from diffusion_jax.studies import plans
from experiments import cli, values


def main(config) -> None:

    FLAGS = flags.FLAGS
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is measured
    where, out = compile.target(FLAGS.topology), plans._out(FLAGS.out)
    hbm = FLAGS.hbm * compile.GIB or None
    record = {
        "topology": FLAGS.topology,
        "hbm": hbm,
        "config": config.to_dict(),
        "provenance": provenance.provenance(config.to_dict(), config.seed),
    }
    if FLAGS.search:
        record["cards"] = plans._search(config, where, hbm, record)
        record["cheapest"] = compile.cheapest(record["cards"])
        record["card"] = record["cards"].get(record["cheapest"])
    else:
        record["card"] = compile.card(config, where, hbm=hbm)
    if out:
        files.save_json(out, record)
    if FLAGS.json:
        print(files.canonical_json(record))
        return
    print(
        compile.text(record["card"])
        if record["card"]
        else "nothing that was tried fits: more devices, or a smaller batch"
    )
    if record.get("cheapest"):
        print(
            f"the cheapest of {len(record['cards'])} settings that were tried:\n  {record['cheapest']}"
        )


if __name__ == "__main__":
    if cli.typed("topology") != "gpu":
        os.environ["JAX_PLATFORMS"] = (
            "cpu"  # before jax: a plan for others takes no accelerator of this machine
        )
    flags.DEFINE_string("topology", None, "v5e:16x16 (v5p, v6e), cpu:8, or gpu", required=True)
    flags.DEFINE_bool("search", False, "find the cheapest remat, fsdp and accumulation that fit")
    flags.DEFINE_float(
        "hbm", 0.0, "GiB per device; 0: what the chip has", lower_bound=0, upper_bound=1e6
    )
    flags.DEFINE_bool("json", False, "print JSON")
    values.path_flag("out", "", "the file of all numbers; '': none")
    cli.launch(main, config="file", short=())
