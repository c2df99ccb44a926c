"""Specs as text: arguments are set without touching the rest."""

from __future__ import annotations

import pytest

from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.specs import with_args, with_parts


@pytest.mark.parametrize(
    "spec, arguments, expected",
    [
        ("ddim", {"eta": 0.5}, "ddim(eta=0.5)"),
        ("ddim()", {"eta": 0.5}, "ddim(eta=0.5)"),
        ("ddim(eta=1e-3)", {}, "ddim(eta=1e-3)"),
        (
            "VE(sigma_min=1e-2, sigma_max=100.0)",
            {"sigma_max": 10.0},
            "VE(sigma_min=1e-2, sigma_max=10.0)",
        ),
        ("VE(sigma_min=1e-2)", {"sigma_max": 10.0}, "VE(sigma_min=1e-2, sigma_max=10.0)"),
        ("ddpm(betas='cosine')", {"betas": "linear", "steps": 9}, "ddpm(betas='linear', steps=9)"),
        ("f(a='é', b=1)", {"b": 2}, "f(a='é', b=2)"),
        ("f(g(a=1), a=2)", {"a": 3}, "f(g(a=1), a=3)"),
    ],
)
def test_arguments_replace_those_of_the_same_name(spec, arguments, expected):
    assert with_args(spec, **arguments) == expected


def test_components_are_arguments_too():
    spec = with_parts("denoising.denoising()", weight="weighting.min_snr(5.0)")
    assert spec == "denoising.denoising(weight=weighting.min_snr(5.0))"
    spec = with_parts(spec, weight=with_args("weighting.p2", gamma=0.5))
    assert spec == "denoising.denoising(weight=weighting.p2(gamma=0.5))"
    build(components.OBJECTIVES, spec, build(components.PROCESSES, "schedules.VP()"))


def test_an_argument_is_accepted_under_its_former_name():
    process = build(components.PROCESSES, "schedules.RectifiedFlow()")
    for spec in ("meanflow.meanflow(taught=True)", "meanflow.meanflow(distilled=True)"):
        assert build(components.OBJECTIVES, spec, process).needs_teacher
