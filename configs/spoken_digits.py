r"""Spoken digits, 8 kHz: log-mel spectrograms of ten digits by six speakers, 60 classes.

    python -m experiments.train --config=configs/spoken_digits.py \
        --config.data.path=FOLDER --workdir=runs/spoken_digits

Data: the recordings of the Free Spoken Digit Dataset (CC BY-SA 4.0), as the folder of WAV files
{digit}_{speaker}_{index}.wav of its repository; the indices 0 to 4 are its test split. Time: 23
minutes of one CPU core. Sounds are cropped or padded to 0.73 seconds, 64 frames of 64 mels, and the
inverse of the spectrogram is data/logmel.py (docs/guides/sound.md).

Variants: ddpm, vp, subvp, ve, edm, flow (the default).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import base, network, variant
from diffusion_jax.assembly.specs import with_args


def get_config(name: str = "flow") -> ConfigDict:
    """Return the config of a variant.

    Args:
      name: ddpm, vp, subvp, ve, edm or flow.

    Raises:
      UserError: for an unknown variant.
    """
    config = variant(base(), name)
    config.data.update(
        name="sound",
        rate=8000,
        length=0.732,
        channels=1,
        sound="logmel(mels=64, window=256, hop=96)",
        pattern="{digit}_{speaker}_{index}.wav",
        class_fields=("digit", "speaker"),
        test_where="index=0-4",
        batch_size=32,
    )
    config.model = network(
        "unet.UNet",
        stem=4,
        width=48,
        multipliers=(1, 2),
        blocks=2,
        attention=(8,),
        head_width=32,
    )
    if name == "edm":  # values of variance 1
        for key in ("parameterization", "objective"):
            config[key] = with_args(config[key], sigma_data=1.0)
    if name == "ve":
        # 1.5 times the usual distance of two samples of unit variance in 4,096 dimensions
        config.process = with_args(config.process, sigma_max=136.0)
    config.optimizer.learning_rate = 1e-3
    config.training.update(steps=4000, eval_every=1000, sample_every=500, checkpoint_every=250)
    config.ema.halflives = (10_000,)
    config.sampler.clip = "none"  # normalized values have no bounds
    config.sampler.guidance = 1.5
    return config
