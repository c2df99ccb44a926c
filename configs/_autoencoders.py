"""The variants of autoencoders that configs share, and what a config of their latents needs."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.assembly.components import network
from diffusion_jax.assembly.specs import with_args, with_parts
from diffusion_jax.core.errors import unknown

VAES = {
    # name: (p(x | z), the options of the network for it)
    "gaussian": ("autoencoding.gaussian()", {}),
    "bernoulli": ("autoencoding.bernoulli()", {}),
    "logistic": ("autoencoding.logistic()", {"log_scale": "pixel"}),
    "powerful": (
        "autoencoding.logistic()",
        {"log_scale": "pixel", "pixel_layers": 4, "pixel_width": 16},
    ),
}


def vae(config: ConfigDict, name: str, **options: Any) -> ConfigDict:
    """Make the config a variational autoencoder, one of VAES.

    Args:
      config: the config, which is changed in place and returned.
      name: a key of VAES.
      **options: options of the network autoencoder.VAE besides those of VAES.

    Raises:
      UserError: for another name.
    """
    if name not in VAES:
        raise unknown("variant", name, VAES)
    likelihood, own = VAES[name]
    config.objective = with_parts("autoencoding.elbo", likelihood=likelihood)
    config.model = network("autoencoder.VAE", **options | own)
    if config.model.pixel_layers:  # an image takes a call of the decoder for each of its pixels
        config.training.sample_every = config.training.steps
    return _autoencoder(config)


KL = ("plain", "adversarial")
SMALL_KL = {  # options of AutoencoderKL for a CPU; the stem halves the image before the network
    "stem": 2,
    "width": 32,
    "multipliers": (1, 2),
    "blocks": 1,
    "norm": (8, 1e-6),
    "attention": False,
}


def autoencoder(config: ConfigDict, name: str, **options: Any) -> ConfigDict:
    """Make the config an autoencoder for latents: 'plain', or 'adversarial' with a PatchGAN.

    Args:
      config: the config, which is changed in place and returned; its number of training steps must
        be set already.
      name: a member of KL.
      **options: options of the network autoencoder.AutoencoderKL.

    Raises:
      UserError: for another name.
    """
    if name not in KL:
        raise unknown("variant", name, KL)
    config.objective = "autoencoding.reconstruction(features='classifier', kl_weight=1e-3)"
    if name == "adversarial":
        config.objective = with_args(
            config.objective, adversarial=0.5, start=config.training.steps // 2
        )
    config.discriminator = "PatchGAN(width=32, layers=2)"  # used by an adversarial objective alone
    config.model = network("autoencoder.AutoencoderKL", **options)
    config.conditional = False
    return _autoencoder(config)


def _autoencoder(config: ConfigDict) -> ConfigDict:
    """The sampling settings of an autoencoder, which draws images in one evaluation."""
    config.sampler.update(nfe=1, guidance=1.0, clip="none")
    return config


def latents(config: ConfigDict, recipe: str = "") -> ConfigDict:
    """Make the config learn from latents, the file of experiments.encode at data.path.

    Args:
      config: the config of a diffusion model, which is changed in place and returned.
      recipe: the config by which experiments.train_latent trains the autoencoder; '' if there is
        none. The key latent.autoencoder is the workdir of the autoencoder that made the latents.
    """
    config.data.name = "latents"
    config.latent = ConfigDict({"autoencoder": "", "recipe": recipe})
    config.sampler.clip = "none"  # latents have no bounds
    if config.parameterization == "edm()":  # latents have variance 1
        config.parameterization = with_args(config.parameterization, sigma_data=1.0)
    if config.objective == "denoising.edm()":
        config.objective = with_args(config.objective, sigma_data=1.0)
    return config
