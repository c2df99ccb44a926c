"""The claims of the textbook decided by numbers, and families compared end to end, small."""

from __future__ import annotations

import json

import numpy as np
import pytest

from configs import families
from diffusion_jax.core.errors import UserError
from diffusion_jax.studies import family_comparison
from diffusion_jax.studies.claims import (
    blurred,
    claims,
    collapsed,
    falling,
    less,
    over_seeds,
    sharp,
    steadier,
    verdicts,
)
from tests.markdown import squeezed


def of(**values):
    """A family's scores without a spread, or (mean, std)."""
    return {
        key: value if isinstance(value, tuple) else (value, 0.0) for key, value in values.items()
    }


@pytest.mark.parametrize(
    "decide, rows, holds",
    [
        (
            blurred,
            (of(laplacian=0.4, high_frequency=0.5), of(laplacian=0.97, high_frequency=1.02)),
            True,
        ),
        (
            blurred,
            (of(laplacian=0.4, high_frequency=0.5), of(laplacian=4.0, high_frequency=3.0)),
            False,
        ),  # noise is not sharpness
        (
            blurred,
            (of(laplacian=0.4, high_frequency=1.0), of(laplacian=1.0, high_frequency=1.0)),
            False,
        ),
        (sharp, (of(laplacian=1.05, high_frequency=0.93),), True),
        (sharp, (of(laplacian=1.05, high_frequency=0.5),), False),
        (less("frechet"), (of(frechet=(1.0, 0.1)), of(frechet=(2.0, 0.1))), True),
        (less("frechet"), (of(frechet=(2.0, 0.1)), of(frechet=(1.0, 0.1))), False),
        (
            less("frechet"),
            (of(frechet=(1.0, 0.4)), of(frechet=(2.0, 0.4))),
            None,
        ),  # 2 sqrt(0.32) > 1
        (
            falling,
            [of(rate=r, distortion=d, active_units=8) for r, d in ((30, 10), (20, 15), (5, 40))],
            True,
        ),
        (
            falling,
            [of(rate=r, distortion=d, active_units=8) for r, d in ((30, 10), (20, 9), (5, 40))],
            False,
        ),
        (collapsed, (of(rate=20, active_units=9), of(rate=0.5, active_units=0)), True),
        (collapsed, (of(rate=20, active_units=9), of(rate=15, active_units=8)), False),
        (steadier, (of(frechet=(1.0, 0.01)), of(frechet=(5.0, 0.5))), True),
        (
            steadier,
            (of(frechet=(1.0, 0.01)), of(frechet=5.0)),
            None,
        ),  # of one seed there is no spread
    ],
)
def test_claims_are_decided_by_their_numbers(decide, rows, holds):
    decided, measured = decide(*rows)
    assert decided is holds and any(c.isdigit() for c in measured)


def test_only_claims_about_families_that_were_run_are_judged():
    rows = [
        {"family": "vae", "seed": seed, "laplacian": 0.4 + 0.1 * seed, "high_frequency": 0.5}
        for seed in (0, 1)
    ]
    rows += [{"family": "ddpm", "seed": 0, "laplacian": 1.0, "high_frequency": 1.0, "bits": None}]
    scored = over_seeds(rows)
    assert scored["vae"]["laplacian"] == (pytest.approx(0.45), pytest.approx(0.1 / np.sqrt(2)))
    assert "bits" not in scored["ddpm"]
    for name in scored:
        scored[name] |= of(frechet=1.0, recall=0.5, precision=0.5, milliseconds=1.0)
    decided = {row["claim"]: row["verdict"] for row in verdicts(scored)}
    assert decided["Samples of a VAE are blurred, and more so than those of diffusion"] == "holds"
    assert set(decided) == {
        claim.text for claim in claims("") if set(claim.about) <= {"vae", "ddpm"}
    }


def test_every_family_that_a_claim_is_about_has_a_config_and_a_title():
    config = families.get_config("digits")
    assert (
        {name for claim in claims("") for name in claim.about}
        <= set(config.family)
        == set(config.about)
        == set(config.families)
    )
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        families.get_config("mnis")


def test_families_end_to_end(tmp_path):
    config = families.get_config("digits")
    config.update(
        families=("vae", "vae_beta_low"),
        seconds=0.01,
        num=20,
        likelihood=0,
        seeds=(0, 1),
        repeated=("vae",),
    )
    args = {"workdir": str(tmp_path)}
    text = family_comparison.compare(config, **args)
    assert "| vae |" in (table := squeezed(text)) and "| real test images |" in table
    kept = json.loads((tmp_path / "families.json").read_text())
    assert [(row["family"], row["seed"]) for row in kept["rows"]] == [
        ("vae", 0),
        ("vae_beta_low", 0),
        ("vae", 1),
    ]
    assert all(row["steps"] >= 1 for row in kept["rows"])
    assert all(row["intervals"]["frechet"] > 0 for row in [*kept["rows"], kept["real"]])
    assert kept["titles"]["frechet"] == "Fréchet distance of pixels" and "± " in table
    assert "| Fréchet distance of pixels |" in table
    assert {f"families{end}" for end in (".html", ".md", ".png", "_strips.png")} <= {
        file.name for file in tmp_path.iterdir()
    }
    before = (tmp_path / "vae_beta_low_0" / "family.npz").stat().st_mtime_ns
    assert (
        family_comparison.compare(config, **args).splitlines()[4:] == text.splitlines()[4:]
    )  # found, not made again
    assert (tmp_path / "vae_beta_low_0" / "family.npz").stat().st_mtime_ns == before
    family_comparison.compare(
        config, str(tmp_path), "vae_beta_low", "0", others=[str(tmp_path / "vae_0")]
    )
    rows = json.loads((tmp_path / "families.json").read_text())["rows"]
    assert (
        rows[1]["family"] == "vae_0" and rows[1]["frechet"] == kept["rows"][0]["frechet"]
    )  # of the same weights and seeds
    (tmp_path / "toy").mkdir()
    with pytest.raises(
        UserError, match="--others=.*toy has no config.json"
    ):  # before the hours of training, not after
        family_comparison.compare(config, str(tmp_path / "fresh"), others=[str(tmp_path / "toy")])
    assert not (tmp_path / "fresh").exists()
    with pytest.raises(
        UserError, match="unknown --families 'vae_betahigh'; did you mean 'vae_beta_high'"
    ):
        family_comparison.compare(config, str(tmp_path), "vae_betahigh")
