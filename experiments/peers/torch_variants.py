"""Variants of a PyTorch program (precision, compilation, layout), of which the fastest is timed."""

from __future__ import annotations

import contextlib
import gc
import platform
import re
import resource
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from line_protocol import Peer, timed
from torch.optim.swa_utils import get_ema_multi_avg_fn

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Programs = tuple[torch.nn.Module, dict[str, Callable[[], Any]]]  # a network, and what runs it
TRIALS, TRIAL_SECONDS = 5, 2.0  # of a variant: at most so many steps, or as long
DECAY = 0.999  # of the moving average


class Variant(NamedTuple):
    """How a program is run.

    Attributes:
      name: its words, such as 'bf16+compile+channels_last'.
      precision: one of PRECISIONS.
      compile: whether torch.compile is used.
      layout: of the memory of images.
    """

    name: str
    precision: str
    compile: bool
    layout: torch.memory_format

    @property
    def dtype(self) -> torch.dtype:
        """The type of its precision."""
        return PRECISIONS[self.precision]

    def network(self, network: torch.nn.Module) -> torch.nn.Module:
        """Return a network in the layout of the variant.

        Args:
          network: the network, which is changed in place.
        """
        return network.to(memory_format=self.layout)

    def compiled(self, function: Callable) -> Callable:
        """Return a function, compiled if the variant says so.

        Args:
          function: a function of tensors.
        """
        return torch.compile(function) if self.compile else function

    def autocast(self) -> contextlib.AbstractContextManager:
        """Mixed precision by autocast, or nothing for float32."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(device(), self.dtype)

    def images(self, batch: int, shape: Sequence[int]) -> torch.Tensor:
        """Draw noise in place of a batch of images, on the device and in the layout of the variant.

        Args:
          batch: number of images.
          shape: (height, width, channels).

        Returns:
          (batch, channels, height, width), float32.
        """
        height, width, channels = shape
        noise = torch.randn(batch, channels, height, width, device=device())
        return noise.to(memory_format=self.layout)


def variant(name: str) -> Variant:
    """Parse the name of a variant.

    Args:
      name: one of PRECISIONS, and optionally 'compile' and 'channels_last', joined by '+'.

    Raises:
      ValueError: for another word.
    """
    words = set(name.split("+"))
    precisions = [word for word in PRECISIONS if word in words]
    if len(precisions) != 1 or words - {*precisions, "compile", "channels_last"}:
        raise ValueError(
            f"variant {name!r}: write one of {', '.join(PRECISIONS)}, then compile and "
            "channels_last where wanted, with +"
        )
    layout = torch.channels_last if "channels_last" in words else torch.contiguous_format
    return Variant(name, precisions[0], "compile" in words, layout)


def device() -> str:
    """The device of this machine that PyTorch uses."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Return when the device has finished."""
    if device() == "cuda":
        torch.cuda.synchronize()


def memory() -> float:
    """The peak of memory in GiB: of the device since the last call, or of the process on a CPU."""
    if device() == "cuda":
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak / 2**30
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says includes the process that started this one
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # of macOS, in bytes


def average(
    averaged: Sequence[torch.Tensor], current: Sequence[torch.Tensor], decay: float = DECAY
) -> None:
    """Move the averages of parameters towards them, all in one call.

    Args:
      averaged: the averages, which are changed.
      current: the parameters.
      decay: what is kept of the averages.
    """
    get_ema_multi_avg_fn(decay)(list(averaged), list(current), None)


def fused() -> dict[str, bool]:
    """The options of an optimizer that make it one kernel, where the device has it."""
    return {"fused": True} if device() == "cuda" else {}


def fastest(
    settings: Mapping[str, Any],
    make: Callable[[Variant], Programs],
    facts: Mapping[str, Any],
) -> Peer:
    """Try all variants, and keep the fastest one of each program.

    Args:
      settings: with 'variants', their names.
      make: makes the network of a variant and its programs, by name.
      facts: what is known of the program.

    Returns:
      The peer.

    Raises:
      RuntimeError: if no variant runs.
    """
    torch.backends.cudnn.benchmark = True
    best: dict[str, dict[str, Any]] = {}
    chosen: dict[str, Callable[[], Any]] = {}
    parameters = 0
    for name in settings["variants"]:
        try:
            network, programs = make(variant(name))
            for program, step in programs.items():
                parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
                first, steady = _trial(step)
                print(f"{name}, {program}: {steady:.4g} s", file=sys.stderr, flush=True)
                found = best.setdefault(program, {"tried": {}, "steady": float("inf")})
                found["tried"][name] = steady
                if steady < found["steady"]:
                    chosen[program] = step
                    cold = max(0.0, first - steady)
                    found.update(variant=name, steady=steady, compile_seconds=cold)
        except Exception:  # a variant that this version of PyTorch cannot compile, or too large
            traceback.print_exc()
            print(f"{name} does not run; the next variant is tried", file=sys.stderr, flush=True)
        gc.collect()
        if device() == "cuda":
            torch.cuda.empty_cache()
    if not chosen:
        raise RuntimeError(f"none of the variants {', '.join(settings['variants'])} runs")
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    named = torch.cuda.get_device_name() if device() == "cuda" else "CPU"
    known = {
        **facts,
        "parameters": parameters,
        "device": named,
        "threads": torch.get_num_threads(),
        "versions": versions | facts["versions"],
        "programs": best,
    }
    return Peer(known, chosen, wait, memory)


def _trial(step: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the first step, and of the shortest of some further ones."""
    first, seconds = timed(step, 1, wait), []
    while len(seconds) < TRIALS and (len(seconds) < 2 or sum(seconds) < TRIAL_SECONDS):
        seconds.append(timed(step, 1, wait))
    return first, min(seconds)
