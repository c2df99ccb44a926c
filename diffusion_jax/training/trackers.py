"""Where else the numbers and pictures of a run go: TensorBoard, Weights & Biases, and a CSV file.

metrics.jsonl is the record of a run (metrics.py). A tracker shows it elsewhere, and is never needed
to resume: one that fails says so once, and training continues without it. Only the first process
has trackers.
"""

from __future__ import annotations

import csv
import functools
import io
import math
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tensorboardX import event_file_writer, summary
from tensorboardX.proto.event_pb2 import Event, SessionLog

from diffusion_jax.core import files, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.report import pictures
from diffusion_jax.training import tracking
from diffusion_jax.training.tracking import Scalars, Tracker

PROJECT = "diffusion_jax"  # of Weights & Biases, unless WANDB_PROJECT names another


class Tracked(NamedTuple):
    """The run that a tracker shows.

    Attributes:
      directory: the workdir.
      start_step: the step at which it begins or resumes; what came later is void.
      config: the config as nested dictionaries.
      rows: () -> (step, scalars) of every row of metrics.jsonl, in order.
    """

    directory: Path
    start_step: int
    config: Mapping[str, Any]
    rows: Callable[[], Iterable[tuple[int, Scalars]]]


def _nothing(*_: Any) -> None:
    """What a tracker does with what it cannot show."""


# ---- TensorBoard
def tensorboard(run: Tracked) -> Tracker:
    """Write events into DIR/tensorboard.

    The file is written without the thread of tensorboardX's SummaryWriter: on a full disk that
    thread dies, and everything else waits for it.

    Args:
      run: the run.
    """
    directory = run.directory / "tensorboard"
    directory.mkdir(parents=True, exist_ok=True)
    suffix = f".{os.getpid()}.{run.start_step}"
    file = event_file_writer.EventsWriter(str(directory / "events"), suffix)

    def add(step: int, **what: Any) -> None:
        file.write_event(Event(wall_time=time.time(), step=step, **what))

    def scalars(step: int, values: Scalars) -> None:
        for name, value in values.items():
            add(step, summary=summary.scalar(name, value))

    def images(step: int, name: str, batch: np.ndarray) -> None:
        add(step, summary=summary.image(name, batch, dataformats="NHWC"))

    def text(step: int, name: str, content: str) -> None:
        add(step, summary=summary.text(name, content))

    # what a run that died wrote from here on is void
    add(run.start_step + 1, session_log=SessionLog(status=SessionLog.START))
    return Tracker(scalars, images, text, file.flush, file.close)


# ---- a table
def table(run: Tracked) -> Tracker:
    """Write DIR/metrics.csv: a line for each step, a column for each number, empty where unknown.

    The table is made again from metrics.jsonl when the run resumes, so it has no step twice, and
    when a new number appears, such as the first held-out loss. Otherwise a line is added.

    Args:
      run: the run.
    """
    path, columns = run.directory / "metrics.csv", ["step"]
    line: dict[str, float] = {}  # the step that may still get numbers

    def lines(rows: Iterable[Mapping[str, float]]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writerows(rows)
        return text.getvalue()

    def write_all(last: int) -> None:
        merged: dict[int, dict[str, float]] = {}
        for step, values in run.rows():
            if step <= last:
                merged.setdefault(step, {"step": step}).update(values)
        columns[:] = dict.fromkeys(["step", *(name for row in merged.values() for name in row)])
        if merged:
            files.save_text(path, f"{','.join(columns)}\n{lines(merged.values())}")
        else:
            path.unlink(missing_ok=True)

    def flush() -> None:
        if not line:
            return
        if path.exists() and line.keys() <= set(columns):
            with path.open("a", encoding="utf-8") as file:
                file.write(lines([line]))
        else:
            write_all(int(line["step"]))
        line.clear()

    def scalars(step: int, values: Scalars) -> None:
        if line.get("step", step) != step:
            flush()
        line.update({name: value for name, value in values.items() if math.isfinite(value)})
        line["step"] = step

    write_all(run.start_step)
    return Tracker(scalars, _nothing, _nothing, flush, flush)


# ---- Weights & Biases
_ID = reading.record({"id": reading.text()})


def weights_and_biases(run: Tracked) -> Tracker:
    """Send numbers, pictures and the config to Weights & Biases, as one run for one workdir.

    Its id is in DIR/wandb.json, so that a resumed run continues it. Steps that it has already are
    not sent again. Without a login the run is kept in DIR/wandb, from where `wandb sync` sends it.

    Args:
      run: the run.

    Raises:
      UserError: if the package is not installed, and for a damaged DIR/wandb.json.
    """
    wandb, path = _wandb(), run.directory / "wandb.json"
    if not path.exists():
        files.save_json(path, {"id": secrets.token_hex(6)})
    offline = not os.environ.get("WANDB_MODE") and not wandb.login(prompt=False, verify=False)
    if offline:
        print(f"note: no login to wandb; the run is kept in {run.directory}/wandb", file=sys.stderr)
    known = files.load_json(path, _ID)["id"]
    if not re.fullmatch("[0-9a-z]{1,64}", known):
        raise UserError(f"'{path}': id={known} is not one of this project; delete the file")
    shown = wandb.init(
        id=known,
        resume="allow",
        dir=str(run.directory),
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.directory.name,
        config=files.plain(run.config),
        mode="offline" if offline else None,
        settings=wandb.Settings(
            console="off", silent=True, finish_timeout=0.75 * tracking.PATIENCE
        ),
    )
    if not shown.offline:
        print(f"wandb: {shown.url}", file=sys.stderr)

    def scalars(step: int, values: Scalars) -> None:
        shown.log(dict(values), step=step)

    def images(step: int, name: str, batch: np.ndarray) -> None:
        rows = max(1, round(len(batch) ** 0.5))
        shown.log({name: wandb.Image(pictures.mosaic(batch, rows, scale=1))}, step=step)

    return Tracker(scalars, images, _nothing, _nothing, shown.finish)


def _wandb() -> Any:
    try:
        import wandb  # noqa: PLC0415  (optional dependency: wandb)
    except ImportError:
        raise UserError(
            "config.training.trackers names wandb, which is not installed; type: "
            "pip install 'diffusion_jax[wandb]', or leave it out"
        ) from None
    return wandb


TRACKERS: Mapping[str, Callable[[Tracked], Tracker]] = {
    "tensorboard": tensorboard,
    "csv": table,
    "wandb": weights_and_biases,
}
IN_THREAD = ("wandb",)  # those that use the network


def check_installed(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed.

    Args:
      names: keys of TRACKERS.

    Raises:
      UserError: saying what to install.
    """
    if "wandb" in names:
        _wandb()


def open_trackers(names: Sequence[str], run: Tracked) -> list[Tracker]:
    """Open trackers, none of which raises an error or makes the run wait.

    Args:
      names: keys of TRACKERS.
      run: the run that they show.
    """
    found = []
    for name in dict.fromkeys(names):
        if name in IN_THREAD:
            opened = functools.partial(TRACKERS[name], run)
            found.append(tracking.in_thread(name, opened))
            continue
        try:
            found.append(tracking.guarded(name, TRACKERS[name](run)))
        except Exception as error:
            tracking.warn(name, exc_info=error)
    return found
