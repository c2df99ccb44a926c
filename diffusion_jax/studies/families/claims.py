"""What the textbook says about families of generative models, and whether measurements agree."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.evaluation.memorization import RARE
from diffusion_jax.evaluation.metrics import find
from diffusion_jax.studies.samplers.ranking import interval

METRICS = (  # what is measured of a family, in the order of the columns
    "accuracy",
    "frechet",
    "precision",
    "recall",
    "copies",
    "nearest_ratio",
    "laplacian",
    "high_frequency",
    "active_units",
    "rate",
    "distortion",
    "bits",
    "milliseconds",
    "evaluations",
    "minutes",
    "images",
    "parameters",
)
SHARPNESS = ("laplacian", "high_frequency")

Scored = Mapping[str, tuple[float, float]]  # metric -> (mean, standard deviation), see over_seeds
Decision = tuple[bool | None, str]  # (holds; None where seeds cannot tell, what was measured)
Decide = Callable[..., Decision]


class Claim(NamedTuple):
    """A claim of the textbook and how measurements decide it.

    Attributes:
      text: the claim.
      about: the families that it is about.
      decide: their measurements, one `Scored` each -> whether the claim holds, what was measured.
      picture: the figure that shows it (figures.py).
    """

    text: str
    about: tuple[str, ...]
    decide: Decide
    picture: str


# ---- how claims are decided
def less(metric: str, features: str = "") -> Decide:
    """Decide whether a metric is less for the first family than for the second, by more than noise.

    Noise is two standard deviations of the difference, over seeds or, of one seed, over images.

    Args:
      metric: the name of a metric, whose values are compared as they are: the direction that is
        better does not matter.
      features: what the metric depends on, which is named; '' where it depends on none.

    Returns:
      The rule for a claim about two families; it returns None where the difference is noise.
    """

    def decide(a: Scored, b: Scored) -> Decision:
        (x, dx), (y, dy) = a[metric], b[metric]
        noise, found = 2 * math.hypot(dx, dy), find(metric, features)
        measured = f"{found.title}: {found.text(x)} against {found.text(y)}"
        return None if abs(x - y) <= noise else x < y, measured

    return decide


def blurred(a: Scored, b: Scored) -> Decision:
    """Decide whether the first family is blurred, and the second nearer to real images.

    Args:
      a: the scores of the first family; both measures of its sharpness must be below 0.9, where 1
        is that of real images.
      b: the scores of the second family; both measures must be nearer to 1.
    """
    values = [(a[m][0], b[m][0]) for m in SHARPNESS]
    measured = ", ".join(
        f"{find(m).title}: {x:.2f} against {y:.2f}" for m, (x, y) in zip(SHARPNESS, values)
    )
    return all(x < 0.9 and abs(y - 1) < 1 - x for x, y in values), measured


def sharp(a: Scored) -> Decision:
    """Decide whether both measures of sharpness are within a tenth of those of real images.

    Args:
      a: the scores of the family; a sharpness of 1 is that of real images.
    """
    values = [a[m][0] for m in SHARPNESS]
    measured = ", ".join(f"{find(m).title}: {x:.2f}" for m, x in zip(SHARPNESS, values))
    return all(abs(x - 1) < 0.1 for x in values), measured


def falling(*rows: Scored) -> Decision:
    """Decide whether the rate falls and the distortion rises from each family to the next.

    Args:
      *rows: the scores of two families or more, in the order of the claim, with 'rate' and
        'distortion' in nats per image and the number of 'active_units'.
    """
    rates, distortions, units = (
        [row[m][0] for row in rows] for m in ("rate", "distortion", "active_units")
    )

    def chain(values: Sequence[float], digits: int) -> str:
        return " → ".join(f"{v:.{digits}f}" for v in values)

    measured = (
        f"rate {chain(rates, 2)} nats, distortion {chain(distortions, 1)} nats, "
        f"active units {chain(units, 1)}"
    )
    return sorted(rates, reverse=True) == rates and sorted(distortions) == distortions, measured


def collapsed(weak: Scored, powerful: Scored) -> Decision:
    """Decide whether the powerful decoder's latent holds less than a tenth of the weak one's nats.

    Args:
      weak: the scores of the autoencoder with the weak decoder, with its 'rate' in nats per image.
      powerful: those of the autoencoder with the powerful decoder.
    """
    measured = "; ".join(
        f"{name}: rate {row['rate'][0]:.2f} nats, {row['active_units'][0]:.1f} active units"
        for name, row in (("weak", weak), ("powerful", powerful))
    )
    return powerful["rate"][0] < 0.1 * weak["rate"][0], measured


def steadier(a: Scored, b: Scored, *, features: str = "") -> Decision:
    """Decide whether the Fréchet distance varies less over seeds for the first family.

    What is compared is the standard deviation as a share of the mean; with few seeds this is a hint
    only.

    Args:
      a: the scores of the first family, as (mean, standard deviation over seeds).
      b: those of the second family.
      features: what the distance depends on, which is named; '' where it is not known.

    Returns:
      Whether the claim holds (None for a single seed), and what was measured.
    """
    if min(row.get("seeds", (2, 0.0))[0] for row in (a, b)) < 2:
        return None, "trained from 1 seed"
    shares = [row["frechet"][1] / row["frechet"][0] for row in (a, b)]
    title = find("frechet", features).title
    measured = f"std / mean of the {title} over seeds: {shares[0]:.1%} against {shares[1]:.1%}"
    return shares[0] < shares[1] if all(shares) else None, measured


def copied(a: Scored) -> Decision:
    """Decide whether images are copies: five times as often as real held-out images or more.

    Args:
      a: the scores of the family; 'copies' is the share of its images that are nearer to a training
        image than 99 % of the held-out images are, and 'nearest_ratio' the median distance to the
        nearest training image, divided by that of held-out images.
    """
    measured = ", ".join(
        f"{find(m).title}: {find(m).text(a[m][0])}" for m in ("copies", "nearest_ratio")
    )
    return a["copies"][0] >= 5 * RARE, measured


BETAS = {  # families by the weight of the rate in the configs
    "vae_beta_lowest": 0.04,
    "vae_beta_low": 0.2,
    "vae": 1.0,
    "vae_beta_high": 5.0,
    "vae_beta_highest": 25.0,
}


def claims(features: str) -> tuple[Claim, ...]:
    """The claims of the textbook.

    Args:
      features: what plain scores depend on, which is named; '' where it is not known.
    """
    distance, nearer = find("frechet", features).title, less("frechet", features)
    steady = functools.partial(steadier, features=features)
    diverse, faithful = less("recall", features), less("precision", features)
    return (
        Claim("Samples of a VAE are blurred, more than diffusion's", BLUR, blurred, "blur"),
        Claim("Diffusion's samples are as sharp as real images", ("ddpm",), sharp, "blur"),
        Claim(f"Diffusion's samples are better ({distance})", ("ddpm", "vae"), nearer, "quality"),
        Claim(
            f"Flow matching's samples are better ({distance})", ("flow", "vae"), nearer, "quality"
        ),
        Claim("A VAE trains faster, on the same images", BLUR, less("minutes"), "quality"),
        Claim(
            "The blur is that of a weak decoder: a powerful one is sharp", WEAK, blurred, "decoders"
        ),
        Claim("A powerful decoder ignores its latent: collapse", WEAK, collapsed, "collapse"),
        Claim(
            "A powerful decoder and beta = 5: posterior collapse",
            ("vae", "vae_collapsed"),
            collapsed,
            "collapse",
        ),
        Claim(
            "Free bits keep the latent of a powerful decoder in use",
            ("vae_powerful", "vae_free_bits"),
            less("active_units"),
            "collapse",
        ),
        Claim(
            "A larger beta buys a lower rate with a larger distortion",
            tuple(BETAS),
            falling,
            "tradeoff",
        ),
        Claim("Diffusion covers more of the data (recall)", BLUR, diverse, "diversity"),
        Claim("Diffusion's images are more like real ones", BLUR, faithful, "diversity"),
        Claim("Diffusion copies training images", ("ddpm",), copied, "nearest"),
        Claim("Training diffusion depends less on the seed", ("ddpm", "vae"), steady, "stability"),
        Claim("A VAE draws faster", BLUR, less("milliseconds"), "speed"),
        Claim(
            "Latent diffusion draws faster than diffusion of pixels",
            ("latent", "ddpm"),
            less("milliseconds"),
            "speed",
        ),
        Claim(
            "Diffusion has the better likelihood",
            ("ddpm", "vae_logistic"),
            less("bits"),
            "likelihood",
        ),
    )


BLUR, WEAK = ("vae", "ddpm"), ("vae", "vae_powerful")
VERDICTS = {True: "holds", False: "does not hold", None: "undecided"}


def verdicts(scored: Mapping[str, Scored], features: str = "") -> list[dict[str, str]]:
    """Decide the claims about those families that were trained, in this setting.

    Args:
      scored: the scores of each family by its name; a claim is left out if one of its families, or
        a score of one, is not here.
      features: what plain scores depend on, which is named; '' where it is not known.

    Returns:
      A row {'claim', 'verdict', 'measured', 'families', 'picture'} for each claim that is decided.
    """
    rows = []
    for claim in claims(features):
        if all(name in scored for name in claim.about):
            try:
                holds, measured = claim.decide(*(scored[name] for name in claim.about))
            except KeyError:  # not measured, such as a likelihood
                continue
            rows.append(
                {
                    "claim": claim.text,
                    "verdict": VERDICTS[holds],
                    "measured": measured,
                    "families": ", ".join(claim.about),
                    "picture": claim.picture,
                }
            )
    return rows


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> dict[str, Scored]:
    """Average the scores of each family over its seeds.

    Args:
      rows: a row for each family and seed: 'family', those of METRICS that were measured, and half
        the widths of their 95 % 'intervals'.

    Returns:
      Family -> metric -> (mean, standard deviation over seeds; that over images for a single seed,
      0 where its interval is not known), and 'seeds' -> (their number, 0).
    """
    scored = {}
    for name in dict.fromkeys(row["family"] for row in rows):
        own = [row for row in rows if row["family"] == name]
        scored[name] = {"seeds": (float(len(own)), 0.0)}
        for key in METRICS:
            if values := [row[key] for row in own if row.get(key) is not None]:
                alone = (interval(own[0], key) or 0.0) / 2
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else alone
                scored[name][key] = float(np.mean(values)), spread
    return scored
