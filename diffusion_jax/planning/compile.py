"""A train step compiled for devices that need not be here, and what its compiler says: does it fit,
what bounds its speed.

    card(config, target('v5e:16x16'))     one config: memory, work, collectives, the least time a step can take
    search(config, target('v5e:2x4'))     the cheapest remat, fsdp and accumulation that fit

Nothing is materialised: shapes and shardings in, the compiler's answers out. Memory and collectives
are those of the real program, with all its steps per call; FLOPs are counted in it before
compilation (flops.py). Times are bounds, of a device at its data sheet's speed: no step is faster
than its slowest part, and none is as fast.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from diffusion_jax import arrays, reading
from diffusion_jax.assembly import conditions, datasets, experiment, trainer
from diffusion_jax.errors import UserError
from diffusion_jax.planning import flops, hlo
from diffusion_jax.training import sharding


class Chip(NamedTuple):
    """What one device can do at most, by public data sheets: dense bf16 FLOP/s, bytes of HBM,
    bytes/s between it and HBM, bytes/s to all its neighbours together, one way.
    """

    name: str
    flops: float
    hbm: float
    bandwidth: float
    links: float


GB, GIB = 1e9, 2.0**30


# jax's device_kind begins with the key. TPU: cloud.google.com/tpu/docs, but HBM as libtpu says is
# available; GPU: NVIDIA's data sheets, SXM. (v4 is not here: each of its devices is half a chip, of
# which libtpu makes no mesh without a TPU.)
CHIPS = {
    "TPU v5 lite": Chip("TPU v5e", 197e12, 15.75 * GIB, 819 * GB, 200 * GB),
    "TPU v5": Chip("TPU v5p", 459e12, 95.74 * GIB, 2765 * GB, 600 * GB),
    "TPU v6 lite": Chip("TPU v6e", 918e12, 31.25 * GIB, 1640 * GB, 400 * GB),
    "NVIDIA A100": Chip("A100", 312e12, 80 * GB, 2039 * GB, 300 * GB),
    "NVIDIA H100": Chip("H100", 989e12, 80 * GB, 3350 * GB, 450 * GB),
    "NVIDIA H200": Chip("H200", 989e12, 141 * GB, 4800 * GB, 450 * GB),
}


class Target(NamedTuple):
    """Devices to compile for: the text that named them, 'cpu', 'gpu' or 'tpu', and what one of them
    can do, where known.
    """

    topology: str
    platform: str
    devices: list
    chip: Chip | None


MOST_CPUS = 1024  # devices that one process can pretend to have


def target(topology: str) -> Target:
    """'v5e:16x16' (also v5p, v6e; needs libtpu, no TPU), 'cpu:8', or 'gpu', those of this machine.

    Raises UserError for a topology that does not exist, or without what is needed. 'cpu:N' must
    come before jax starts.
    """
    kind, _, size = topology.partition(":")
    platform = kind if kind in ("cpu", "gpu") else "tpu"
    devices = {"cpu": _cpus, "gpu": _gpus, "tpu": _tpus}[platform](topology, size)
    told = devices[0].device_kind
    # v5 is a prefix of v5 lite: the longest name that fits
    chip = max((name for name in CHIPS if told.startswith(name)), key=len, default=None)
    return Target(topology, platform, devices, CHIPS.get(chip))


def _cpus(topology: str, size: str) -> list:
    if not (size.isdecimal() and len(size) < 5 and 1 <= int(size) <= MOST_CPUS):
        raise UserError(
            f"--topology={topology:.60}: write how many, from 1 to {MOST_CPUS}, such as cpu:8"
        )
    try:
        jax.config.update("jax_num_cpu_devices", int(size))
    except RuntimeError:
        pass  # jax has started: it has as many as it has
    if len(devices := jax.devices("cpu")) != int(size):
        raise UserError(
            f"--topology={topology}: jax has started with {len(devices)} CPU devices; use a process of its own"
        )
    return devices


def _gpus(topology: str, size: str) -> list:
    try:
        return jax.devices("gpu")
    except RuntimeError:
        raise UserError(
            "--topology=gpu: jax sees no GPU here; install diffusion_jax[cuda] on a machine that has one"
        ) from None


def _tpus(topology: str, size: str) -> list:
    if not re.fullmatch(r"(v5e|v5p|v6e):\d+(x\d+)*", topology):
        raise UserError(
            f"--topology={topology}: write a slice of TPUs v5e, v5p or v6e such as v5e:16x16; or cpu:8; or gpu"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={topology} needs libtpu, the compiler of TPUs (no TPU): pip install 'diffusion_jax[tpu]'"
        )
    # Silence libtpu's search for a real TPU, and let two plans run at once.
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"--topology={topology} does not exist: {' '.join(str(error).split())[:300]}"
        ) from None


# ---- one config
_SIZE, _NUMBER = reading.number(0), reading.number()

_CARD = reading.record(  # of a card in a file that experiments.plan wrote
    {
        "topology": reading.text(),
        "chip": reading.text(),
        "model": reading.text(),
        "remat": reading.text(),
        "devices": reading.integer(1),
        "mesh": reading.table(reading.integer(1)),
        "shape": reading.items(reading.integer(1)),
        "batch_size": reading.integer(1),
        "parameters": _SIZE,
        "state_bytes": _SIZE,
        "state_bytes_per_device": _SIZE,
        "accumulate": reading.integer(1),
        "steps_per_call": reading.integer(1),
        "flops": _SIZE,
        "model_flops": _SIZE,
        "trace_seconds": _SIZE,
        "fits": reading.one_of(True, False, None),
        "hbm": reading.optional(_SIZE),
        "refused": reading.optional(reading.text()),
        "memory": reading.optional(reading.table(_NUMBER)),
        "traffic": reading.optional(_SIZE),
        "collectives": reading.optional(
            reading.table(reading.record({"count": _NUMBER, "bytes": _NUMBER}))
        ),
        "compile_seconds": reading.optional(_SIZE),
        "roofline": reading.optional(
            reading.record(
                {"bound_by": reading.text()}
                | dict.fromkeys(
                    ("step", "compute", "memory", "collectives", "images_per_second", "mfu"),
                    _NUMBER,
                )
            )
        ),
    }
)


def rule(value: Any, place: str) -> None:
    """The rule of a card in a file of experiments.plan (`reading`): what the compiler says is there
    together or not at all.
    """
    _CARD(value, place)
    if value["memory"] and None in (value["traffic"], value["collectives"]):
        raise reading.Mismatch(f"{place or 'the card'} has a part of what the compiler said")


class Refused(Exception):
    """The compiler's 'does not fit'. needs, of: bytes, None where it does not say."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
        sizes = re.search(
            r"([\d.]+)([KMGT])\)? (?:exceeds available \w+|of) \(?([\d.]+)([KMGT])", message
        )
        unit = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
        self.needs, self.of = (
            (float(sizes[i]) * unit[sizes[i + 1]] for i in (1, 3)) if sizes else (None, None)
        )


