"""Consistency models: a function f(x_t, t) that is constant along each trajectory of the flow.

    d f(x_t, t) / dt = 0   along   dx/dt = v(x_t, t),        f(x, t_min) = x / alpha

(Song et al. 2023). f is the x0-hat of a denoiser, so networks, parameterizations and samplers are
those of diffusion models.

In discrete time, L = E[ w(t, s) d(f(x_t, t), f_-(x_s, s)) ]. The times s < t are adjacent, f_- has
no gradient, and x_s comes from x_t by a step of the teacher's flow (distillation) or from the same
x0 and eps (training), which is the same to first order in t - s. The methods differ in the law of
(t, s), in w, d and f_-.

In the continuous-time limit, L = E |v_theta - v_- - g|^2 with g = cos(phi) d f_- / dphi (Lu & Song
2025; continuous_consistency.py).

The boundary condition belongs to the parameterization: it is exact for `consistency`, and holds to
within sigma(t_min) for `edm` and the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.core import arrays, streams
from diffusion_jax.core.errors import need_ranges
from diffusion_jax.core.types import Array, Cond, Key, Process
from diffusion_jax.objectives import times
from diffusion_jax.objectives.base import FewStep, FewStepExample, FewStepNetworks, per_example
from diffusion_jax.objectives.continuous_consistency import continuous_time
from diffusion_jax.objectives.distance import Distance, pseudo_huber, squared
from diffusion_jax.objectives.weighting import Weighting
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import base, ode, step_noise

# (process, keys (B,), progress) -> (t, s), both (B,): adjacent times with s < t
Pairs = Callable[[Process, Key, Array], tuple[Array, Array]]

Earlier = Callable[[FewStepNetworks, FewStepExample, Cond], Array]  # (networks, drawn, cond) -> x_s


# ---- presets in discrete time
def distillation(
    process: Process,
    solver: base.Sampler = ode.edm_heun(),
    steps: int = 18,
    mu: float = 0.95,
    distance: Distance = squared(),
) -> FewStep:
    """Consistency distillation (CD; Song et al. 2023, algorithm 2).

    x_s is one step of the teacher's flow, and f_- is an average of the weights.

    Args:
      process: the process that adds noise.
      solver: any deterministic sampler without memory. ancestral.ddim() is Euler's method,
        ode.edm_heun() the paper's, singlestep.dpm_2s() DPM-Solver-2.
      steps: N, the number of times of the Karras grid.
      mu: the rate of the average.
      distance: d, the distance of two images.

    Returns:
      The objective.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("consistency.distillation", steps=(steps, 2, 100_000), mu=(mu, 0, 1))

    def by_teacher(networks: FewStepNetworks, drawn: FewStepExample, cond: Cond) -> Array:
        def one(x: Array, t: Array, s: Array, cond: Cond) -> Array:
            x, cond = x[None], jax.tree.map(lambda c: c[None], cond)
            memory = solver.init(x, jnp.stack([t, s]))
            moved, _ = solver.step(
                step_noise.silence(x), x, memory, t, s, networks.teacher, process, cond
            )
            return moved[0]

        return jax.vmap(one)(drawn.x_t, drawn.t, drawn.s, cond)

    pairs = adjacent_times(lambda progress: jnp.float32(steps))
    objective = discrete_time(
        process, pairs, distance, by_teacher, ema_rate=lambda progress: jnp.float32(mu)
    )
    return objective._replace(needs_teacher=True)


