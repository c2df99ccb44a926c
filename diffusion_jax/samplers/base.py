"""What a sampler is, and the one loop that runs every sampler.

A sampler moves x from a time t to an earlier time s < t. It receives the denoiser itself, so it may
evaluate it as often, and at as many points, as its order requires. To add a sampler, write a
function that returns a `Sampler`; the tests of the family and `experiments.compare_samplers` then
include it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import arrays, streams
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Prediction, Process
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers.step_noise import Noise, NoiseOfStep, independent, silence


class Sampler(NamedTuple):
    """A method that moves x along a grid of decreasing times.

    Attributes:
      init: init(x, ts) -> memory, the state that the steps hand on; () for a one-step method. ts is
        the whole grid; copies of its last time at the end do not count as steps.
      step: step(noise, x, memory, t, s, denoise, process, cond) -> (x, memory), one move from time
        t to time s. noise is this step's `Noise`; x is (B, ...); t and s are scalars; cond is the
        condition that the step passes to denoise(x, t, cond).
      nfe: number of network evaluations (NFE) per step.
      warmup: extra evaluations of the first steps, in order.
      spent: spent(memory) -> (B,), the evaluations so far; only for adaptive methods, whose nfe is
        0 because their tolerance decides. None for all others.
      grid: spec of the grid in samplers/grids.py that suits the method; the meaning of
        config.sampler.grid='auto'.
      shifts_mean: whether the step adds Prediction.mean_shift, in units of its variance.
    """

    init: Callable[[Array, Array], Any]
    step: Callable[..., tuple[Array, Any]]
    nfe: int = 1
    warmup: tuple[int, ...] = ()
    spent: Callable[[Any], Array] | None = None
    grid: str = "logistic()"
    shifts_mean: bool = False


class Samples(NamedTuple):
    """The results of `sample`.

    Attributes:
      x0: the samples, (B, ...).
      observed: the pytree that `observe` returned, stacked over ts[1:]; None without `observe`.
      nfe: network evaluations of each sample, (B,) int32.
    """

    x0: Array
    observed: Any
    nfe: Array


def memoryless(step: Callable[..., Array], nfe: int = 1, grid: str = "logistic()") -> Sampler:
    """Makes a Sampler of a step without memory.

    Args:
      step: step(noise, x, t, s, denoise, process, cond) -> x.
      nfe: number of network evaluations per step.
      grid: spec of the grid that suits the method.

    Returns:
      The sampler, whose memory is ().
    """
    return Sampler(
        lambda x, ts: (),
        lambda noise, x, memory, *rest: (step(noise, x, *rest), memory),
        nfe,
        grid=grid,
    )


def noise_range(sampler: str, S_min: float, S_max: float) -> None:
    """Checks the noise levels sigma / alpha between which a sampler adds noise.

    Args:
      sampler: name of the sampler, such as 'stochastic.churned', for the message.
      S_min: lowest level at which noise is added.
      S_max: highest level at which noise is added; infinity is allowed.

    Raises:
      UserError: unless 0 <= S_min <= S_max.
    """
    if not 0 <= S_min <= S_max:
        raise UserError(
            f"{sampler}(S_min={S_min}, S_max={S_max}): S_min must be 0 or above, and S_max not "
            "below it"
        )


def sample(
    sampler: Sampler,
    denoise: Denoise,
    process: Process,
    key: Key,
    x: Array,
    ts: Array,
    cond: Cond = None,
    *,
    observe: Callable[[Array, Array], Any] | None = None,
    padded: bool = False,
    noise: Callable[[Process, Key, Array], NoiseOfStep] = independent,
) -> Samples:
    """Runs x down the decreasing times ts and ends with the posterior mean x0-hat at ts[-1].

    The last move, to x0-hat, is made here, once and for every sampler: none of them ever divides by
    sigma = 0.

    Args:
      sampler: the method that makes the moves.
      denoise: a function (x_t, t, cond) -> Prediction.
      process: the process that x belongs to.
      key: one key per image, (B,), or a single key, which is folded with the index of each image.
        An image depends on its own key alone.
      x: (B, ...) at time ts[0], for example `start`.
      ts: (n,) decreasing times.
      cond: the condition, a dict of arrays with leading axis B, or None.
      observe: a function (x, t) -> pytree, called after every move.
      padded: whether ts may end in copies of its last time, to which no move is made, and where
        zeros are observed. One compiled program then serves grids of every length up to len(ts),
        but reverse-mode differentiation is not available.
      noise: step_noise.independent, or step_noise.brownian, which gives every grid the same
        Brownian path.

    Returns:
      The samples, what was observed, and the NFE of each sample.

    Raises:
      UserError: for times that do not decrease (traced times cannot be checked), and for a
        prediction with a shift of the mean under a sampler that has none.
    """
    _check_times(ts, padded)
    noises = noise(process, arrays.example_keys(key, x.shape[0]), x)

    def move(carry, inputs):
        i, t, s = inputs
        x, memory = sampler.step(noises(i), *carry, t, s, denoise, process, cond)
        return (x, memory), observe(x, s) if observe else None

    ts = jnp.asarray(ts, x.dtype)
    carry, steps = (x, sampler.init(x, ts)), (jnp.arange(len(ts) - 1), ts[:-1], ts[1:])
    moves = jnp.sum(ts[1:] < ts[:-1])
    if padded and len(ts) > 1:  # a grid of one time has no move to trace
        (x, memory), observed = _moves(move, carry, steps, moves, observes=observe is not None)
    else:
        (x, memory), observed = jax.lax.scan(move, carry, steps)
    last = denoise(x, ts[-1], cond)
    _check_shift(sampler, last)
    return Samples(last.x0, observed, _spent(sampler, memory, moves, len(x)))


def _moves(
    move: Callable, carry: Any, steps: tuple[Array, ...], count: Array, *, observes: bool
) -> tuple[Any, Any]:
    """Scans the first `count` steps; what is observed of the others is zero."""
    one = jax.eval_shape(move, carry, [step[0] for step in steps])[1] if observes else None
    seen = jax.tree.map(lambda each: jnp.zeros((len(steps[0]), *each.shape), each.dtype), one)

    def body(i: Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, new = move(state[0], [step[i] for step in steps])
        return carry, jax.tree.map(lambda all, each: all.at[i].set(each), state[1], new)

    return jax.lax.fori_loop(0, count, body, (carry, seen))


def _check_times(ts: Array, padded: bool) -> None:
    """Raises UserError unless the times ts (n,) decrease strictly.

    With `padded`, copies of the last time are allowed at the end. Traced times pass.
    """
    if isinstance(ts, jax.core.Tracer):
        return
    times = np.asarray(ts, np.float64)
    if times.ndim != 1 or not len(times):
        raise UserError(
            "the times of a sampler must be an array (n,) of at least one; "
            f"got one of shape {times.shape}"
        )
    for i in np.flatnonzero(~np.isfinite(times)):
        raise UserError(f"the times of a sampler must be finite; got ts[{i}]={times[i]:g}")
    moves = times[: np.argmax(times == times[-1]) + 1] if padded else times
    for i in np.flatnonzero(np.diff(moves) >= 0):
        raise UserError(
            f"the times of a sampler must decrease, from noise to data; got ts[{i}]={times[i]:g}, "
            f"then ts[{i + 1}]={times[i + 1]:g}. Take a grid of samplers/grids.py, or reverse the "
            "array"
        )
    if np.any(times[len(moves) :] != times[-1]):
        raise UserError(
            "a padded grid of times must end in copies of its last time; got another time after "
            "the first of them"
        )


def _check_shift(sampler: Sampler, prediction: Prediction) -> None:
    """Raises UserError if a prediction has a shift of the mean that the sampler does not add."""
    if prediction.mean_shift is not None and not sampler.shifts_mean:
        raise UserError(
            "the guide mean_shift shifts the mean of an ancestral step, and this sampler has none: "
            "choose --config.sampler.name='ancestral.ddpm()', or the guide classifier"
        )


def encode(
    sampler: Sampler, denoise: Denoise, process: Process, x0: Array, ts: Array, cond: Cond = None
) -> Array:
    """Returns the noise that the sampler turns into x0, by the same steps from ts[-1] up to ts[0].

    This is DDIM inversion (Song, Meng & Ermon 2021, sec. 5.4) for every deterministic sampler.

    Args:
      sampler: a deterministic sampler.
      denoise: (x_t, t, cond) -> Prediction.
      process: the process whose noise is returned.
      x0: (B, ...), taken for x_t / alpha at ts[-1], which adds no noise of its own.
      ts: (n,) decreasing times, as in `sample`.
      cond: the condition of x0.

    Returns:
      x at ts[0], (B, ...).

    Raises:
      UserError: for a sampler that draws noise, and for times that do not decrease.
    """
    _check_times(ts, padded=False)
    if draws_noise(sampler, process):
        raise UserError(
            "only a deterministic sampler can encode; take for example ancestral.ddim, ode.heun or "
            "multistep.dpmpp_2m"
        )
    ts = jnp.asarray(ts, x0.dtype)[::-1]
    nothing = silence(x0)

    def move(carry, times):
        return sampler.step(nothing, *carry, *times, denoise, process, cond), None

    x = process.alpha(ts[0]) * x0
    return jax.lax.scan(move, (x, sampler.init(x, ts)), (ts[:-1], ts[1:]))[0][0]


def draws_noise(sampler: Sampler, process: Process) -> bool:
    """Returns whether a sampler is stochastic, which one traced step shows.

    Args:
      sampler: any sampler; it is traced on one number and not run.
      process: the process that the step is traced under.
    """
    drawn = []

    def step(x, t, s):
        ts = jnp.stack([t, s])
        noise = Noise(lambda t, s, part=0: drawn.append(1) or x, lambda i: drawn.append(1) or x)

        def denoise(x, t, cond=None):
            return Prediction(x, x, x)

        return sampler.step(noise, x, sampler.init(x, ts), t, s, denoise, process, None)

    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    jax.eval_shape(step, jax.ShapeDtypeStruct((1, 1), jnp.float32), scalar, scalar)
    return bool(drawn)


def start(
    process: Process, key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> Array:
    """Draws x_T from the prior N(0, sigma(t_max)^2 I).

    The noise comes from a stream of each image's key that no step uses.

    Args:
      process: the process whose prior it is.
      key: one key per image, (B,), or a single key, which is folded with the index of each image.
      shape: (B, ...), the shape of the batch.
      dtype: floating-point type of the result.

    Returns:
      x at t_max, of the given shape.
    """
    keys = arrays.fold_in(arrays.example_keys(key, shape[0]), streams.PRIOR)
    return gaussian.prior(process, arrays.noise(keys, jnp.zeros(shape, dtype)))


# ---- the number of network evaluations
def adaptive(sampler: Sampler) -> bool:
    """Returns whether a sampler chooses its own steps.

    The grid of such a sampler is its two ends, and its NFE is known only after it has run.

    Args:
      sampler: any sampler; it is adaptive if it counts its evaluations (`spent`).
    """
    return sampler.spent is not None


def grid_spec(name: str, sampler: Sampler) -> str:
    """Returns the spec of the grid that config.sampler.grid=name means for a sampler.

    An adaptive sampler, whose grid is its two ends, always has its own.

    Args:
      name: 'auto' for the sampler's own grid, or the spec of another one.
      sampler: the sampler that the grid is for.
    """
    return sampler.grid if name == "auto" or adaptive(sampler) else name


def points(sampler: Sampler, nfe: int) -> int:
    """Returns the number of grid points that a budget of network evaluations allows.

    The last point costs one evaluation, every step sampler.nfe and its warm-up. An adaptive sampler
    has 2 points.

    Args:
      sampler: the sampler, which states the cost of its steps.
      nfe: the budget per image, including the last evaluation, for x0-hat.

    Returns:
      The largest number of points whose cost is within the budget, at least 1.
    """
    if adaptive(sampler):
        return 2
    steps = 0
    while _cost(sampler, steps + 1) < nfe:
        steps += 1
    return steps + 1


def evaluations(sampler: Sampler, ts: Array) -> int:
    """Returns the NFE of `sample` on a grid, the last evaluation included.

    Args:
      sampler: the sampler, which states the cost of its steps.
      ts: the grid, (n,), without padding; only its length is used.

    Raises:
      UserError: for an adaptive sampler, whose NFE only `sample` can report (`Samples.nfe`).
    """
    if adaptive(sampler):
        raise UserError(
            "the evaluations of an adaptive sampler are counted while it runs: read the nfe that "
            "base.sample returns"
        )
    return _cost(sampler, len(ts) - 1) + 1


def _cost(sampler: Sampler, steps: int) -> int:
    return steps * sampler.nfe + sum(sampler.warmup[:steps])


def _spent(sampler: Sampler, memory: Any, moves: Array, batch: int) -> Array:
    """Returns the NFE of each image, (B,), after `moves` steps and the last evaluation."""
    if adaptive(sampler):
        return sampler.spent(memory) + 1
    warmup = jnp.asarray([sum(sampler.warmup[:i]) for i in range(len(sampler.warmup) + 1)])
    return jnp.broadcast_to(
        moves * sampler.nfe + warmup[jnp.minimum(moves, len(sampler.warmup))] + 1, (batch,)
    )
