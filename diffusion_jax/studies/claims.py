"""What the textbook says about families of generative models, and whether measurements agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

METRICS = {  # key -> (heading, factor, digits)
    "accuracy": ("recognized (%)", 100, 1),
    "frechet": ("Fréchet distance", 1, 3),
    "precision": ("precision", 1, 3),
    "recall": ("recall", 1, 3),
    "laplacian": ("Laplacian variance / real", 1, 2),
    "high_frequency": ("high-frequency energy / real", 1, 2),
    "active_units": ("active units", 1, 1),
    "rate": ("rate, KL (nats)", 1, 2),
    "distortion": ("distortion (nats)", 1, 1),
    "bits": ("likelihood or bound (bits/dim)", 1, 3),
    "milliseconds": ("milliseconds per image", 1, 2),
    "train_seconds": ("training, with compilation (s)", 1, 0),
    "steps": ("steps", 1, 0),
    "parameters": ("parameters", 1, 0),
}

SHARPNESS = ("laplacian", "high_frequency")


# ---- the claims of the textbook
class Claim(NamedTuple):
    """A sentence of the textbook; the families that it is about; decide(their rows, each metric ->
    (mean, std over seeds)) ->
    (holds: yes, no or None where seeds cannot tell, what was measured).
    """

    text: str
    about: tuple[str, ...]
    decide: Callable[..., tuple[bool | None, str]]


Scored = Mapping[str, tuple[float, float]]


def less(metric: str, digits: int = 3, factor: float = 1.0) -> Callable:
    """decide: the metric is less for the first family than for the second, by more than two
    standard errors of their seeds.
    """

    def decide(a: Scored, b: Scored) -> tuple[bool | None, str]:
        (x, dx), (y, dy) = a[metric], b[metric]
        noise = 2 * math.hypot(dx, dy)

        def show(v, d):
            return f"{factor * v:.{digits}f}" + (f" ± {factor * d:.{digits}f}" if d else "")

        name = METRICS[metric][0]
        return None if abs(
            x - y
        ) <= noise else x < y, f"{name}: {show(x, dx)} against {show(y, dy)}"

    return decide


def blurred(a: Scored, b: Scored) -> tuple[bool | None, str]:
    """decide: by both measures the first is less sharp than real images, and the second nearer to
    them.
    """
    values = [(a[m][0], b[m][0]) for m in SHARPNESS]
    told = ", ".join(
        f"{METRICS[m][0]}: {x:.2f} against {y:.2f}" for m, (x, y) in zip(SHARPNESS, values)
    )
    return all(x < 0.9 and abs(y - 1) < 1 - x for x, y in values), told


def sharp(a: Scored) -> tuple[bool | None, str]:
    """decide: both measures of sharpness are within a tenth of those of real images."""
    values = [a[m][0] for m in SHARPNESS]
    told = ", ".join(f"{METRICS[m][0]}: {x:.2f}" for m, x in zip(SHARPNESS, values))
    return all(abs(x - 1) < 0.1 for x in values), told


def falling(*rows: Scored) -> tuple[bool | None, str]:
    """decide: from family to family the rate falls and the distortion rises."""
    rates, distortions = ([row[m][0] for row in rows] for m in ("rate", "distortion"))

    def chain(values, digits):
        return " → ".join(f"{v:.{digits}f}" for v in values)

    told = (
        f"rate {chain(rates, 2)} nats, distortion {chain(distortions, 1)} nats, active units "
        + chain([row["active_units"][0] for row in rows], 1)
    )
    return sorted(rates, reverse=True) == rates and sorted(distortions) == distortions, told


def collapsed(weak: Scored, powerful: Scored) -> tuple[bool | None, str]:
    """decide: the powerful decoder's latent holds less than a tenth of the weak one's nats."""
    told = "; ".join(
        f"{name}: rate {row['rate'][0]:.2f} nats, {row['active_units'][0]:.1f} active units"
        for name, row in (("weak", weak), ("powerful", powerful))
    )
    return powerful["rate"][0] < 0.1 * weak["rate"][0], told


def steadier(a: Scored, b: Scored) -> tuple[bool | None, str]:
    """decide: over seeds the first's Fréchet distance varies by a smaller share than the second's
    (a hint, of few).
    """
    shares = [row["frechet"][1] / row["frechet"][0] for row in (a, b)]
    told = f"std / mean of the Fréchet distance over seeds: {shares[0]:.1%} against {shares[1]:.1%}"
    return shares[0] < shares[1] if all(shares) else None, told


CLAIMS = (
    Claim(
        "Samples of a VAE are blurred, and more so than those of diffusion",
        ("vae", "ddpm"),
        blurred,
    ),
    Claim("Diffusion's samples are as sharp as real images", ("ddpm",), sharp),
    Claim("Diffusion's samples are better (Fréchet distance)", ("ddpm", "vae"), less("frechet")),
    Claim(
        "Flow matching's samples are better than a VAE's (Fréchet distance)",
        ("flow", "vae"),
        less("frechet"),
    ),
    Claim("Diffusion covers more of the data (recall)", ("vae", "ddpm"), less("recall")),
    Claim(
        "Diffusion's images are more like real ones (precision)", ("vae", "ddpm"), less("precision")
    ),
    Claim(
        "A larger beta buys a lower rate with a larger distortion",
        ("vae_beta_low", "vae", "vae_beta_high"),
        falling,
    ),
    Claim(
        "A powerful decoder ignores its latent: posterior collapse",
        ("vae", "vae_powerful"),
        collapsed,
    ),
    Claim(
        "Free bits keep the latent of a powerful decoder in use",
        ("vae_powerful", "vae_free_bits"),
        less("active_units", 1),
    ),
    Claim("A powerful decoder is not blurred", ("vae", "vae_powerful"), blurred),
    Claim("Diffusion has the better likelihood", ("ddpm", "vae_logistic"), less("bits")),
    Claim("A VAE draws faster", ("vae", "ddpm"), less("milliseconds")),
    Claim(
        "Latent diffusion draws faster than diffusion of pixels",
        ("latent", "ddpm"),
        less("milliseconds"),
    ),
    Claim("Training diffusion depends less on the seed", ("ddpm", "vae"), steadier),
)

VERDICTS = {True: "holds", False: "refuted", None: "cannot be told"}


def verdicts(scored: Mapping[str, Scored]) -> list[dict]:
    """A row {'claim', 'verdict', 'measured'} for every claim whose families were run."""
    rows = []
    for claim in CLAIMS:
        if all(name in scored for name in claim.about):
            holds, told = claim.decide(*(scored[name] for name in claim.about))
            rows.append(
                {
                    "claim": claim.text,
                    "verdict": VERDICTS[holds],
                    "measured": told,
                    "families": ", ".join(claim.about),
                }
            )
    return rows


def over_seeds(rows: Sequence[Mapping]) -> dict[str, Scored]:
    """family -> metric -> (mean, standard deviation over seeds; 0 of one)."""
    scored = {}
    for name in dict.fromkeys(row["family"] for row in rows):
        own = [row for row in rows if row["family"] == name]
        values = {key: [row[key] for row in own if row.get(key) is not None] for key in METRICS}
        scored[name] = {
            key: (float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else 0.0)
            for key, v in values.items()
            if v
        }
    return scored
