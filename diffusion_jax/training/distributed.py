"""Runs of several processes: how they connect, what the first alone does, how they agree to stop.

Every process runs the same main on its own devices; jax.distributed connects them, and
`jax.devices()` are then those of all. The first process (index 0) alone writes what describes the
run; checkpoints are written by all (Orbax). A process that dies is noticed after at most
`heartbeat_timeout` seconds, and the others end with a message instead of waiting for it; running
the same command again on all of them resumes training from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.core.errors import UserError
from diffusion_jax.training import runtime

SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)  # what jax reads

OPEN_MPI = "OMPI_MCA_orte_hnp_uri"  # likewise; Open MPI 5 no longer sets it
TPU = "TPU_ML_PLATFORM"  # set to JAX by `import jax` where it finds TPU chips and libtpu
# seconds that a finished process waits for the others, of which the first may still be writing
SHUTDOWN_TIMEOUT = 3600
# seconds that the first process, which hosts the coordinator, waits after an error of its own, so
# that the others can report theirs
GRACE = 3
FLAGS = ("coordinator", "num_processes", "process_id")


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 300,
    heartbeat_timeout: int = 100,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Connect the processes of a run; does nothing for a run of one process.

    It must be called before anything uses a device. An argument that is None is found by JAX on TPU
    pods, SLURM, Open MPI and Kubernetes (`launcher`).

    Args:
      coordinator: HOST:PORT, an address of process 0.
      num_processes: the number of processes; 1 is a run of one process in any environment.
      process_id: the index of this process.
      timeout: seconds for all processes to connect; if they do not, the process ends with one line
        and status 2 (the coordination client of JAX would abort).
      heartbeat_timeout: seconds without a sign of life after which a process counts as dead and all
        others end.
      environ: the environment variables.

    Raises:
      UserError: for flags that are incomplete or contradictory, and for a package that is missing.
    """
    given = dict(zip(FLAGS, (coordinator, num_processes, process_id), strict=True))
    # complete flags need no cluster
    found = launcher(environ) if None in given.values() and num_processes != 1 else None
    if num_processes == 1 or (
        found is None and not any(value is not None for value in given.values())
    ):
        return
    if found == "Open MPI" and OPEN_MPI not in environ:
        given["num_processes"] = given["num_processes"] or int(environ["OMPI_COMM_WORLD_SIZE"])
        given["process_id"] = (
            int(environ["OMPI_COMM_WORLD_RANK"]) if process_id is None else process_id
        )
        found = None  # JAX does not recognize it
    _check(given, found)
    # From here on Orbax and JAX would handle SIGTERM themselves; the training loop does, and
    # outside of it the signal ends the process.
    jax.config.update("jax_enable_preemption_service", False)
    with _deadline(timeout, _absent(given, timeout)):
        _connect(given, found, timeout, heartbeat_timeout, environ)


def _connect(
    given: Mapping[str, Any],
    found: str | None,
    timeout: int,
    heartbeat_timeout: int,
    environ: Mapping[str, str],
) -> None:
    try:
        jax.distributed.initialize(
            given["coordinator"],
            given["num_processes"],
            given["process_id"],
            local_device_ids=local_devices(environ),
            cluster_detection_method="deactivate" if found is None else None,
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except (RuntimeError, ValueError, OSError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the processes of this run could not be connected ({found or 'by flags'}): {line}; "
            "--num_processes=1 starts a run of one process"
        ) from error


def launcher(environ: Mapping[str, str] = os.environ) -> str | None:
    """The launcher that started this process as one of several; None for a single process.

    Args:
      environ: the environment variables, of which those that JAX itself reads are used.

    Raises:
      UserError: in an indexed Kubernetes job without the package `kubernetes`, which JAX needs.
    """
    if OPEN_MPI in environ or "OMPI_COMM_WORLD_RANK" in environ:
        return "Open MPI" if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1 else None
    if all(name in environ for name in SLURM):
        return "SLURM" if int(environ["SLURM_NTASKS"]) > 1 else None
    if environ.get(TPU) == "JAX" and not runtime.cpu_only(environ):
        return "TPU"  # (a TPU VM on its own is a pod of one)
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        if importlib.util.find_spec("kubernetes") is None:
            raise UserError(
                "this is an indexed Kubernetes job; to connect its pods, pip install kubernetes, "
                "or give --coordinator, --num_processes and --process_id; --num_processes=1 starts "
                "a run of one process"
            )
        return "Kubernetes"
    return None


def local_devices(environ: Mapping[str, str] = os.environ) -> list[int] | None:
    """Choose the GPUs of this task among those that it sees: an equal share.

    JAX itself gives every task of SLURM and Open MPI one GPU, even where a node runs a single task
    for all of its GPUs.

    Args:
      environ: the environment variables, in which SLURM or Open MPI number the tasks.

    Returns:
      The indices of the GPUs; None leaves the choice to JAX.
    """
    if "SLURM_LOCALID" in environ and "SLURM_STEP_TASKS_PER_NODE" in environ:
        node, rank = int(environ.get("SLURM_NODEID", 0)), int(environ["SLURM_LOCALID"])
        tasks = _expand(environ["SLURM_STEP_TASKS_PER_NODE"])[node]
    elif "OMPI_COMM_WORLD_LOCAL_RANK" in environ:
        rank, tasks = (
            int(environ["OMPI_COMM_WORLD_LOCAL_RANK"]),
            int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1)),
        )
    else:
        return None
    seen = environ.get("CUDA_VISIBLE_DEVICES")
    count = len(seen.split(",")) if seen else int(environ.get("SLURM_GPUS_ON_NODE", 0))
    if not count:
        return None
    if count < tasks:  # every task was bound to GPUs of its own
        return list(range(count))
    share = count // tasks
    return list(range(rank * share, (rank + 1) * share))


