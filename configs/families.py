r"""Every family of generative models on one data set, at one size and one training time.

    python -m experiments.compare_families --config=configs/families.py:digits \
        --workdir=runs/families
    python -m experiments.compare_families --config=configs/families.py:mnist \
        --config.data.path=FOLDER --workdir=runs/f_mnist

Data: embedded digits, or the idx files of MNIST and Fashion-MNIST. Time: for each family and seed,
40 seconds of training on digits and 240 on the others, on a CPU. Networks have about 0.2 million
parameters on digits and 0.8 on 28x28.

Variants: digits, mnist, fashion_mnist. config.family.NAME is an ordinary config, of which every key
can be changed: --config.family.ddpm.optimizer.learning_rate=1e-3.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs._autoencoders import autoencoder, latents, vae
from configs.base import base, network, variant
from diffusion_jax.assembly.specs import with_args
from diffusion_jax.core.errors import unknown

DATA = ("digits", "mnist", "fashion_mnist")
DIFFUSION = {"ddpm": "ddpm", "ve": "ve", "sub-vp": "subvp", "edm": "edm", "flow": "flow"}


def get_config(name: str = "digits") -> ConfigDict:
    """Return the config of all families for a data set.

    Args:
      name: digits, mnist or fashion_mnist.

    Raises:
      UserError: for another name.
    """
    if name not in DATA:
        raise unknown("variant", name, DATA)
    small = name == "digits"
    config = ConfigDict()
    config.data = base().data
    config.data.name = name
    config.data.batch_size = (
        128 if small else 32
    )  # the budget is in seconds: smaller batches, more steps
    config.seeds = (0, 1, 2)
    config.repeated = (
        "vae",
        "ddpm",
    )  # families that are trained from every seed, the others from the first
    config.seconds = (
        40.0 if small else 240.0
    )  # of training for each family and seed, compilation aside
    config.num = 1000 if small else 500  # images drawn of each
    config.likelihood = (
        100 if small else 25
    )  # test images whose bits/dim are measured, of the first seed; 0: none
    config.about = about = ConfigDict()
    config.family = family = ConfigDict()
    for key, (what, likelihood, bound) in VAES.items():
        about[key], family[key] = what, _vae(small, likelihood, bound)
    for key, preset in DIFFUSION.items():
        about[key] = f"diffusion of pixels: {preset} of configs/base.py"
        family[key] = _diffusion(small, preset)
    about.latent, family.latent = (
        "autoencoder, and diffusion of its latents: half of the time for each",
        _latent(small),
    )
    config.recipe = _autoencoder(small)  # of latent
    config.families = (*VAES, "latent", *DIFFUSION)  # those that are run, in this order
    return config


VAES = {
    # name: (what it is, a variant of configs._autoencoders.VAES, arguments of autoencoding.elbo)
    "vae": ("VAE: Gaussian decoder of one learned width", "gaussian", {}),
    "vae_beta_low": ("the same, beta = 0.2", "gaussian", {"beta": 0.2}),
    "vae_beta_high": ("the same, beta = 5", "gaussian", {"beta": 5.0}),
    "vae_logistic": ("VAE: discretized logistic decoder", "logistic", {}),
    "vae_powerful": ("VAE: each pixel sees those before it", "powerful", {}),
    "vae_free_bits": (
        "the same, a quarter of a nat free in each dimension",
        "powerful",
        {"free_bits": 0.25},
    ),
}


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
