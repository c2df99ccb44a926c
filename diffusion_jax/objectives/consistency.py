"""Consistency models: one function f(x_t, t) that is the same all along a trajectory of the flow,
and the data at its end.

    d f(x_t, t) / dt = 0   along   dx/dt = v(x_t, t),        f(x, t_min) = x / alpha

(Song et al. 2023). f is the x0-hat of a denoiser, so networks, parameterizations and samplers are
those of diffusion.

In steps, L = E[ w(t, s) d(f(x_t, t), f_-(x_s, s)) ]: s < t are neighbours, f_- a constant copy, and
x_s comes from x_t by a step of the teacher's flow (distillation) or from the same x0 and eps
(training), which is the same to first order in t - s. The methods differ in the law of (t, s), in
w, d and f_-.

In the limit, L = E |v_theta - v_- - g|^2 with g = cos(phi) d f_- / dphi (Lu & Song 2025): a
regression on the network's own output moved by the tangent. phi = arctan(sigma / (alpha
sigma_data)) is TrigFlow's time and v the velocity in it, which every process has.

The boundary condition is the parameterization's affair: exact by `consistency`, to within
sigma(t_min) by `edm` and the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax import arrays, streams
from diffusion_jax.arrays import expand, mean_per_example
from diffusion_jax.errors import need_ranges
from diffusion_jax.objectives import times
from diffusion_jax.objectives.base import FewStep, FewStepExample, FewStepNetworks, per_example
from diffusion_jax.objectives.distance import Distance, pseudo_huber, squared
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import base, ode
from diffusion_jax.types import Array, Cond, Key, Prediction, Process

Pairs = Callable[
    [Process, Key, Array], tuple[Array, Array]
]  # (process, keys (B,), progress) -> t, s (B,): neighbours, s < t

Earlier = Callable[[FewStepNetworks, FewStepExample, Cond], Array]  # (networks, drawn, cond) -> x_s


# ---- presets
def distillation(
    process: Process,
    solver: base.Sampler = ode.edm_heun(),
    steps: int = 18,
    mu: float = 0.95,
    distance: Distance = squared(),
) -> FewStep:
    """Consistency distillation (CD; Song et al. 2023, algorithm 2): x_s is one step of the teacher,
    f_- an average of rate mu.

    solver: any deterministic sampler without memory: ancestral.ddim() is Euler's, ode.edm_heun()
    the paper's, singlestep.dpm_2s() DPM-Solver-2. steps: N, the times of the Karras grid.
    """
    need_ranges("consistency.distillation", steps=(steps, 2, 100_000), mu=(mu, 0, 1))

    def by_teacher(networks: FewStepNetworks, drawn: FewStepExample, cond: Cond) -> Array:
        def one(x, t, s, cond):
            x, cond = x[None], jax.tree.map(lambda c: c[None], cond)
            noise, memory = base.silence(x), solver.init(x, jnp.stack([t, s]))
            moved, _ = solver.step(noise, x, memory, t, s, networks.teacher, process, cond)
            return moved[0]

        return jax.vmap(one)(drawn.x_t, drawn.t, drawn.s, cond)

    pairs = neighbours(lambda progress: jnp.float32(steps))
    return in_steps(
        process, pairs, distance, by_teacher, ema_rate=lambda progress: jnp.float32(mu)
    )._replace(needs_teacher=True)


def training(
    process: Process, s0: int = 2, s1: int = 150, mu0: float = 0.9, distance: Distance = squared()
) -> FewStep:
    """Consistency training (CT; Song et al. 2023, algorithm 3): ever finer grids, f_- an ever
    slower average.

    N = ceil(sqrt(p ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 and mu = exp(s0 log(mu0) / N) at progress p
    (appendix C).
    """
    need_ranges("consistency.training", s0=(s0, 1, s1), s1=(s1, s0, 10**6), mu0=(mu0, 1e-6, 1))

    def count(progress):
        return jnp.ceil(jnp.sqrt(progress * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1

    return in_steps(
        process,
        neighbours(count),
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
    """Improved consistency training (iCT; Song & Dhariwal 2024, table 1): no average, w = 1 / (u_t
    - u_s), u = sigma / alpha.

    N = min(s0 2^floor(p K / K'), s1) + 1, so that each of the doublings from s0 to s1 has an equal
    share of the run; the noise levels of the grid by the mass of log u ~ N(mean, std^2) in their
    intervals.
    """
    need_ranges(
        "consistency.improved",
        s0=(s0, 1, s1),
        s1=(s1, s0, 10**6),
        mean=(mean, -20, 20),
        std=(std, 1e-6, 20),
    )
    stages = math.floor(math.log2(s1 / s0)) + 1

    def count(progress):
        return jnp.minimum(s0 * 2.0 ** jnp.floor(jnp.minimum(progress, 0.9999) * stages), s1) + 1

    return in_steps(process, neighbours(count, law=(mean, std)), distance, weight=_inverse_step)


def easy(
    process: Process,
    q: float = 2.0,
    stages: int = 8,
    k: float = 8.0,
    b: float = 1.0,
    mean: float = -1.1,
    std: float = 2.0,
    distance: Distance = pseudo_huber(),
) -> FewStep:
    """Easy consistency tuning (ECT; Geng et al. 2024) of a diffusion model: from diffusion, s =
    t_min, to consistency, s -> t.

    u_s / u_t = 1 - n(u_t) / q^a, n(u) = 1 + k sigmoid(-b u), at least u_min (their eq. 20 ff.); a =
    1 .. stages, each an equal share of the run; log u_t ~ N(mean, std^2), w = 1 / (u_t - u_s).
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

    def pairs(process, keys, progress):
        t = times.lognormal(mean, std)(process, keys)
        u, a = _ratio(process, t), jnp.floor(jnp.minimum(progress, 0.9999) * stages) + 1
        kept = 1 - (1 + k * jax.nn.sigmoid(-b * u)) / q**a
        return t, _time(process, jnp.maximum(u * kept, _ratio(process, process.t_min)))

    return in_steps(process, pairs, distance, weight=_inverse_step)


def continuous(
    process: Process,
    time: times.TimeLaw = times.lognormal(-1.0, 1.4),
    sigma_data: float = 0.5,
    warmup: float = 0.1,
    c: float = 0.1,
) -> FewStep:
    """Continuous-time consistency training (sCT of sCM; Lu & Song 2025, algorithm 1): the loss in
    the limit, v from x0 and eps.

    With dx/dphi = v = sigma_data F, g = -cos^2 (v_- - v) - r cos sin (x + d v_- / dphi), which has
    the data's scale where it is normalized to g / (|g| + c), |.| per root of the dimension; the
    loss is |F - F_- - g / (|g| + c)|^2. r grows from 0 to 1 over the share `warmup` of the run
    (sec. 4.1). Any process: phi is a function of its time. The derivative is taken in forward mode
    through the network, whose embedding of the noise level must be smooth. (Their learned weighting
    is left out: after normalisation every time has a loss of order one.)
    """
    need_ranges(
        "consistency.continuous",
        sigma_data=(sigma_data, 1e-6, 1e4),
        warmup=(warmup, 0, 1),
        c=(c, 0, 1e6),
    )
    return _continuous(process, time, sigma_data, warmup, c, taught=False)


def continuous_distillation(
    process: Process,
    time: times.TimeLaw = times.lognormal(-1.0, 1.4),
    sigma_data: float = 0.5,
    warmup: float = 0.1,
    c: float = 0.1,
) -> FewStep:
    """Continuous-time consistency distillation (sCD of sCM; Lu & Song 2025): as `continuous`, with
    the teacher's velocity.
    """
    need_ranges(
        "consistency.continuous_distillation",
        sigma_data=(sigma_data, 1e-6, 1e4),
        warmup=(warmup, 0, 1),
        c=(c, 0, 1e6),
    )
    return _continuous(process, time, sigma_data, warmup, c, taught=True)


# ---- in steps
def same_noise(process: Process) -> Earlier:
    """x_s of the same x0 and eps: x_t moved by its conditional velocity, without a teacher."""
    return lambda networks, drawn, cond: gaussian.corrupt(process, drawn.x0, drawn.eps, drawn.s).x_t


def in_steps(
    process: Process,
    pairs: Pairs,
    distance: Distance,
    earlier: Earlier | None = None,
    *,
    weight: Callable[[Process, Array, Array], Array] | None = None,
    ema_rate: Callable[[Array], Array] | None = None,
) -> FewStep:
    """w(t, s) d(f(x_t, t), f_-(x_s, s)), of which CD, CT, iCT and ECT are presets. earlier(networks,
    drawn, cond) -> x_s.
    """
    earlier = earlier or same_noise(process)

    @per_example
    def draw(keys, x0, progress):
        t, s = pairs(process, arrays.fold_in(keys, streams.OBJECTIVE_TIME), progress)
        eps = arrays.noise(arrays.fold_in(keys, streams.OBJECTIVE_NOISE), x0)
        return FewStepExample(*gaussian.corrupt(process, x0, eps, t), s)

    def loss(networks, drawn, cond, progress):
        wanted = networks.ema_network(earlier(networks, drawn, cond), drawn.s, cond).x0
        found = networks.student(drawn.x_t, drawn.t, cond).x0
        error = distance(found, jax.lax.stop_gradient(wanted))
        return error * weight(process, drawn.t, drawn.s) if weight else error

    return FewStep(draw, loss, ema_rate)


def neighbours(
    count: Callable[[Array], Array], law: tuple[float, float] | None = None, rho: float = 7.0
) -> Pairs:
    """Neighbours on Karras' grid of count(progress) noise levels u = sigma / alpha (Karras et al.
    2022, eq. 5), any as likely.

    law = (mean, std): each pair as likely as log u ~ N(mean, std^2) is to lie between the two (Song
    & Dhariwal 2024, eq. 10).
    """

    def pairs(process, keys, progress):
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


def _ratio(process: Process, t: Array) -> Array:
    """u = sigma / alpha."""
    return jnp.exp(-0.5 * gaussian.logsnr(process, jnp.asarray(t, jnp.result_type(float))))


def _time(process: Process, u: Array) -> Array:
    return gaussian.time_of_logsnr(process, -2 * jnp.log(u))


def _inverse_step(process: Process, t: Array, s: Array) -> Array:
    return 1 / jnp.maximum(_ratio(process, t) - _ratio(process, s), 1e-6)


# ---- in the limit
def _continuous(
    process: Process, time: times.TimeLaw, sigma_data: float, warmup: float, c: float, taught: bool
) -> FewStep:
    def velocity(prediction: Prediction, phi: Array) -> Array:
        """Of z = cos x0 + sin sigma_data eps in phi."""
        x0, eps = prediction[:2]
        return sigma_data * expand(jnp.cos(phi), eps) * eps - expand(jnp.sin(phi), x0) * x0

    @per_example
    def draw(keys, x0, progress):
        t = time(process, arrays.fold_in(keys, streams.OBJECTIVE_TIME))
        eps = arrays.noise(arrays.fold_in(keys, streams.OBJECTIVE_NOISE), x0)
        return FewStepExample(
            *gaussian.corrupt(process, x0, eps, t), jnp.full_like(t, process.t_min)
        )

    def loss(networks, drawn, cond, progress):
        x_t, t = drawn.x_t, drawn.t
        truth = networks.teacher(x_t, t, cond) if taught else Prediction(drawn.x0, drawn.eps)
        phi = gaussian.angle(process, t, sigma_data)
        pace = gaussian.derivative(lambda u: gaussian.angle(process, u, sigma_data), t)  # dphi/dt

        def f(x, t):
            prediction = networks.frozen(x, t, cond)
            return prediction.x0, prediction

        _, df_dt, own = jax.jvp(
            f, (x_t, t), (gaussian.velocity(process, truth, t), jnp.ones_like(t)), has_aux=True
        )
        cos = expand(jnp.cos(phi), x_t)
        whole = cos * df_dt / expand(pace, x_t)
        first = -(cos**2) * (velocity(own, phi) - velocity(truth, phi))
        g = first + jnp.minimum(1.0, progress / max(warmup, 1e-9)) * (whole - first)
        g = g / expand(jnp.sqrt(mean_per_example(g**2)) + c, g)
        error = (
            velocity(networks.student(x_t, t, cond), phi) - velocity(own, phi)
        ) / sigma_data - g
        return mean_per_example(error**2)

    return FewStep(draw, loss, needs_teacher=taught)


# The members of the family, which a config may name.
OBJECTIVES = (distillation, training, improved, easy, continuous, continuous_distillation, in_steps)
