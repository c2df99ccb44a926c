r"""Every family of generative models on one data set: equal parameters, the same images seen.

    python -m experiments.compare_families --config=configs/families.py:digits \
        --workdir=runs/families
    python -m experiments.compare_families --config=configs/families.py:fashion_mnist \
        --config.data.path=FOLDER --workdir=runs/f_fashion --jobs=2

Data: embedded digits, or the idx files of MNIST and Fashion-MNIST. Time: `mnist` and
`fashion_mnist` are sized for about 35 minutes of one CPU core for a diffusion model, and 5 hours of
two cores in all; `digits` and the variants with ':fast' for a minute or two each.

Variants: digits, mnist, fashion_mnist, mnist:fast, fashion_mnist:fast. config.family.NAME is an
ordinary config, of which every key can be changed:
--config.family.ddpm.optimizer.learning_rate=1e-3.
"""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict

from configs._autoencoders import autoencoder, latents, vae
from configs.base import base, network, variant
from diffusion_jax.assembly.specs import with_args
from diffusion_jax.core.errors import unknown

DATA = ("digits", "mnist", "fashion_mnist")
VARIANTS = (*DATA, "mnist:fast", "fashion_mnist:fast")
DIFFUSION = {"ddpm": "ddpm", "flow": "flow", "edm": "edm", "ve": "ve", "sub-vp": "subvp"}


class Budget(NamedTuple):
    """How much is trained and measured.

    Attributes:
      images: training images that each family sees.
      batch_size: images in a step.
      num: images drawn at each point of training.
      likelihood: test images whose bits per dimension are measured.
      repeated: families that are trained from every seed.
    """

    images: int
    batch_size: int
    num: int
    likelihood: int
    repeated: tuple[str, ...]


BUDGETS = {
    "digits": Budget(61_440, 64, 1000, 100, ("vae", "ddpm")),
    "fast": Budget(40_960, 32, 500, 25, ("vae", "ddpm")),
    "whole": Budget(614_400, 64, 500, 100, ("vae", "vae_logistic", "ddpm", "edm", "flow")),
}


def get_config(name: str = "digits") -> ConfigDict:
    """Return the config of all families for a data set.

    Args:
      name: digits, mnist or fashion_mnist; the last two also with ':fast', a fifteenth of the
        images.

    Raises:
      UserError: for another name.
    """
    if name not in VARIANTS:
        raise unknown("variant", name, VARIANTS)
    name, _, fast = name.partition(":")
    small = name == "digits"
    budget = BUDGETS["digits" if small else fast or "whole"]
    config = ConfigDict()
    config.data = base().data
    config.data.name = name
    config.data.batch_size = budget.batch_size
    config.seeds = (0, 1, 2)
    config.repeated = budget.repeated  # trained from every seed, the others from the first
    config.images = budget.images  # training images that each family sees, the same in one order
    config.points = (0.125, 0.25, 0.5, 1.0)  # shares of them after which a family is measured
    config.num = budget.num  # images drawn of each at each point
    config.features = "classifier"  # of the Fréchet distance, precision and recall
    config.likelihood = budget.likelihood  # test images whose bits/dim are measured; 0: none
    # the log-SNR at which every process ends for the likelihood: sigma / alpha = 0.02, that of VE
    config.end_logsnr = 7.8
    config.about = about = ConfigDict()
    config.family = family = ConfigDict()
    # what an image costs compared with one of ddpm, measured, for the forecast of the time left
    config.cost = cost = ConfigDict()
    for key, (what, likelihood, bound) in VAES.items():
        about[key], family[key] = what, _vae(small, likelihood, bound)
        cost[key] = 1.2 if likelihood == "powerful" else 0.1
    for key, preset in DIFFUSION.items():
        about[key] = f"diffusion of pixels: {preset} of configs/base.py"
        family[key], cost[key] = _diffusion(small, preset), 1.0
    about.latent = "autoencoder, and diffusion of its latents: half of the images for each"
    family.latent, cost.latent = _latent(small), 0.5
    config.recipe = _autoencoder(small)  # of latent
    for own in (*family.values(), config.recipe):
        _at_any_time(own)
    slow = [key for key in VAES if VAES[key][1] == "powerful"]
    quick = [key for key in VAES if key not in slow]
    # those that are run, in this order: what is there when it is stopped can be compared
    config.families = (*quick, *DIFFUSION, "latent", *slow)
    return config


VAES = {
    # name: (what it is, a variant of configs._autoencoders.VAES, arguments of autoencoding.elbo)
    "vae": ("VAE: Gaussian decoder of one learned width", "gaussian", {}),
    "vae_beta_lowest": ("the same, beta = 0.04", "gaussian", {"beta": 0.04}),
    "vae_beta_low": ("the same, beta = 0.2", "gaussian", {"beta": 0.2}),
    "vae_beta_high": ("the same, beta = 5", "gaussian", {"beta": 5.0}),
    "vae_beta_highest": ("the same, beta = 25", "gaussian", {"beta": 25.0}),
    "vae_logistic": ("VAE: discretized logistic decoder", "logistic", {}),
    "vae_powerful": ("VAE: each pixel sees those before it", "powerful", {}),
    "vae_free_bits": (
        "the same, a quarter of a nat free in each dimension",
        "powerful",
        {"free_bits": 0.25},
    ),
    "vae_collapsed": ("each pixel sees those before it, beta = 5", "powerful", {"beta": 5.0}),
}


def _at_any_time(config: ConfigDict) -> None:
    """A constant learning rate, and an average over a twentieth of the images seen so far.

    The model after a share of the images is then what a run of that length would have given.
    """
    config.optimizer.schedule = "constant"
    config.ema.update(halflives=(30_000,), ramp=0.05)


def _vae(small: bool, likelihood: str, bound: dict[str, float]) -> ConfigDict:
    wide = likelihood == "gaussian"  # the others have two outputs a pixel
    hidden = (384, 192) if wide else (336, 168) if small else (272, 192)
    config = vae(base(), likelihood, latent=16, hidden=hidden)
    config.objective = with_args(config.objective, **bound)
    config.optimizer.update(learning_rate=1e-3, clip=0.0)
    return config


def _diffusion(small: bool, preset: str) -> ConfigDict:
    config = variant(base(), preset)
    options = (
        dict(width=16, attention=(4,), head_width=16)
        if small
        else dict(stem=2, width=32, attention=(7,), head_width=32)
    )
    config.model = network("unet.UNet", multipliers=(1, 2), blocks=1, **options)
    config.optimizer.learning_rate = 2e-3 if small else 1e-3
    if preset == "ve":
        # the data's largest distance
        config.process = with_args(config.process, sigma_max=10.0 if small else 45.0)
    return config


def _autoencoder(small: bool) -> ConfigDict:
    config = base()
    config.optimizer.learning_rate = 2e-3 if small else 1e-3
    width = dict(width=12, norm=(4, 1e-6)) if small else dict(stem=2, width=24, norm=(8, 1e-6))
    return autoencoder(config, "plain", multipliers=(1, 2), blocks=1, attention=False, **width)


def _latent(small: bool) -> ConfigDict:
    config = latents(variant(base(), "flow"))
    side, width = (4, 20) if small else (7, 40)
    config.model = network(
        "unet.UNet", width=width, multipliers=(1,), blocks=2, attention=(side,), head_width=width
    )
    config.optimizer.learning_rate = 2e-3 if small else 1e-3
    return config