def first() -> bool:
    """Whether this is the process that writes, as the only one of a run does.

    In a run of one process no device is used to find out.
    """
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes have reached this point; does nothing in a run of one process.

    Args:
      name: the name of the point, which must be the same on all processes.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def anywhere(flag: bool) -> bool:
    """Return whether any process passed True.

    Args:
      flag: the value of this process. All processes call this function at once, and wait for each
        other.
    """
    if jax.process_count() == 1:
        return flag

    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def from_first(value: Any) -> Any:
    """Share a value of the first process with all of them, which call this function at once.

    Args:
      value: plain JSON data; what the other processes pass is ignored.

    Returns:
      The value of the first process; in a run of one process, the value itself.
    """
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value if first() else None).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.array(len(text))))
    sent = np.resize(text, length) if first() else np.zeros(length, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(sent).astype(np.uint8).tobytes())


@contextlib.contextmanager
def first_before_others(name: str) -> Iterator[None]:
    """Run a block in the first process, and then in all others.

    The others find what the first one wrote, or fail with the same error.

    Args:
      name: the name of the point at which the others wait, the same on all processes.
    """
    if not first():
        barrier(name)
    try:
        yield
    finally:
        if first():
            barrier(name)


def agreement() -> Callable[[int], int]:
    """A function by which processes agree on a number.

    Returns:
      agree(number >= 0), which gives the largest number that any process passed, the same on all.
      Every process calls it equally often. The answer is that of the previous call (0 at the
      first), so that a call between two steps waits for neither; in a run of one process it is the
      number itself.
    """
    if jax.process_count() == 1:
        return lambda number: number
    spread = jax.sharding.NamedSharding(
        jax.make_mesh((jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,)),
        jax.sharding.PartitionSpec("all"),
    )
    whole = jax.sharding.NamedSharding(spread.mesh, jax.sharding.PartitionSpec())
    largest = jax.jit(jax.numpy.max, out_shardings=whole)
    asked = None

    def agree(number: int) -> int:
        nonlocal asked
        answer = 0 if asked is None else int(asked)
        mine = np.full(1, number, np.int32)
        asked = largest(
            jax.make_array_from_callback((jax.device_count(),), spread, lambda part: mine)
        )
        return answer

    return agree


def lost(error: Exception) -> str | None:
    """Write the message for an error of the devices which means that another process is gone.

    Args:
      error: the error that ended this process; those that caused it are looked at as well.

    Returns:
      One line; None for other errors, and in a run of one process.
    """
    if not jax.distributed.is_initialized():
        return None
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, jax.errors.JaxRuntimeError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    first_line = str(cause).partition("\n")[0][:200]
    return (
        f"process {jax.process_index()} of {jax.process_count()} lost another one "
        f"({first_line}); running the same command again on all of them "
        "resumes training from the last checkpoint"
    )


def leave(status: int, *, at_once: bool = False) -> NoReturn:
    """End this process.

    In a run of several processes it skips the shutdown of jax.distributed, which would wait for
    others that are busy or dead.

    Args:
      status: the exit status.
      at_once: skip Python's own shutdown as well. After a signal a compiled program may still run
        in a thread of XLA, and the shutdown would take its memory away (a segmentation fault).
    """
    several = jax.distributed.is_initialized()
    if not several and not at_once:
        sys.exit(status)
    sys.stdout.flush(), sys.stderr.flush()
    if several and first():
        time.sleep(GRACE)
    os._exit(status)


@contextlib.contextmanager
def quiet_others() -> Iterator[None]:
    """Let only the first process print what a block prints."""
    if first():
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _check(given: Mapping[str, Any], found: str | None) -> None:
    missing = [name for name, value in given.items() if value is None]
    if missing and found is None:
        have = ", ".join(f"--{name}={value}" for name, value in given.items() if value is not None)
        raise UserError(
            f"{have} alone does not start a run of several processes; add "
            f"{', '.join('--' + m for m in missing)}, or --num_processes=1 for a run of one"
        )
    if given["coordinator"] is not None and not re.fullmatch(r".+:\d+", given["coordinator"]):
        raise UserError(
            f"--coordinator={given['coordinator']}: write HOST:PORT, an address of process 0"
        )
    count, index = given["num_processes"], given["process_id"]
    if None not in (count, index) and not 0 <= index < count:
        raise UserError(
            f"--process_id={index}: the {count} processes are numbered 0 to {count - 1}"
        )


def _absent(given: Mapping[str, Any], timeout: int) -> str:
    where = given["coordinator"] or "its coordinator"
    if given["process_id"] == 0:
        return (
            f"process 0 waited {timeout} s at {where} for {given['num_processes'] or 'all'} "
            "processes, and not all connected; start every --process_id, with the same "
            "--coordinator"
        )
    which = "this process" if given["process_id"] is None else f"process {given['process_id']}"
    return (
        f"{which} did not meet the others at {where} within {timeout} s; start process 0 there and "
        "all the others, and check that the port is open"
    )


@contextlib.contextmanager
def _deadline(seconds: float, message: str) -> Iterator[None]:
    """End the process with the message if the block, which may hang in C++, takes longer."""

    def end():
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _expand(text: str) -> list[int]:
    """SLURM's '2(x3),1' -> [2, 2, 2, 1]."""
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    return [int(part[1]) for part in parts for _ in range(int(part[2] or 1))]