def card(config: Any, where: Target, *, hbm: float | None = None) -> dict[str, Any]:
    """Everything about the train step of a config there, as plain numbers: bytes, FLOPs and
    seconds, per step.

    hbm: bytes per device, in place of the chip's. Raises UserError for a config or a mesh that does
    not fit the devices. 'fits' is None where no size is known; if the compiler refuses, 'refused'
    is what it said and its numbers are None.
    """
    hbm = hbm or (where.chip and where.chip.hbm)
    began = time.perf_counter()
    built, traced, state = _trace(config, where)
    found = _facts(config, where, built, state) | {
        "trace_seconds": time.perf_counter() - began,
        "hbm": hbm,
    }
    steps = config.training.steps_per_call
    found["flops"] = flops.count(traced.jaxpr) / steps
    found["model_flops"] = (
        found["flops"] if _remat(config) == "none" else _model_flops(config, where)
    )
    found |= dict.fromkeys(
        ("memory", "collectives", "traffic", "compile_seconds", "refused", "roofline")
    )
    if hbm and found["state_bytes_per_device"] > hbm:
        needs = f"the state alone needs {_gib(found['state_bytes_per_device'])} of {_gib(hbm)}"
        return found | {"fits": False, "refused": needs}
    began = time.perf_counter()
    try:
        compiled = _compile(traced)
    except Refused as no:
        needs = f"needs {_gib(no.needs)} of {_gib(no.of)}; the compiler: " if no.needs else ""
        return found | {
            "fits": False,
            "refused": f"{needs}{no}",
            "compile_seconds": time.perf_counter() - began,
        }
    found |= {"compile_seconds": time.perf_counter() - began} | _read(
        compiled, len(where.devices), steps
    )
    found["fits"] = found["memory"]["total"] <= hbm if hbm else None
    found["roofline"] = where.chip and roofline(where.chip, len(where.devices), found)
    return found


