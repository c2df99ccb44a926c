"""Power EMAs of any length after training, from stored snapshots of a few.

This is the method of Karras et al. 2024, EDM2, section 3.2 and appendix C. The power average with
exponent gamma at step T weighs the parameters of step t by

    p(t) = (gamma + 1) t^gamma / T^(gamma + 1),    0 <= t <= T.

A weighted sum of snapshots is again an average of the parameters; its weights are fitted to those
of the wanted average,

    x = argmin  integral of (p_wanted(t) - sum_i x_i p_i(t))^2 dt    subject to    sum_i x_i = 1,

that is A x + m = b with A_ij = <p_i, p_j>, b_i = <p_i, p_wanted> and a multiplier m. (The paper
leaves the sum free; with few snapshots it would then shrink all weights by some percent.) The inner
products have a closed form:

    <p_a, p_b> = (a + 1)(b + 1) / (a + b + 1) min(T_a, T_b)^(a + b + 1) / (T_a^(a + 1) T_b^(b + 1)).

DIR/STEP.npz holds the power averages of one step, float32 leaves under 'power_0.05/Dense_0/kernel',
and their digest.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.core import npz
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Params
from diffusion_jax.training import ema
from diffusion_jax.training.placement import leaves_by_path
from diffusion_jax.training.sharding import fetch

DIGEST = "sha256"


class Profile(NamedTuple):
    """The weights p(t) of a power average: its relative length and the step it was taken at."""

    length: float
    step: int


class Reconstructed(NamedTuple):
    """A reconstructed average.

    Attributes:
      params: the wanted average.
      step: the step at which it is taken.
      misfit: the distance of its weights from the wanted ones, as a share of their norm.
    """

    params: Params
    step: int
    misfit: float


# ---- the fit
def fit(have: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """The least-squares coefficients of snapshots for a wanted average.

    Of coefficients that fit equally well the smallest are chosen, because snapshots close together
    give nearly the same equation.

    Args:
      have: the profiles of the n snapshots.
      wanted: the profile of the wanted average.

    Returns:
      The coefficients x (n,) in float64, and the misfit |p_wanted - sum_i x_i p_i| / |p_wanted|.
    """
    a, t = _numbers(have)
    g, end = _numbers([wanted])
    size = end[0]  # of the numbers of A: inner products are about gamma / T
    system = np.pad(size * _inner(a[:, None], t[:, None], a, t), (0, 1), constant_values=1.0)
    system[-1, -1] = 0.0
    x = np.linalg.lstsq(system, np.append(size * _inner(a, t, g, end), 1.0), rcond=1e-13)[0][:-1]
    return x, _norm(np.append(x, -1.0), np.append(a, g), np.append(t, end)) / _norm(
        np.ones(1), g, end
    )


def _numbers(profiles: Sequence[Profile]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([ema.gamma(p.length) for p in profiles]), np.array(
        [float(p.step) for p in profiles]
    )


def _inner(a, t_a, b, t_b) -> np.ndarray:
    """The inner product <p_a, p_b>.

    It uses only powers of the ratio of the two steps, which neither overflow nor underflow.
    """
    low, high = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    return (a + 1) * (b + 1) / (a + b + 1) * (low / high) ** np.where(t_a < t_b, b, a) / high


def _norm(x: np.ndarray, a: np.ndarray, t: np.ndarray) -> float:
    return float(np.sqrt(max(x @ _inner(a[:, None], t[:, None], a, t) @ x, 0.0)))


def length_of(name: str) -> float | None:
    """Read the relative length in 'post_hoc(0.12)', 0.12.

    Args:
      name: the value of config.sampler.ema.

    Returns:
      The length as a share of the run; None for a name of other weights.

    Raises:
      UserError: if the length is not a number.
    """
    found = re.fullmatch(r"post_hoc\(\s*([0-9.eE+-]+)\s*\)", name.strip())
    try:
        return float(found[1]) if found else None
    except ValueError:
        raise UserError(
            f"cannot read '{name}'; write the relative length as a number, such as post_hoc(0.12)"
        ) from None


# ---- snapshots
def saver(directory: str | os.PathLike, lengths: Sequence[float]) -> Callable[[Any, int], None]:
    """A hook of the training loop, (state, step) -> None, that stores power averages.

    Args:
      directory: the folder of the snapshots.
      lengths: the relative lengths of the averages to store.
    """
    names = [ema.power_name(length) for length in lengths]
    return lambda state, step: save(directory, step, {name: state.ema[name] for name in names})


def save(directory: str | os.PathLike, step: int, averages: dict[str, Params]) -> None:
    """Write DIR/STEP.npz, atomically.

    Every process calls it, because shards are gathered; the first one writes.

    Args:
      directory: the folder of the snapshots of a run.
      step: the number of training steps so far, which names the file.
      averages: the parameters of each power average by its name, stored in float32.
    """
    leaves = {
        path: np.asarray(leaf, np.float32) for path, leaf in leaves_by_path(fetch(averages)).items()
    }
    if jax.process_index() == 0:
        npz.save(Path(directory) / f"{step}.npz", leaves | {DIGEST: _digest(step, leaves)})


def steps(directory: str | os.PathLike) -> list[int]:
    """List the steps of the snapshots in a folder, ascending.

    Args:
      directory: the folder of the snapshots of a run, which need not exist.
    """
    return sorted(int(path.stem) for path in Path(directory).glob("*.npz") if path.stem.isdecimal())


def load(directory: str | os.PathLike, step: int) -> dict[str, dict[str, np.ndarray]]:
    """Read the averages of one snapshot.

    Args:
      directory: the folder of the snapshots of a run.
      step: one of `steps`.

    Returns:
      {name of the average: {path of a parameter: array}}.

    Raises:
      UserError: if the snapshot is damaged.
    """
    path = Path(directory) / f"{step}.npz"
    try:
        leaves = npz.load(path, {DIGEST: npz.ArraySpec("U", ())}, lambda _: npz.ArraySpec("f"))
        whole = str(leaves.pop(DIGEST)) == _digest(step, leaves)
    except UserError:
        whole = False
    if not whole:
        raise UserError(
            f"the snapshot '{path}' is damaged; restore a copy, or delete it: the others suffice "
            "without it"
        )
    averages: dict[str, dict[str, np.ndarray]] = {}
    for name, leaf in leaves.items():
        average, _, rest = name.partition("/")
        averages.setdefault(average, {})[rest] = leaf
    return averages


class SnapshotFit(NamedTuple):
    """The weighted sum of snapshots that is closest to a wanted average.

    Attributes:
      steps: of the snapshots.
      lengths: of the averages in each snapshot.
      weights: (steps, lengths), of every average.
      step: the step at which the wanted average is taken.
      misfit: the distance of its weights from the wanted ones, as a share of their norm.
    """

    steps: list[int]
    lengths: list[float]
    weights: np.ndarray
    step: int
    misfit: float


def fitted(directory: str | os.PathLike, length: float, step: int | None = None) -> SnapshotFit:
    """Fit the snapshots up to a step to a power average; no parameters are summed.

    Args:
      directory: the folder of the snapshots.
      length: the relative length of the wanted average.
      step: the step of the average; None is that of the last snapshot.

    Raises:
      UserError: if there are no snapshots.
    """
    there = [s for s in steps(directory) if step is None or s <= step]
    if not there:
        raise UserError(
            f"there are no snapshots in '{directory}'; train with "
            "--config.ema.powers='(0.05,0.1)' to keep them"
        )
    lengths = [float(name.removeprefix("power_")) for name in load(directory, there[0])]
    have = [Profile(each, s) for s in there for each in lengths]
    end = step or there[-1]
    x, misfit = fit(have, Profile(length, end))
    return SnapshotFit(there, lengths, x.reshape(len(there), -1), end, misfit)


def reconstruct(
    directory: str | os.PathLike, length: float, template: Any, *, step: int | None = None
) -> Reconstructed:
    """A power average of any relative length, from all snapshots up to a step.

    It is summed in float64, with one snapshot in memory at a time.

    Args:
      directory: the folder of the snapshots.
      length: the relative length of the wanted average.
      template: a tree of arrays or shapes like the parameters.
      step: the step of the average; None is that of the last snapshot.

    Raises:
      UserError: if there are no snapshots, or they are of another model.
    """
    found = fitted(directory, length, step)
    shapes = {path: leaf.shape for path, leaf in leaves_by_path(template).items()}
    total = {path: np.zeros(shape) for path, shape in shapes.items()}
    for s, weights in zip(found.steps, found.weights, strict=True):
        averages = load(directory, s)
        for each, weight in zip(found.lengths, weights, strict=True):
            own = averages.get(ema.power_name(each), {})
            if {path: leaf.shape for path, leaf in own.items()} != shapes:
                raise UserError(
                    f"the snapshot of step {s} in '{directory}' is of another model or of other "
                    "lengths; remove it"
                )
            for path, leaf in own.items():
                total[path] += weight * leaf
    leaves = [total[path].astype(np.float32) for path in shapes]
    params = jax.tree.unflatten(jax.tree.structure(template), leaves)
    return Reconstructed(params, found.step, found.misfit)


def _digest(step: int, leaves: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(str(step).encode())
    for path in sorted(leaves):
        digest.update(f"{path}{leaves[path].shape}".encode())
        digest.update(np.ascontiguousarray(leaves[path]).view(np.uint8).data)
    return digest.hexdigest()
