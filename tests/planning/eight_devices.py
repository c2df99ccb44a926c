"""Cards for eight CPU devices, which need a process of their own.

python -m tests.planning.eight_devices FOLDER writes FOLDER/answers.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from configs import imagenet256_latent, toy
from diffusion_jax.core.errors import UserError
from diffusion_jax.planning import cards, devices, hlo, search, words


def small(**changes):
    """A small DiT on the digits: one block, 16 tokens, 32 wide. To be traced; its compilation takes
    a while.
    """
    config = imagenet256_latent.get_config("flow,S")
    config.data.update(name="digits", image_size=8, channels=1, num_classes=10, batch_size=32)
    config.model.update(width=32, depth=1, heads=2, dtype="float32")
    config.training.steps_per_call = 1
    config.update_from_flattened_dict(changes)
    return config


def points(**changes):
    """A network for points, 128 wide, that compiles in a second or two."""
    config = toy.get_config("vp")
    config.model.update(width=128, blocks=1)
    config.data.batch_size = 16
    config.training.steps_per_call = 1
    config.update_from_flattened_dict(changes)
    return config


def main(folder: Path) -> None:
    """Two cards, a search, what is refused, and a program whose collectives are known."""
    where, answers = devices.find_topology("cpu:8"), {}
    answers["plain"] = cards.card(points(), where)
    answers["too large"] = cards.card(points(), where, hbm=1000.0)
    answers["tight"], answers["reported"] = answers["plain"]["memory"]["total"] - 1, []

    def tell(name, card):
        return answers["reported"].append(name)

    answers["cards"] = search.search_settings(points(), where, hbm=answers["tight"], tell=tell)
    answers["cheapest"] = search.cheapest(answers["cards"])
    answers["again"] = (
        search.search_settings(points(), where, hbm=answers["tight"], known=answers["cards"])
        == answers["cards"]
    )
    answers["refused"] = []
    for change in (
        {"data.batch_size": 20},
        {"mesh.fsdp": 3},
        {"parallel": "pmap"},
        {"objective": "vdm.vdm()"},
    ):
        try:
            cards.card(points(**change), where)
        except UserError as error:
            answers["refused"].append(str(error))
    answers["known"] = known(where.devices)
    answers["text"] = (
        words.describe(answers["plain"]) + "\n\n" + words.describe(answers["too large"])
    )
    (folder / "answers.json").write_text(json.dumps(answers))


def known(devices):
    """The collectives of five turns, each of which adds (16, 4) float32 up over eight devices and
    gathers (8, 4) once after.
    """
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)
    P = jax.sharding.PartitionSpec

    def run(a):
        a = jax.lax.fori_loop(0, 5, lambda i, a: jnp.tanh(jax.lax.psum(a, "x")), a)
        return jax.lax.all_gather(a[:1], "x", tiled=True)

    mapped = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=P("x"), out_specs=P(None), check_vma=False)
    )
    text = mapped.lower(jax.ShapeDtypeStruct((128, 4), jnp.float32)).compile().as_text()
    return [one._asdict() for one in hlo.collectives(hlo.parse(text), 8)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
