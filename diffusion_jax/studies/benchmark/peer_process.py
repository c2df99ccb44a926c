"""Another program in a process of its own, which is timed over the protocol of experiments/peers.

The process lives until the end of the block, so that its programs and ours can take turns. Its own
messages go to a log. PyTorch is never imported here.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError

PATIENCE = 1800.0  # seconds that a peer may take to compile its programs, or for one turn
FAREWELL = 20.0  # seconds that a peer has to end

READY = reading.record({"ready": reading.table()})  # what it answers to its settings
TURN = reading.record({"seconds": reading.number(), "memory_gib": reading.number()})


class PeerFailed(Exception):
    """A peer that does not start, dies or stays silent: one line that names the remedy."""


class RunningPeer(NamedTuple):
    """A peer that answers.

    Attributes:
      facts: what it says of itself (experiments/peers/line_protocol.py).
      run: (program, steps) -> the seconds that these steps took, and its memory in GiB.
    """

    facts: Mapping[str, Any]
    run: Callable[[str, int], tuple[float, float]]


@contextlib.contextmanager
def running_peer(
    python: str,
    script: Path,
    settings: Mapping[str, Any],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    patience: float = PATIENCE,
) -> Iterator[RunningPeer]:
    """Run a peer for as long as the block lasts.

    Args:
      python: the Python that has its packages.
      script: a script of experiments/peers.
      settings: what the script needs.
      log: the file for its messages.
      environment: variables that it has besides those of this process.
      patience: seconds until a silent peer is given up.

    Yields:
      The peer, once its programs are compiled.

    Raises:
      PeerFailed: if it does not start, dies or stays silent.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as messages:
        process = _start([python, str(script)], messages, environment or {})
        answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        reader = threading.Thread(target=_read, args=(process.stdout, answers), daemon=True)
        reader.start()

        def ask(message: Mapping[str, Any], rule: reading.Rule) -> dict[str, Any]:
            with contextlib.suppress(BrokenPipeError):  # it has died, and gives no answer
                process.stdin.write(json.dumps(message) + "\n")
                process.stdin.flush()
            try:
                line = answers.get(timeout=patience)
            except queue.Empty:
                raise PeerFailed(
                    f"gave no answer in {patience:.0f} s; {log} has its messages; use a smaller "
                    "--peer_batch"
                ) from None
            if not line:
                raise PeerFailed(_died(process.wait(FAREWELL), python, log))
            return _answer(line, rule, script, log)

        def run(program: str, steps: int) -> tuple[float, float]:
            answer = ask({"run": program, "steps": steps}, TURN)
            return answer["seconds"], answer["memory_gib"]

        try:
            yield RunningPeer(ask(settings, READY)["ready"], run)
        except BaseException:
            process.kill()  # it may be in the middle of something long
            raise
        finally:
            _end(process)
            reader.join()
            process.stdout.close()


def _start(
    command: Sequence[str], messages: IO[str], environment: Mapping[str, str]
) -> subprocess.Popen:
    """Start the process; PeerFailed where the system refuses."""
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            env=os.environ | environment,
        )
    except OSError as error:
        raise PeerFailed(
            f"--peer_python={command[0]} does not start ({error.strerror}); write the path of a "
            "Python with PyTorch"
        ) from None


def _read(lines: IO[str], answers: queue.SimpleQueue[str]) -> None:
    """Pass the lines of the protocol on, and an empty one at the end."""
    for line in lines:
        if line.startswith("{"):
            answers.put(line)
    answers.put("")


def _answer(line: str, rule: reading.Rule, script: Path, log: Path) -> dict[str, Any]:
    """The answer in a line; PeerFailed where it does not follow the protocol."""
    try:
        return reading.json_text(line, f"an answer of {script.name}", rule)
    except UserError as error:
        raise PeerFailed(f"{error}; {log} has its messages") from error


def _end(process: subprocess.Popen) -> None:
    """End the process: at the end of its input, or else at once."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(FAREWELL)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _died(status: int, python: str, log: Path) -> str:
    """The line of a peer that has died, by the last line of its messages."""
    text = log.read_text(encoding="utf-8", errors="replace")
    last = ([line.strip() for line in text.splitlines() if line.strip()] or ["no message"])[-1]
    if missing := re.search(r"No module named '([\w.]+)'", last):
        return (
            f"{python} has no package {missing[1]}; install it there, or name another Python with "
            "--peer_python=PATH"
        )
    remedy = "use a smaller --peer_batch" if "out of memory" in text else "fix what it says"
    return f"ended with status {status}: {last:.200}; {log} has its messages; {remedy}"