def training(
    process: Process, s0: int = 2, s1: int = 150, mu0: float = 0.9, distance: Distance = squared()
) -> FewStep:
    """Consistency training (CT; Song et al. 2023, algorithm 3): ever finer grids.

        N = ceil(sqrt(p ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1,    mu = exp(s0 log(mu0) / N)

    at progress p (appendix C). f_- is an average of the weights of rate mu, which becomes slower as
    the grid becomes finer.

    Args:
      process: the process that adds noise.
      s0: number of steps at the beginning.
      s1: number of steps at the end.
      mu0: the rate of the average at the beginning.
      distance: d, the distance of two images.

    Returns:
      The objective.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("consistency.training", s0=(s0, 1, s1), s1=(s1, s0, 10**6), mu0=(mu0, 1e-6, 1))

    def count(progress: Array) -> Array:
        return jnp.ceil(jnp.sqrt(progress * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1

    return discrete_time(
        process,
        adjacent_times(count),
        distance,
        ema_rate=lambda progress: jnp.exp(s0 * math.log(mu0) / count(progress)),
    )


def improved(
    process: Process,
    s0: int = 10,
    s1: int = 1280,
    mean: float = -1.1,
    std: float = 2.0,
    distance: Distance = pseudo_huber(),
) -> FewStep:
    """Improved consistency training (iCT; Song & Dhariwal 2024, table 1), without an average.

        N = min(s0 2^floor(p K / K'), s1) + 1,    w = 1 / (u_t - u_s),    u = sigma / alpha

    Each of the doublings from s0 to s1 has an equal share of the run. The noise levels of the grid
    are drawn by the mass of log u ~ N(mean, std^2) in their intervals.

    Args:
      process: the process that adds noise.
      s0: number of steps at the beginning.
      s1: number of steps at the end.
      mean: mean of log u.
      std: standard deviation of log u.
      distance: d, the distance of two images.

    Returns:
      The objective.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges(
        "consistency.improved",
        s0=(s0, 1, s1),
        s1=(s1, s0, 10**6),
        mean=(mean, -20, 20),
        std=(std, 1e-6, 20),
    )
    stages = math.floor(math.log2(s1 / s0)) + 1

    def count(progress: Array) -> Array:
        return jnp.minimum(s0 * 2.0 ** jnp.floor(jnp.minimum(progress, 0.9999) * stages), s1) + 1

    pairs = adjacent_times(count, law=(mean, std))
    return discrete_time(process, pairs, distance, weight=_inverse_step)


def easy(
    process: Process,
    q: float = 2.0,
    stages: int = 8,
    k: float = 8.0,
    b: float = 1.0,
    mean: float = -1.1,
    std: float = 2.0,
    distance: Distance = pseudo_huber(),
    weight: Weighting | None = None,
) -> FewStep:
    """Easy consistency tuning (ECT; Geng et al. 2024) of a diffusion model.

        u_s / u_t = 1 - n(u_t) / q^a,    n(u) = 1 + k sigmoid(-b u),    w = 1 / (u_t - u_s)

    (eq. 20 and following), with u_s at least u_min and log u_t ~ N(mean, std^2). The stages a = 1
    .. stages have equal shares of the run. The objective moves from diffusion, s = t_min, to
    consistency, s -> t.

    Args:
      process: the process that adds noise.
      q: the factor by which t - s shrinks from stage to stage.
      stages: number of stages.
      k: height of the sigmoid in n: at u = 0, n is 1 + k / 2.
      b: slope of the sigmoid in n, per unit of u.
      mean: mean of log u_t.
      std: standard deviation of log u_t.
      distance: d, the distance of two images.
      weight: a weighting of the error of eps at t, instead of w; on the distance of x0 it is SNR
        times as large. The authors' program has weighting.edm().

    Returns:
      The objective.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges(
        "consistency.easy",
        q=(q, 1, 1000),
        stages=(stages, 1, 1000),
        k=(k, 0, 1000),
        b=(b, 1e-6, 1000),
        mean=(mean, -20, 20),
        std=(std, 1e-6, 20),
    )

    def pairs(process: Process, keys: Key, progress: Array) -> tuple[Array, Array]:
        t = times.lognormal(mean, std)(process, keys)
        u, a = _ratio(process, t), jnp.floor(jnp.minimum(progress, 0.9999) * stages) + 1
        kept = 1 - (1 + k * jax.nn.sigmoid(-b * u)) / q**a
        return t, _time(process, jnp.maximum(u * kept, _ratio(process, process.t_min)))

    def by_level(process: Process, t: Array, s: Array) -> Array:
        return weight(process, t) / _ratio(process, t) ** 2

    return discrete_time(process, pairs, distance, weight=by_level if weight else _inverse_step)


# ---- presets in continuous time
def continuous(
    process: Process,
    time: times.TimeLaw = times.lognormal(-1.0, 1.4),
    sigma_data: float = 0.5,
    warmup: float = 0.1,
    c: float = 0.1,
    learned_weight: bool = False,
) -> FewStep:
    """Continuous-time consistency training (sCT of sCM; Lu & Song 2025, algorithm 1).

    v is that of the drawn x0 and eps. See continuous_consistency.py for the loss.

    Args:
      process: the process that adds noise; any process, as phi is a function of its time.
      time: the law of t, (process, keys) -> t.
      sigma_data: standard deviation of the data.
      warmup: the share of the run in which r grows from 0 to 1 (sec. 4.1).
      c: the constant of the normalization of the tangent.
      learned_weight: weights each noise level by the network's own uncertainty (algorithm 1).

    Returns:
      The objective.

    Raises:
      UserError: for an argument out of its range.
    """
    settings = sigma_data, warmup, c, learned_weight
    return continuous_time("continuous", process, time, *settings, with_teacher=False)


def continuous_distillation(
    process: Process,
    time: times.TimeLaw = times.lognormal(-1.0, 1.4),
    sigma_data: float = 0.5,
    warmup: float = 0.1,
    c: float = 0.1,
    learned_weight: bool = False,
) -> FewStep:
    """Continuous-time consistency distillation (sCD of sCM; Lu & Song 2025).

    It is `continuous` with the teacher's velocity.

    Args:
      process: the process that adds noise.
      time: the law of t, (process, keys) -> t.
      sigma_data: standard deviation of the data.
      warmup: the share of the run in which r grows from 0 to 1 (sec. 4.1).
      c: the constant of the normalization of the tangent.
      learned_weight: weights each noise level by the network's own uncertainty (algorithm 1).

    Returns:
      The objective.

    Raises:
      UserError: for an argument out of its range.
    """
    settings = sigma_data, warmup, c, learned_weight
    return continuous_time("continuous_distillation", process, time, *settings, with_teacher=True)


# ---- the objective in discrete time
def same_noise(process: Process) -> Earlier:
    """x_s of the same x0 and eps: x_t moved by its conditional velocity, without a teacher.

    Args:
      process: the process that adds noise.

    Returns:
      A function (networks, drawn, cond) -> x_s.
    """
    return lambda networks, drawn, cond: gaussian.corrupt(process, drawn.x0, drawn.eps, drawn.s).x_t


def discrete_time(
    process: Process,
    pairs: Pairs,
    distance: Distance,
    earlier: Earlier | None = None,
    *,
    weight: Callable[[Process, Array, Array], Array] | None = None,
    ema_rate: Callable[[Array], Array] | None = None,
) -> FewStep:
    """The objective w(t, s) d(f(x_t, t), f_-(x_s, s)), of which CD, CT, iCT and ECT are presets.

    Args:
      process: the process that adds noise.
      pairs: the law of (t, s).
      distance: d, the distance of two images.
      earlier: a function (networks, drawn, cond) -> x_s; None is `same_noise`.
      weight: w, a function (process, t, s) -> (B,); None is 1.
      ema_rate: the rate of the average f_-, a function of progress; None: f_- is the network
        itself.

    Returns:
      The objective.
    """
    earlier = earlier or same_noise(process)

    @per_example
    def draw(keys: Key, x0: Array, progress: Array) -> FewStepExample:
        t, s = pairs(process, arrays.fold_in(keys, streams.OBJECTIVE_TIME), progress)
        eps = arrays.noise(arrays.fold_in(keys, streams.OBJECTIVE_NOISE), x0)
        return FewStepExample(*gaussian.corrupt(process, x0, eps, t), s)

    def loss(
        networks: FewStepNetworks, drawn: FewStepExample, cond: Cond, progress: Array
    ) -> Array:
        wanted = networks.ema_network(earlier(networks, drawn, cond), drawn.s, cond).x0
        found = networks.student(drawn.x_t, drawn.t, cond).x0
        error = distance(found, jax.lax.stop_gradient(wanted))
        return error * weight(process, drawn.t, drawn.s) if weight else error

    return FewStep(draw, loss, ema_rate, bounded=True)


def adjacent_times(
    count: Callable[[Array], Array], law: tuple[float, float] | None = None, rho: float = 7.0
) -> Pairs:
    """Draws adjacent times of Karras' grid of noise levels u = sigma / alpha (Karras 2022, eq. 5).

    Args:
      count: the number of levels, a function of progress.
      law: (mean, std): each pair is as likely as log u ~ N(mean, std^2) is to lie between the two
        (Song & Dhariwal 2024, eq. 10). None: every pair is equally likely.
      rho: the exponent of the grid.

    Returns:
      The law of (t, s).
    """

    def pairs(process: Process, keys: Key, progress: Array) -> tuple[Array, Array]:
        low, high = (_ratio(process, end) ** (1 / rho) for end in (process.t_min, process.t_max))
        place = arrays.uniform(keys)
        if law:
            mean, std = law
            ends = [
                jax.scipy.special.ndtr((rho * jnp.log(end) - mean) / std) for end in (low, high)
            ]
            level = mean + std * jax.scipy.special.ndtri(ends[0] + place * (ends[1] - ends[0]))
            place = (jnp.exp(level / rho) - low) / (high - low)
        steps = count(progress) - 1
        i = jnp.clip(jnp.floor(place * steps), 0, steps - 1)
        return tuple(_time(process, (low + j / steps * (high - low)) ** rho) for j in (i + 1, i))

    return pairs


def _ratio(process: Process, t: Array | float) -> Array:
    """u = sigma / alpha."""
    return jnp.exp(-0.5 * gaussian.logsnr(process, jnp.asarray(t, jnp.result_type(float))))


def _time(process: Process, u: Array) -> Array:
    """The time at which sigma / alpha is u."""
    return gaussian.time_of_logsnr(process, -2 * jnp.log(u))


def _inverse_step(process: Process, t: Array, s: Array) -> Array:
    """The weight 1 / (u_t - u_s)."""
    return 1 / jnp.maximum(_ratio(process, t) - _ratio(process, s), 1e-6)


# The members of the family, which a config may name.
OBJECTIVES = (distillation, training, improved, easy, continuous, continuous_distillation)
