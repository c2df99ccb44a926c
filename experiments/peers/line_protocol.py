"""The line protocol of a peer: another program that is timed in a process of its own.

Each message is one line with a JSON object. The first line on stdin holds the settings. The peer
prepares its programs and answers {"ready": FACTS}. After that {"run": NAME, "steps": N} is answered
by {"seconds": S, "memory_gib": M}, until stdin ends. Whatever else a program prints goes to stderr,
and a failure is a traceback there. The scripts of this folder need the standard library and the
packages of the programs that they time, and never import diffusion_jax.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Peer(NamedTuple):
    """A program that can be timed.

    Attributes:
      facts: what is known of it, for the table: versions, parameters, and of each program the
        variant, the precision and the seconds of compilation.
      programs: name -> a function that starts one step.
      wait: returns when the device has finished.
      memory: the peak of the memory since the last call of it, in GiB.
    """

    facts: Mapping[str, Any]
    programs: Mapping[str, Callable[[], Any]]
    wait: Callable[[], Any]
    memory: Callable[[], float]


def serve(prepare: Callable[[dict[str, Any]], Peer]) -> None:
    """Answer the lines of stdin until it ends.

    Args:
      prepare: makes the peer from the settings of the first line.
    """
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1) as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the programs print
        peer = prepare(json.loads(sys.stdin.readline()))
        peer.memory()
        print(json.dumps({"ready": peer.facts}), file=answers)
        for line in sys.stdin:
            order = json.loads(line)
            seconds = timed(peer.programs[order["run"]], order["steps"], peer.wait)
            print(json.dumps({"seconds": seconds, "memory_gib": peer.memory()}), file=answers)


def timed(program: Callable[[], Any], steps: int, wait: Callable[[], Any]) -> float:
    """Seconds of some steps of a program, until the device has finished.

    Args:
      program: starts one step.
      steps: number of steps.
      wait: returns when the device has finished.
    """
    wait()
    began = time.perf_counter()
    for _ in range(steps):
        program()
    wait()
    return time.perf_counter() - began
