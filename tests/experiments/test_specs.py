"""Components by their names: aliases, arguments out of range, mistakes."""

from __future__ import annotations

import contextlib
import re

import pytest

from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import Family, build, members, resolved
from diffusion_jax.core.errors import UserError, nearest
from diffusion_jax.processes import schedules

FAMILIES = {name: value for name, value in vars(components).items() if isinstance(value, Family)}


@pytest.mark.parametrize(
    "given, full",
    [
        ("ddim", "ancestral.ddim"),
        ("heun", "ode.heun"),
        ("euler", "ode.euler"),
        ("dpmpp_2m", "multistep.dpmpp_2m"),
        ("DDIM", "ancestral.ddim"),
        ("dpm++_2m", "multistep.dpmpp_2m"),
        ("dpmpp_2m_sde", "sde.dpmpp_2m"),
        ("euler_a", "ancestral.euler_ancestral"),
        ("ddim(eta=0.5)", "ancestral.ddim(eta=0.5)"),
        ("ancestral.ddim", "ancestral.ddim"),
        ("ode.heun()", "ode.heun()"),
        (
            "corrector.with_corrector(ddim, langevin(snr=0.1))",
            "corrector.with_corrector(ancestral.ddim, corrector.langevin(snr=0.1))",
        ),
    ],
)
def test_bare_names_and_other_programs_names_resolve(given, full):
    assert resolved(components.SAMPLERS, given) == full
    build(components.SAMPLERS, given)


def test_aliases_name_samplers_that_exist_and_suggestions_are_near():
    known = members(components.SAMPLERS)
    assert set(components.SAMPLERS.aliases.values()) <= set(known)
    wrong = {
        "ddimm": "ancestral.ddim",
        "huen": "ode.heun",
        "ode.hun": "ode.heun",
        "eulr": "ode.euler",
        "unipcc": "multistep.unipc",
        "xyzzyx": "",
    }
    assert {name: nearest(name, known) for name in wrong} == wrong


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_of_every_component_is_checked_by_name(family):
    """No member takes text, nan or an infinity for a number, and none takes 10^30: they name the
    argument.
    """
    arguments = {
        "OBJECTIVES": (schedules.VP(),),
        "GRIDS": (schedules.VP(), 5),
        "MEASUREMENTS": ((8, 8, 1),),
        "MASKS": ((8, 8, 1),),
        "ENCODERS": (16, None),
    }.get(family, ())
    family, checked = FAMILIES[family], 0
    for name, function in members(family).items():
        for parameter, annotation in getattr(function, "__annotations__", {}).items():
            if annotation not in ("int", "float") or parameter in (
                "n",
                "max_length",
                "num_classes",
            ):
                continue
            for bad in ('"a"', "1e999", "None", "(1, 2)", "True"):
                with pytest.raises(UserError, match=rf"{parameter}=.*it must be a|{parameter}"):
                    build(family, f"{name}({parameter}={bad})", *arguments)
            checked += 1
    assert checked or family.kind in (
        "mask",
        "discriminator",
        "text encoder",
        "guidance",
        "model",
        "parameterization",
    )


@pytest.mark.parametrize(
    "family, spec",
    [
        ("PROCESSES", "schedules.VE(sigma_min=100, sigma_max=1)"),
        ("PROCESSES", "schedules.VP(beta_max=-1)"),
        ("PROCESSES", "schedules.VP(t_min=0)"),
        ("PROCESSES", "schedules.VP(t_min=0.5, t_max=0.2)"),
        ("PROCESSES", "schedules.RectifiedFlow(t_max=1.0)"),
        ("PROCESSES", "schedules.EDM(sigma_max=1e30)"),
        ("PROCESSES", "discrete.ddpm(steps=100000000)"),
        ("PROCESSES", "discrete.ddpm(beta_min=0.5, beta_max=0.1)"),
        ("PROCESSES", "Shifted(shift=0)"),
        ("PARAMETERIZATIONS", "edm(sigma_data=0)"),
        ("PARAMETERIZATIONS", "eps(sigma_data=-1)"),
        ("PARAMETERIZATIONS", "eps(noise_input=3)"),
        ("OBJECTIVES", "denoising.edm(p_std=0)"),
        ("OBJECTIVES", "consistency.improved(s0=0)"),
        ("OBJECTIVES", "meanflow.meanflow(ratio=2)"),
        ("OBJECTIVES", "flow_matching(time=lognormal(std=-1))"),
        ("OBJECTIVES", "denoising.denoising(weight=min_snr(gamma=0))"),
        ("SAMPLERS", "ancestral.ddim(eta=-1)"),
        ("SAMPLERS", "multistep.unipc(order=2.5)"),
        ("SAMPLERS", "corrector.ncsn(steps=100000000)"),
        ("SAMPLERS", "with_corrector(sampler=heun, corrector=langevin(snr=0))"),
        ("SAMPLERS", "adaptive.tsit5(rtol=1e-30)"),
        ("GRIDS", "karras(rho=-1)"),
        ("GRIDS", "trailing(steps=100000000)"),
        ("TARGETS", "gmm(modes=100000000)"),
        ("TARGETS", "rings(std=0)"),
        ("GUIDES", "interval(cfg(rescale=2))"),
        ("METHODS", "repaint(resample=100000000)"),
        ("MASKS", "random(seed=-1)"),
        ("SAMPLERS", "ddim(eta=" + "1+" * 600 + "1)"),
        ("SAMPLERS", "ddim(eta=" + "-" * 600 + "1)"),
        ("SAMPLERS", "a" + ".a" * 600),
        ("SAMPLERS", "ddim" + "()" * 600),
        ("SAMPLERS", "ancestral(" * 90 + "ode.euler" + ")" * 90),
        ("SAMPLERS", f"ddim(eta=1{'0' * 400})"),
        ("SAMPLERS", "ddim(eta=1, eta=0)"),
        ("SAMPLERS", "ddim(eta=nan)"),
        ("SAMPLERS", "ddim(eta=-inf)"),
        ("SAMPLERS", "-" * 9000 + "1"),
        ("SAMPLERS", "(" * 9000),
        ("SAMPLERS", "x" * 20_000),
        ("SAMPLERS", "ddim(**{'eta': 1})"),
    ],
)
def test_arguments_out_of_range_are_one_line(family, spec):
    arguments = {
        "OBJECTIVES": (schedules.VP(),),
        "GRIDS": (schedules.VP(), 5),
        "MASKS": ((8, 8, 1),),
    }.get(family, ())
    with pytest.raises(UserError) as error:
        build(FAMILIES[family], spec, *arguments)
    assert "\n" not in str(error.value) and "refuses these arguments" not in str(error.value)
    with contextlib.suppress(UserError):
        resolved(FAMILIES[family], spec)


def test_a_mistake_in_a_spec_names_the_argument_and_long_ones_are_cut():
    for spec, words in (
        ("ddim(eta=1, eta=0)", "eta is given twice"),
        ("ddim(eta=nan)", "eta: it must be a number"),
        (
            "with_corrector(sampler=heun)",
            "'corrector'; corrector.with_corrector takes sampler, corrector",
        ),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            build(components.SAMPLERS, resolved(components.SAMPLERS, spec))
    for spec in ("ddim(eta=" + "-" * 600 + "1)", "x" * 20_000):
        with pytest.raises(UserError) as error:
            build(components.SAMPLERS, spec)
        assert len(str(error.value)) < 3000