def roofline(chip: Chip, devices: int, found: dict) -> dict[str, Any]:
    """The least seconds of a step: the longest of its FLOPs, its memory traffic and its
    collectives, each at full speed and wholly hidden behind one another (Williams et al. 2009).
    mfu: model FLOPs over what the chips could do in that time.
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


def _trace(config, where: Target):
    """(experiment, the traced step, shapes and places of the state)."""
    if config.parallel != "jit":
        raise UserError(f"config.parallel={config.parallel}: a plan is for parallel=jit")
    shape, classes = datasets.data_shape(config)
    built = experiment.assemble(config, shape, classes)
    built = built.kind.prepare(built, None)
    leading = (config.training.steps_per_call, config.data.batch_size)
    batch = {"image": jax.ShapeDtypeStruct((*leading, *shape), jnp.float32)}
    told = conditions.null_cond(built, 1) or {}
    batch |= {
        name: jax.ShapeDtypeStruct((*leading, *x.shape[1:]), x.dtype) for name, x in told.items()
    }
    with arrays.compiling_for(where.platform):
        parts = trainer.training(built, devices=where.devices)
        if leading[1] % (config.training.accumulate * parts.runner.devices):
            raise UserError(
                f"config.data.batch_size={leading[1]} does not divide into accumulate={config.training.accumulate} "
                f"parts for {parts.runner.devices} devices; make it a multiple of their product"
            )
        state = parts.runner.template(parts.init, jax.random.key(config.seed))
        return built, parts.step.trace(state, batch), state


def _compile(traced):
    """The compiled program; Refused if the compiler finds that it does not fit."""
    try:
        return traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise Refused(str(error)) from None


def _facts(config, where: Target, built, state) -> dict[str, Any]:
    """What is known before compiling."""
    sizes = sharding.make_mesh(config.mesh.to_dict(), devices=where.devices).shape
    leaves = [
        x for x in jax.tree.leaves(state) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    ]
    return {
        "topology": where.topology,
        "chip": where.chip.name if where.chip else where.devices[0].device_kind,
        "devices": len(where.devices),
        "mesh": dict(sizes),
        "model": config.model.name,
        "shape": built.shape,
        "parameters": sum(prod(x.shape) for x in jax.tree.leaves(state.params)),
        "state_bytes": sum(prod(x.shape) * x.dtype.itemsize for x in leaves),
        "state_bytes_per_device": sum(
            prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves
        ),
        "batch_size": config.data.batch_size,
        "accumulate": config.training.accumulate,
        "remat": _remat(config),
        "steps_per_call": config.training.steps_per_call,
    }


def _read(compiled, devices: int, steps: int) -> dict[str, Any]:
    """What the compiled program says: memory of a device; per step: collectives by kind, bytes to
    and from memory.
    """
    said = compiled.memory_analysis()
    memory = {
        "arguments": said.argument_size_in_bytes,
        "temporaries": said.temp_size_in_bytes,
        "output": said.output_size_in_bytes
        - said.alias_size_in_bytes,  # the rest takes the place of donated arguments
        "code": said.generated_code_size_in_bytes,
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


def _remat(config) -> str:
    return {False: "none", True: "block", None: "none"}.get(
        value := config.model.get("remat"), value
    )


def _model_flops(config, where: Target) -> float:
    """Those of the step that computes nothing twice."""
    plain = _with(config, {"model.remat": "none"})
    return flops.count(_trace(plain, where)[1].jaxpr) / config.training.steps_per_call


def _with(config, changes: dict[str, Any]):
    """A copy of a config with other values."""
    changed = copy.deepcopy(config)
    changed.update_from_flattened_dict(changes)
    return changed


# ---- the cheapest that fits
def search(
    config: Any,
    where: Target,
    *,
    hbm: float | None = None,
    known: dict[str, dict] | None = None,
    tell: Callable[[str, dict], None] = lambda name, card: None,
) -> dict[str, dict]:
    """Cards of settings of remat, fsdp and accumulation by name, until for each pair of the first
    two one fits or none can.

    known: cards that need not be made again, by name. tell(name, card): called for each as it
    comes. For the cheapest of them see `cheapest`.
    """
    cards, known = {}, known or {}
    for pair in _pairs(config, len(where.devices)):
        for accumulate in _parts(config, where):
            changes = {**pair, "training.accumulate": accumulate}
            name = " ".join(f"--config.{key}={value}" for key, value in changes.items())
            cards[name] = known.get(name) or card(_with(config, changes), where, hbm=hbm)
            tell(name, cards[name])
            if cards[name]["fits"] is not False or cards[name]["state_bytes_per_device"] > (
                cards[name]["hbm"] or float("inf")
            ):
                break  # more parts only cost more; or they cannot help
    return cards


def cheapest(cards: dict[str, dict]) -> str | None:
    """The name of the card that fits with the shortest bound on a step (FLOPs, where there is
    none); None if none fits.
    """
    fitting = {name: card for name, card in cards.items() if card["fits"] is not False}
    return min(fitting, key=lambda name: _cost(fitting[name]), default=None)


def _cost(card: dict) -> tuple[float, float]:
    return card["roofline"]["step"] if card["roofline"] else 0.0, card["flops"]


def _pairs(config, devices: int) -> Iterator[dict[str, Any]]:
    """Settings of (fsdp, remat), those that change least first: fsdp as configured, then 8, 16, ...
    all devices.
    """
    tensor = max(config.mesh.tensor, 1)
    most = devices // tensor
    sizes = [
        config.mesh.fsdp,
        *(n for n in (8, 16, 64, 256, most) if n <= most and devices % (n * tensor) == 0),
    ]
    remats = (
        dict.fromkeys([_remat(config), "none", "dots", "block"])
        if "remat" in config.model
        else [None]
    )
    for remat, fsdp in itertools.product(remats, dict.fromkeys(sizes)):
        mesh = {
            "mesh.data": config.mesh.data if fsdp == config.mesh.fsdp else -1,
            "mesh.fsdp": fsdp,
        }
        yield mesh | ({"model.remat": remat} if remat else {})


def _parts(config, where: Target) -> list[int]:
    """The numbers of microbatches that leave every device an example: the config's own, and that
    doubled.
    """
    own, most = config.training.accumulate, config.data.batch_size // len(where.devices)
    doubled = (own * 2**i for i in range(1, 20))
    return [
        own,
        *(
            n
            for n in doubled
            if n <= most and config.data.batch_size % (n * len(where.devices)) == 0
        ),
    ]


# ---- in words
def text(card: dict) -> str:
    """A card as lines for people."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in card["mesh"].items())
    lines = {
        "network": f"{card['model']}, {card['parameters']:,} parameters, examples {tuple(card['shape'])}",
        "devices": f"{card['devices']} x {card['chip']} ({card['topology']}), mesh {mesh}",
        "a step": f"batch {card['batch_size']}, accumulate {card['accumulate']}, remat {card['remat']}; "
        f"{card['steps_per_call']} steps per call",
        "FLOPs per step": f"{_si(card['flops'])}, the model's {_si(card['model_flops'])}",
        "state": f"{_gib(card['state_bytes'])} in all, {_gib(card['state_bytes_per_device'])} on a device",
    }
    if memory := card["memory"]:
        lines["HBM per device"] = ", ".join(f"{name} {_gib(size)}" for name, size in memory.items())
        kinds = (
            f"{kind['count']:g} {name} of {_gib(kind['bytes'])}"
            for name, kind in card["collectives"].items()
        )
        lines["collectives"] = "; ".join(kinds) or "none"
        lines["memory traffic"] = f"{_gib(card['traffic'])} per step and device"
    if card["compile_seconds"]:
        lines["compiled in"] = (
            f"{card['compile_seconds']:.0f} s, after {card['trace_seconds']:.0f} s of tracing"
        )
    if bound := card["roofline"]:
        parts = ", ".join(
            f"{name} {1e3 * bound[name]:.3g} ms" for name in ("compute", "memory", "collectives")
        )
        lines["roofline"] = (
            f"a step takes at least {1e3 * bound['step']:.3g} ms, bound by {bound['bound_by']} ({parts}): "
            f"at most {bound['images_per_second']:,.0f} images/s, MFU {bound['mfu']:.0%}"
        )
    size = f"{_gib(card['hbm'])} of HBM" if card["hbm"] else "memory of unknown size"
    no = f"NO, not in {size}: {card['refused'] or 'too much in all'}"
    lines["fits"] = {True: f"yes, in {size}", None: f"unknown: {size}"}.get(card["fits"], no)
    return "\n".join(f"{name + ':':<16}{line}" for name, line in lines.items())


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.2f} MiB"


def _si(value: float) -> str:
    exponent = next((e for e in (15, 12, 9, 6) if value >= 10**e), 0)
    return f"{value / 10**exponent:.3g} {({15: 'P', 12: 'T', 9: 'G', 6: 'M', 0: ''})[exponent]}FLOP"
