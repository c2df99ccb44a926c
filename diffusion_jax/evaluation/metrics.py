"""The one table of metrics: titles, directions and formats.

Tables, figures, captions and comparisons of the project take titles, directions and formats from
here. A metric is the key of a score in a row of results, such as 'frechet' or 'precision'; a score
that belongs to one feature extractor is called 'frechet/inception' (see `find`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

HIGHER, LOWER, NEITHER = 1, -1, 0  # which direction is better


class Format(NamedTuple):
    """A number format: the value times `factor`, by a format specification, with a unit.

    Attributes:
      spec: a format specification of Python, such as '.3g'.
      factor: what the value is multiplied by, such as 100 for a fraction in percent.
      unit: the unit after multiplication, such as '%'; '' for none.
    """

    spec: str = ".3g"
    factor: float = 1.0
    unit: str = ""


class Metric(NamedTuple):
    """A number by which samples, samplers or models are compared.

    Attributes:
      name: the key of the number in rows and JSON files.
      title: a short name, for the heading of a column or a caption.
      direction: HIGHER or LOWER, whichever is better; NEITHER where a value is only described.
      format: how a value is written.
      description: a longer name, for the axis of a figure; '' uses the title.
      of_features: whether the number depends on a feature extractor, which `find` adds to the
        title.
    """

    name: str
    title: str
    direction: int
    format: Format = Format()
    description: str = ""
    of_features: bool = False

    @property
    def label(self) -> str:
        """The label of an axis or of a column of bare numbers: the description with its unit."""
        unit = f" ({self.format.unit})" if self.format.unit else ""
        return f"{self.description or self.title}{unit}"

    def number(self, value: float, spread: float | None = None) -> str:
        """Format a value without its unit; a spread that is known follows after '±'.

        Args:
          value: the score as tables of results hold it; the format may multiply it, for example by
            100 for percents.
          spread: half the width of an interval in the same unit. A format of significant digits
            gives it two of them, and the value as many decimals.
        """
        spec, factor, _ = self.format
        if not spread:
            return f"{factor * value:{spec}}"
        if spec.endswith("g") and math.isfinite(spread):
            spec = f".{max(0, 1 - math.floor(math.log10(abs(factor * spread))))}f"
        return f"{factor * value:{spec}} ± {factor * spread:{spec}}"

    def text(self, value: float, spread: float | None = None) -> str:
        """Format a value with its unit, such as '97.3 ± 0.4 %'.

        Args:
          value: the score as tables of results hold it, such as 0.973.
          spread: half the width of an interval in the same unit; None leaves it out.
        """
        unit = f" {self.format.unit}" if self.format.unit else ""
        return f"{self.number(value, spread)}{unit}"

    def loss(self, value: float) -> float:
        """Return a value with the sign that makes less better, for sorting and for margins.

        Args:
          value: the score as tables of results hold it.

        Raises:
          ValueError: for a metric of which neither direction is better.
        """
        if self.direction == NEITHER:
            raise ValueError(f"neither direction of the metric {self.name} is better")
        return -self.direction * value


INTERVALS = "±: half the width of the 95 % interval."  # stands below every table that has them

PERCENT, FRACTION = Format(".1f", 100, "%"), Format(".3f")

_TABLE = (
    # sets of images against a data set (judge.py)
    Metric("accuracy", "recognized", HIGHER, PERCENT, "recognized as their class"),
    Metric(
        "frechet",
        "Fréchet distance",
        LOWER,
        description="Fréchet distance to the training data",
        of_features=True,
    ),
    Metric("frechet_low", "Fréchet distance, 95 % from", LOWER, of_features=True),
    Metric("frechet_high", "Fréchet distance, 95 % to", LOWER, of_features=True),
    Metric("frechet_infinity", "Fréchet distance, infinitely many images", LOWER, of_features=True),
    Metric("kid", "KID x 1000", LOWER, Format(".3f", 1000), of_features=True),
    Metric("kid_se", "KID x 1000, standard error", LOWER, Format(".3f", 1000), of_features=True),
    Metric("precision", "precision", HIGHER, FRACTION, of_features=True),
    Metric("recall", "recall", HIGHER, FRACTION, of_features=True),
    Metric("density", "density", HIGHER, FRACTION, of_features=True),
    Metric("coverage", "coverage", HIGHER, FRACTION, of_features=True),
    Metric("class_accuracy", "classified as its class", HIGHER, PERCENT, of_features=True),
    Metric(
        "spectral_distance",
        "log-spectral distance",
        LOWER,
        Format(".2f", 1, "dB"),
        "log-spectral distance of the long-term spectra",
    ),
    Metric("inception_score", "inception score", HIGHER, of_features=True),
    Metric(
        "nearest_ratio",
        "distance to the nearest training example (1: as held-out examples)",
        NEITHER,
        FRACTION,
        of_features=True,
    ),
    Metric(
        "copies",
        "nearer to a training example than 99 % of held-out examples",
        LOWER,
        PERCENT,
        of_features=True,
    ),
    Metric("cmmd", "MMD x 1000, sigma 10", LOWER, of_features=True),
    Metric(
        "mmd_median",
        "MMD, median width",
        LOWER,
        description="MMD, kernel as wide as the median distance of training samples",
        of_features=True,
    ),
    Metric(
        "c2st",
        "C2ST accuracy",
        LOWER,
        PERCENT,
        "accuracy of telling samples from held-out data (50 %: chance)",
        of_features=True,
    ),
    # rows of tables
    Metric("ks", "KS of marginals", LOWER, description="Kolmogorov-Smirnov distance of marginals"),
    Metric(
        "total_variation",
        "TV of marginals",
        LOWER,
        description="total variation of categories",
    ),
    Metric("correlation", "correlation distance", LOWER),
    Metric(
        "laplacian",
        "Laplacian variance / real",
        NEITHER,
        Format(".2f"),
        "variance of the Laplacian (1: as sharp as the real images)",
    ),
    Metric(
        "high_frequency",
        "high-frequency energy / real",
        NEITHER,
        Format(".2f"),
        "energy at high frequencies (1: as sharp as the real images)",
    ),
    # points against a known distribution, and samplers against the exact solution
    Metric(
        "sliced_wasserstein", "sliced Wasserstein", LOWER, description="sliced Wasserstein distance"
    ),
    Metric("mmd", "MMD", LOWER, description="MMD to exact draws"),
    Metric(
        "mode_weights",
        "mode error",
        LOWER,
        description="total error of the mixture weights",
    ),
    Metric("error", "RMS error", LOWER, description="RMS error to the exact solution"),
    Metric(
        "shift",
        "distance to the exact samples",
        LOWER,
        description="distance to the exact solutions of the same seeds",
    ),
    Metric("order", "order", HIGHER, Format(".1f"), "observed order of convergence"),
    # posteriors and restored images
    Metric("bias", "bias", LOWER, description="bias of the posterior mean (posterior stds)"),
    Metric(
        "variance_ratio",
        "variance / posterior variance",
        NEITHER,
    ),
    Metric(
        "interval_coverage",
        "coverage of 90 % intervals",
        NEITHER,
        PERCENT,
        "coverage of 90 % credible intervals",
    ),
    Metric("psnr", "PSNR", HIGHER, Format(".2f", 1, "dB")),
    Metric("perceptual", "perceptual distance", LOWER, Format(".4f")),
    Metric("rmse", "RMSE", LOWER, description="root mean squared error"),
    Metric("crps", "CRPS", LOWER, description="continuous ranked probability score"),
    # likelihoods and autoencoders
    Metric("bits", "likelihood or bound", LOWER, Format(".3f", 1, "bits/dim")),
    Metric("rate", "rate (KL)", NEITHER, Format(".4g", 1, "nats")),
    Metric("distortion", "distortion", LOWER, Format(".4g", 1, "nats")),
    Metric("elbo", "bound on log p(x) (ELBO)", HIGHER, Format(".4g", 1, "nats")),
    Metric("iw_bound", "importance-weighted bound on log p(x)", HIGHER, Format(".4g", 1, "nats")),
    Metric("active_units", "active units", NEITHER, Format(".1f")),
    # cost
    Metric("evaluations", "NFE", LOWER, description="network evaluations (NFE)"),
    Metric("seconds_per_image", "time per sample", LOWER, Format(".3g", 1000, "ms")),
    Metric("milliseconds", "time per image", LOWER, Format(".2f", 1, "ms")),
    Metric("train_seconds", "training time with compilation", LOWER, Format(",.0f", 1, "s")),
    Metric("minutes", "training time", LOWER, Format(".3g", 1, "min")),
    Metric("images", "training images seen", NEITHER, Format(",.0f")),
    Metric("steps", "training steps", NEITHER, Format(",.0f")),
    Metric("parameters", "parameters", NEITHER, Format(",.0f")),
)

METRICS = {metric.name: metric for metric in _TABLE}


PUBLISHED = {  # features -> (the name of a metric, that which it has with these features)
    "inception": ("Fréchet distance", "FID"),
    "inception_spatial": ("Fréchet distance", "sFID"),
    "dinov2_vitb14": ("Fréchet distance", "FD-DINOv2"),
    "dinov2_vitl14": ("Fréchet distance", "FD-DINOv2"),
    "clip_vitl14_336": ("MMD x 1000, sigma 10", "CMMD"),
}


def find(name: str, features: str = "") -> Metric:
    """The metric of a score by its name, 'METRIC' or 'METRIC/FEATURES'.

    Where the metric depends on a feature extractor that is known, the title and the description
    name it: 'frechet/classifier' is the 'Fréchet distance (classifier)', that of pixels is the
    'Fréchet distance of pixels', and those of PUBLISHED have their published name:
    'frechet/inception' is 'FID (inception)'.

    Args:
      name: the name of a score; one that the table lacks keeps its name as its title.
      features: the extractor of a score whose name has none; '' where it is not named.
    """
    base, _, own = name.partition("/")
    metric = METRICS.get(base, Metric(base, base, NEITHER))
    features = own or features
    if base == "accuracy" and own:  # of one field of the classes
        named = f"{metric.title}: {own}", f"recognized as their {own}"
        return metric._replace(name=name, title=named[0], description=named[1])
    if not features or not (metric.of_features or base not in METRICS):
        return metric._replace(name=name)

    def named(text: str) -> str:
        if features in PUBLISHED:
            text = text.replace(*PUBLISHED[features])
        if features in ("pixels", "values") and "Fréchet distance" in text:
            text = text.replace("Fréchet distance", f"Fréchet distance of {features}")
            return text.replace("images", "data") if features == "values" else text
        if features == "values":  # the only features of arrays that are not images
            return text
        return f"{text} ({features})" if text else ""

    return metric._replace(
        name=name, title=named(metric.title), description=named(metric.description)
    )
