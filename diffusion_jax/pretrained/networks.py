"""All published networks that are imported or exported, by the names of their classes."""

from __future__ import annotations

from diffusion_jax.core.errors import unknown
from diffusion_jax.pretrained import (
    conditional_unet,
    diffusers_networks,
    dit_network,
    dit_variants,
    edm_networks,
    mmdit_network,
    openai_networks,
    score_sde_network,
)
from diffusion_jax.pretrained.published import Published

NETWORKS = {
    "UNet2DModel": diffusers_networks.UNET,
    "UNet2DConditionModel": conditional_unet.UNET,
    "AutoencoderKL": diffusers_networks.AUTOENCODER,
    "DiT": dit_network.DIT,
    "SiT": dit_variants.SIT,
    "LightningDiT": dit_variants.LIGHTNING,
    "DiTTransformer2DModel": dit_variants.DIFFUSERS,
    "SD3Transformer2DModel": mmdit_network.SD3,
    "NCSNpp": score_sde_network.NCSNPP,
    "SongUNet": edm_networks.SONG,
    "DhariwalUNet": edm_networks.ADM,
    "EDM2": edm_networks.EDM2,
    "guided_diffusion.UNetModel": openai_networks.GUIDED,
    "improved_diffusion.UNetModel": openai_networks.IMPROVED,
    "consistency_models.UNetModel": openai_networks.CONSISTENCY,
}


def network(name: str) -> Published:
    """Look up a published network by the name of its class.

    Args:
      name: the name in its own program, such as 'UNet2DModel'.

    Raises:
      UserError: for an unknown name; it names the nearest.
    """
    if name not in NETWORKS:
        raise unknown("class of network", name, NETWORKS)
    return NETWORKS[name]
