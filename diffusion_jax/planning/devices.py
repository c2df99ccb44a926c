"""The devices that a program is compiled for, and what they can do at most."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from diffusion_jax.core.errors import UserError


class Chip(NamedTuple):
    """The most that one device can do, by public data sheets.

    Attributes:
      name: its name.
      flops: dense bfloat16 FLOP/s.
      hbm: bytes of its memory.
      bandwidth: bytes/s between the device and its memory.
      links: bytes/s to all other devices together, one way.
    """

    name: str
    flops: float
    hbm: float
    bandwidth: float
    links: float


GB, GIB = 1e9, 2.0**30


# The keys are prefixes of jax's device_kind. TPU: cloud.google.com/tpu/docs, but the memory that
# libtpu reports as available; GPU: NVIDIA's data sheets, SXM. v4 is missing: each of its devices is
# half a chip, for which libtpu makes no mesh without a TPU.
CHIPS = {
    "TPU v5 lite": Chip("TPU v5e", 197e12, 15.75 * GIB, 819 * GB, 200 * GB),
    "TPU v5": Chip("TPU v5p", 459e12, 95.74 * GIB, 2765 * GB, 600 * GB),
    "TPU v6 lite": Chip("TPU v6e", 918e12, 31.25 * GIB, 1640 * GB, 400 * GB),
    "NVIDIA A100": Chip("A100", 312e12, 80 * GB, 2039 * GB, 300 * GB),
    "NVIDIA H100": Chip("H100", 989e12, 80 * GB, 3350 * GB, 450 * GB),
    "NVIDIA H200": Chip("H200", 989e12, 141 * GB, 4800 * GB, 450 * GB),
}


class Topology(NamedTuple):
    """Devices to compile for.

    Attributes:
      topology: the text that named them.
      platform: 'cpu', 'gpu' or 'tpu'.
      devices: the devices.
      chip: what one of them can do; None where it is not known.
    """

    topology: str
    platform: str
    devices: list[Any]
    chip: Chip | None


MOST_CPUS = 1024  # devices that one process can pretend to have


def find_topology(topology: str) -> Topology:
    """The devices of a topology.

    Args:
      topology: 'v5e:16x16' (also v5p, v6e; needs libtpu but no TPU), 'cpu:8' (before JAX starts),
        or 'gpu' for the GPUs of this machine.

    Raises:
      UserError: for a topology that does not exist, or one that needs what is not installed.
    """
    kind, _, size = topology.partition(":")
    platform = kind if kind in ("cpu", "gpu") else "tpu"
    devices = {"cpu": _cpus, "gpu": _gpus, "tpu": _tpus}[platform](topology, size)
    return Topology(topology, platform, devices, chip_of(devices[0].device_kind))


def chip_of(device_kind: str) -> Chip | None:
    """Look up a kind of device.

    Args:
      device_kind: the name that jax gives it, such as 'TPU v5 lite'.

    Returns:
      The chip, or None where it is not known.
    """
    known = [name for name in CHIPS if device_kind.startswith(name)]
    return CHIPS[max(known, key=len)] if known else None  # 'TPU v5' is a prefix of 'TPU v5 lite'


def _cpus(topology: str, size: str) -> list[Any]:
    if not (size.isdecimal() and len(size) < 5 and 1 <= int(size) <= MOST_CPUS):
        raise UserError(
            f"--topology={topology:.60}: write how many, from 1 to {MOST_CPUS}, such as cpu:8"
        )
    with contextlib.suppress(RuntimeError):  # JAX has started, and keeps its number of devices
        jax.config.update("jax_num_cpu_devices", int(size))
    if len(devices := jax.devices("cpu")) != int(size):
        raise UserError(
            f"--topology={topology}: jax has started with {len(devices)} CPU devices; use a "
            "process of its own"
        )
    return devices


def _gpus(topology: str, size: str) -> list[Any]:
    try:
        return jax.devices("gpu")
    except RuntimeError:
        raise UserError(
            "--topology=gpu: jax sees no GPU here; install diffusion_jax[cuda13] or [cuda12] on a "
            "machine that has one"
        ) from None


def _tpus(topology: str, size: str) -> list[Any]:
    if not re.fullmatch(r"(v5e|v5p|v6e):\d+(x\d+)*", topology):
        raise UserError(
            f"--topology={topology}: write a slice of TPUs v5e, v5p or v6e such as v5e:16x16; or "
            "cpu:8; or gpu"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={topology} needs libtpu, the compiler of TPUs (no TPU): "
            "pip install 'diffusion_jax[tpu]'"
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
