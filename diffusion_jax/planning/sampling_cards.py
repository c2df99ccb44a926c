"""What sampling costs on a device that need not be here: its program is compiled, and read.

    card(config, find_topology('v5e:2x4'))    # memory and work of a batch of config.sampler

Nothing is allocated. One device draws one batch, so devices side by side need as much each.
"""

from __future__ import annotations

import time
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from diffusion_jax.assembly import autoencoders, datasets, denoiser, experiment, sampling, workdir
from diffusion_jax.assembly.latent import LatentDecoder
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core import arrays
from diffusion_jax.core.types import Params
from diffusion_jax.planning import cards, flops
from diffusion_jax.planning.cards import gib
from diffusion_jax.planning.devices import Topology
from diffusion_jax.planning.words import si


def card(
    config: ConfigDict, where: Topology, *, hbm: float | None = None, compiled: bool = True
) -> dict[str, Any]:
    """Compile the sampler of a config for one device, and read what it costs.

    Args:
      config: the config. The decoder of latents counts if config.latent.autoencoder names it.
      where: the devices, of which the first is compiled for.
      hbm: bytes of memory of a device, instead of the chip's.
      compiled: False leaves the compilation out, and so the memory.

    Returns:
      Plain numbers: bytes, FLOPs and seconds. 'fits' is None where no size is known; if the
      compiler refuses, 'refused' is its message.

    Raises:
      UserError: for a config that cannot be sampled.
    """
    hbm = hbm or (where.chip and where.chip.hbm)
    shape, classes = datasets.data_shape(config)
    model = experiment.assemble(config, shape, classes)
    denoiser.need_denoiser(model)
    params, model = _parameters(model), _with_decoder(model)
    ensemble, chosen = denoiser.ensemble(model, params), sampling.method(model)
    found = {
        "topology": where.topology,
        "chip": where.chip.name if where.chip else where.devices[0].device_kind,
        "model": model.specs.model,
        "shape": model.shape,
        "sampler": f"{model.sampling.name} on grid {chosen.grid}",
        "evaluations": sampling.evaluations(chosen),
        "guided": chosen.guided,
        "decoder": model.latents is not None,
        "batch_size": model.sampling.batch_size,
        "parameters": _size(ensemble.own),
        "parameter_bytes": 4 * _size(ensemble),
        "hbm": hbm,
    }
    with arrays.compiling_for(where.platform):
        traced, one = _traced(model, ensemble, chosen, where)
        found["flops"] = flops.count(one)
        return found | (_compiled(traced, hbm) if compiled else _unknown())


def _parameters(model: Experiment) -> Params:
    return jax.eval_shape(lambda key: model.kind.init(model, key), jax.random.key(0))


def _with_decoder(model: Experiment) -> Experiment:
    """The model with the decoder of its latents, whose parameters are shapes."""
    root = model.sources.autoencoder
    if not root:
        return model
    own = workdir.about_data(root)
    config = workdir.saved_config(root, "config.latent.autoencoder")
    network = experiment.assemble(config, own["image_shape"], own["num_classes"])
    codec = autoencoders.codec(network, _parameters(network))
    return model._replace(latents=LatentDecoder(codec.decode, codec.params))


def _size(tree: Any) -> int:
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _traced(
    model: Experiment,
    ensemble: denoiser.Ensemble,
    chosen: sampling.SamplingMethod,
    where: Topology,
) -> tuple[Any, Any]:
    """The traced program, and the jaxpr of one evaluation of the denoiser."""
    place, batch = SingleDeviceSharding(where.devices[0]), model.sampling.batch_size

    def on_device(leaf: Any, size: int | None = None) -> jax.ShapeDtypeStruct:
        whole = leaf.shape if size is None else (size, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(whole, leaf.dtype, sharding=place)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    null = jax.eval_shape(lambda: model.conditions.null(1))
    cond = jax.tree.map(lambda leaf: on_device(leaf, batch), null)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=place)
    x = jax.ShapeDtypeStruct((batch, *model.shape), jnp.float32, sharding=place)
    ensemble = jax.tree.map(on_device, ensemble)
    how = {"guided": chosen.guided, "clip": chosen.clip, "noise": chosen.noise}
    run = sampling.sample_fn(model, chosen.sampler, **how)
    traced = run.trace(ensemble, on_device(keys), cond, on_device(chosen.ts), number)
    scale = model.sampling.guidance if chosen.guided else None
    denoise = denoiser.of_ensemble(model, scale=scale, clip=chosen.clip)
    one = jax.make_jaxpr(lambda params, *given: denoise(params)(*given))(ensemble, x, number, cond)
    return traced, one


def _unknown() -> dict[str, Any]:
    return dict.fromkeys(("memory", "fits", "refused", "compile_seconds"))


def _compiled(traced: Any, hbm: float | None) -> dict[str, Any]:
    """The memory of the program, and whether it fits."""
    began = time.perf_counter()
    try:
        sizes = cards.compile_traced(traced).memory_analysis()
    except cards.Refused as no:
        seconds = time.perf_counter() - began
        return {"memory": None, "fits": False, "refused": str(no), "compile_seconds": seconds}
    memory = {
        "arguments": sizes.argument_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "output": sizes.output_size_in_bytes,
        "code": sizes.generated_code_size_in_bytes,
    }
    memory["total"] = sum(memory.values())
    fits = memory["total"] <= hbm if hbm else None
    seconds = time.perf_counter() - began
    return {"memory": memory, "fits": fits, "refused": None, "compile_seconds": seconds}


def describe(card: dict[str, Any]) -> str:
    """Write a card of sampling in words, a line for each fact.

    Args:
      card: the card, as `card` makes it.
    """
    guided = "guided" if card["guided"] else "not guided"
    decoder = "with the decoder" if card["decoder"] else "without a decoder of latents"
    lines = {
        "network": f"{card['model']}, {card['parameters']:,} parameters, examples "
        f"{tuple(card['shape'])}, {decoder}",
        "device": f"{card['chip']} ({card['topology']})",
        "sampling": f"{card['sampler']}, {guided}, {card['evaluations'] or 'adaptive'} "
        f"evaluations, batch {card['batch_size']}",
        "parameters": f"{gib(card['parameter_bytes'])} in float32",
        "an evaluation": f"{si(card['flops'])} for the batch",
    }
    if card["compile_seconds"]:
        lines["compiled in"] = f"{card['compile_seconds']:.0f} s"
    if memory := card["memory"]:
        lines["memory"] = ", ".join(f"{name} {gib(size)}" for name, size in memory.items())
    size = f"{gib(card['hbm'])} of HBM" if card["hbm"] else "memory of unknown size"
    no = f"NO, not in {size}: {card['refused'] or 'too much in all'}"
    lines["fits"] = {True: f"yes, in {size}", None: f"not known ({size})"}.get(card["fits"], no)
    return "\n".join(f"{name + ':':<16}{line}" for name, line in lines.items())
