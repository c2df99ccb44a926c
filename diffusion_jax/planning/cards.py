"""What a train step costs on devices that need not be here: it is compiled for them, and read.

    card(config, find_topology('v5e:16x16'))    # memory, work, collectives, least time of a step

Nothing is allocated: the compiler gets shapes and shardings. Memory and collectives are those of
the real program, with all its steps per call; FLOPs are counted before compilation (flops.py).
Times are bounds for a device at its data sheet's speed: no step is faster than its slowest part.
"""

from __future__ import annotations

import copy
import re
import sys
import time
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion_jax.assembly import compatibility, datasets, experiment, trainer
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core import arrays
from diffusion_jax.core.errors import UserError
from diffusion_jax.planning import flops, hlo
from diffusion_jax.planning.devices import GIB, Chip, Topology
from diffusion_jax.training import sharding
from diffusion_jax.training.state import TrainState


class Refused(Exception):
    """The compiler found that the program does not fit.

    Attributes:
      needs: the bytes that it needs; None where the compiler does not say.
      of: the bytes that there are; None likewise.

    Args:
      message: the message of the compiler, in which the bytes are looked for.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
        sizes = re.search(
            r"([\d.]+)([KMGT])\)? (?:exceeds available \w+|of) \(?([\d.]+)([KMGT])", message
        )
        unit = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
        self.needs, self.of = (
            (float(sizes[i]) * unit[sizes[i + 1]] for i in (1, 3)) if sizes else (None, None)
        )


def card(
    config: ConfigDict, where: Topology, *, hbm: float | None = None, compiled: bool = True
) -> dict[str, Any]:
    """Compile the train step of a config for some devices, and read what it costs.

    Args:
      config: the config.
      where: the devices.
      hbm: bytes of memory of a device, instead of the chip's.
      compiled: False leaves the compilation out, and all that only a compiler knows: parameters,
        state and FLOPs remain.

    Returns:
      Plain numbers per step: bytes, FLOPs and seconds. 'fits' is None where no size is known and
      where nothing is compiled; if the compiler refuses, 'refused' is its message and its numbers
      are None.

    Raises:
      UserError: for a config or a mesh that does not fit the devices.
    """
    hbm = hbm or (where.chip and where.chip.hbm)
    began = time.perf_counter()
    model, traced, state = trace(config, where)
    remat, steps = remat_of(config), model.training.steps_per_call
    found = _facts(model, remat, where, state) | {
        "trace_seconds": time.perf_counter() - began,
        "hbm": hbm,
    }
    found["flops"] = flops.count(traced.jaxpr) / steps
    found["model_flops"] = found["flops"] if remat == "none" else model_flops(config, where)
    found |= dict.fromkeys(
        ("memory", "collectives", "traffic", "compile_seconds", "refused", "roofline")
    )
    if hbm and found["state_bytes_per_device"] > hbm:
        needs = f"the state alone needs {gib(found['state_bytes_per_device'])} of {gib(hbm)}"
        return found | {"fits": False, "refused": needs}
    if not compiled:
        return found | {"fits": None}
    began = time.perf_counter()
    try:
        program = compile_traced(traced)
    except Refused as no:
        needs = f"needs {gib(no.needs)} of {gib(no.of)}; the compiler: " if no.needs else ""
        seconds = time.perf_counter() - began
        return found | {"fits": False, "refused": f"{needs}{no}", "compile_seconds": seconds}
    found["compile_seconds"] = time.perf_counter() - began
    found |= _read(program, len(where.devices), steps)
    found["fits"] = found["memory"]["total"] <= hbm if hbm else None
    found["roofline"] = where.chip and roofline(where.chip, len(where.devices), found)
    return found


def roofline(chip: Chip, devices: int, found: dict[str, Any]) -> dict[str, Any]:
    """The least seconds of a step (Williams, Waterman & Patterson 2009).

    It is the longest of the step's FLOPs, memory traffic and collectives, each at full speed and
    wholly hidden behind one another.

    Args:
      chip: what one device can do.
      devices: number of devices.
      found: 'flops', 'model_flops', 'traffic', 'collectives' and 'batch_size' of a card.

    Returns:
      The three times, their longest ('step') and its name ('bound_by'), images per second, and mfu:
      the model's FLOPs over those that the chips could do in that time.
    """
    parts = {
        "compute": found["flops"] / (devices * chip.flops),
        "memory": found["traffic"] / chip.bandwidth,
        "collectives": sum(kind["sent"] for kind in found["collectives"].values()) / chip.links,
    }
    step = max(parts.values())
    return parts | {
        "step": step,
        "bound_by": max(parts, key=parts.get),
        "images_per_second": found["batch_size"] / step,
        "mfu": found["model_flops"] / (devices * chip.flops * step),
    }


def trace(config: ConfigDict, where: Topology) -> tuple[Experiment, Any, TrainState]:
    """Trace the train step of a config for some devices; nothing is computed.

    Args:
      config: the config.
      where: the devices.

    Returns:
      (experiment, the traced step, shapes and shardings of the state).

    Raises:
      UserError: for a config that cannot be trained, or that does not fit the devices.
    """
    shape, classes = datasets.data_shape(config)
    model = experiment.assemble(config, shape, classes)
    if model.mesh.parallel != "jit":
        raise UserError(f"config.parallel={model.mesh.parallel}: a plan is for parallel=jit")
    model = model.kind.prepare(model, None)
    compatibility.check(model, latents=config.data.name == "latents")
    if note := compatibility.heights_note(model, {shape[0]}):
        print(f"note: {note}", file=sys.stderr)
    size, accumulate = model.data.batch_size, model.training.accumulate
    leading = (model.training.steps_per_call, size)
    batch = {"image": jax.ShapeDtypeStruct((*leading, *shape), jnp.float32)}
    batch |= {
        name: jax.ShapeDtypeStruct((*leading, *x.shape[1:]), x.dtype)
        for name, x in model.conditions.columns(1).items()
    }
    with arrays.compiling_for(where.platform):
        parts = trainer.training(model, devices=where.devices)
        if size % (accumulate * parts.runner.devices):
            raise UserError(
                f"config.data.batch_size={size} does not divide into accumulate={accumulate} parts "
                f"for {parts.runner.devices} devices; make it a multiple of their product"
            )
        state = parts.runner.template(parts.init, jax.random.key(model.seed))
        return model, parts.step.trace(state, batch), state


def compile_traced(traced: Any) -> Any:
    """Compile a traced program.

    Args:
      traced: what `trace` of a jitted function returns.

    Raises:
      Refused: if the compiler finds that it does not fit.
    """
    try:
        return traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise Refused(str(error)) from None


def _facts(model: Experiment, remat: str, where: Topology, state: TrainState) -> dict[str, Any]:
    """The part of a card that is known before compiling."""
    sizes = sharding.make_mesh(dict(model.mesh.sizes), devices=where.devices).shape
    leaves = [
        x for x in jax.tree.leaves(state) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    ]
    return {
        "topology": where.topology,
        "chip": where.chip.name if where.chip else where.devices[0].device_kind,
        "devices": len(where.devices),
        "mesh": dict(sizes),
        "model": model.specs.model,
        "shape": model.shape,
        "parameters": sum(prod(x.shape) for x in jax.tree.leaves(state.params)),
        "state_bytes": sum(prod(x.shape) * x.dtype.itemsize for x in leaves),
        "state_bytes_per_device": sum(
            prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves
        ),
        "batch_size": model.data.batch_size,
        "accumulate": model.training.accumulate,
        "remat": remat,
        "steps_per_call": model.training.steps_per_call,
    }


def _read(compiled: Any, devices: int, steps: int) -> dict[str, Any]:
    """Read the memory of a device, collectives and traffic per step from a compiled program."""
    sizes = compiled.memory_analysis()
    memory = {
        "arguments": sizes.argument_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        # the rest takes the place of donated arguments
        "output": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        "code": sizes.generated_code_size_in_bytes,
    }
    program = hlo.parse(compiled.as_text())
    kinds: dict[str, dict[str, float]] = {}
    for one in hlo.collectives(program, devices):
        kind = kinds.setdefault(one.kind, {"count": 0.0, "bytes": 0.0, "sent": 0.0})
        kind["count"] += one.times / steps
        kind["bytes"] += one.times * one.bytes / steps
        kind["sent"] += one.times * one.sent() / steps
    cost = compiled.cost_analysis() or {}
    return {
        "memory": memory | {"total": sum(memory.values())},
        "collectives": kinds,
        "traffic": hlo.traffic(program) / steps,
        "compiler": {
            key: cost[key] for key in ("flops", "bytes accessed", "optimal_seconds") if key in cost
        },
    }


def remat_of(config: ConfigDict) -> str:
    """Return which activations the network of a config recomputes: 'none', 'block' or 'dots'.

    Args:
      config: the config, whose model.remat may also be False, True or absent.
    """
    value = config.model.remat if "remat" in config.model else None
    return {False: "none", True: "block", None: "none"}.get(value, value)


def model_flops(config: ConfigDict, where: Topology) -> float:
    """Count the floating-point operations of a step that computes nothing twice.

    Args:
      config: the config; its model.remat is ignored.
      where: the devices of the mesh, which the batch is laid out for.

    Returns:
      FLOPs of one step on all devices together.
    """
    model, traced, _ = trace(changed(config, {"model.remat": "none"}), where)
    return flops.count(traced.jaxpr) / model.training.steps_per_call


def changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
    """A copy of a config with other values.

    Args:
      config: the config.
      changes: {'section.key': value}.
    """
    copied = copy.deepcopy(config)
    copied.update_from_flattened_dict(changes)
    return copied


def gib(size: float) -> str:
    """Write a number of bytes in words, such as '1.50 GiB'.

    Args:
      size: bytes; below 0.1 GiB they are written in MiB.
    """
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.2f} MiB"
