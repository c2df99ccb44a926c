"""Noise schedules as diffusers' scheduler_config.json describes them, and ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError, unknown

VERSION = "0.42.1"  # the version of diffusers that the files were tested with

BETAS = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}

DDPM = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}

_SCHEDULER = reading.record(
    {
        "num_train_timesteps": reading.integer(1, 100_000),
        "beta_start": reading.number(0, 1),
        "beta_end": reading.number(0, 1),
        "beta_schedule": reading.text(),
        "trained_betas": reading.optional(reading.items(reading.number(0, 1), 1, 100_000)),
        "prediction_type": reading.text(),
        "rescale_betas_zero_snr": reading.boolean(),
    },
    {"clip_sample": reading.boolean(), "thresholding": reading.boolean()},
)


class Convention(NamedTuple):
    """The convention of a network's training, as specs of our config.

    Attributes:
      process: config.process.
      parameterization: config.parameterization.
      objective: config.objective.
      steps: the number of steps of the chain.
    """

    process: str
    parameterization: str
    objective: str
    steps: int


def read_scheduler(scheduler: Mapping) -> Convention:
    """Translate a scheduler_config.json of diffusers.

    Their integer j of N is our t = (j + 1) / N, and the network is given j itself, which is
    1000 c_noise.

    Args:
      scheduler: the contents of the file; keys that are missing have the values of DDPM.

    Raises:
      UserError: for a table of betas or a prediction that cannot be imported.
    """
    scheduler = DDPM | scheduler
    reading.check(scheduler, _SCHEDULER, "scheduler_config.json")
    steps, schedule, prediction = (
        scheduler[key] for key in ("num_train_timesteps", "beta_schedule", "prediction_type")
    )
    if scheduler["rescale_betas_zero_snr"]:
        raise UserError(
            "scheduler_config.json has rescale_betas_zero_snr=True; a last step without signal "
            "cannot be imported"
        )
    if scheduler["trained_betas"]:
        process = f"discrete.DDPM({tuple(scheduler['trained_betas'])})"
    elif schedule in BETAS:
        # our betas are those of 1000 steps
        low, high = (scheduler[key] * steps / 1000 for key in ("beta_start", "beta_end"))
        process = f"discrete.ddpm('{BETAS[schedule]}', {steps}, {low!r}, {high!r})"
    else:
        raise unknown("beta_schedule of scheduler_config.json", schedule, BETAS)
    if prediction not in PREDICTIONS:
        raise unknown("prediction_type of scheduler_config.json", prediction, PREDICTIONS)
    options = (
        f"noise_input='time', input_scale=False, time_scale={steps / 1000!r}, time_shift=-0.001"
    )
    return Convention(
        process, f"{PREDICTIONS[prediction]}({options})", f"denoising.ddpm(steps={steps})", steps
    )


def write_scheduler(
    betas: Sequence[float], prediction: str, *, clip: str, learned: bool = False
) -> dict[str, Any]:
    """Return the scheduler_config.json of a chain, for DDPMPipeline and DDIMPipeline.

    Args:
      betas: (N,), the variances of the steps.
      prediction: what the network predicts: 'eps', 'v' or 'x0'.
      clip: config.sampler.clip: 'static' keeps x0-hat in [-1, 1], 'dynamic' is Imagen's
        thresholding, 'none' does neither.
      learned: whether the network's output includes the variance, as in improved DDPM.
    """
    first, last = float(betas[0]), float(betas[-1])
    straight = np.allclose(betas, np.linspace(first, last, len(betas)), rtol=1e-9, atol=0)
    schedule = {"beta_schedule": "linear", "beta_start": first, "beta_end": last}
    if not straight:
        schedule = {"trained_betas": [float(beta) for beta in betas]}
    theirs = {ours: name for name, ours in PREDICTIONS.items()}
    return schedule | {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": len(betas),
        "prediction_type": theirs[prediction],
        "timestep_spacing": "trailing",
        "clip_sample": clip == "static",
        "thresholding": clip == "dynamic",
        "dynamic_thresholding_ratio": 0.995,
        "sample_max_value": 1e6,
        "variance_type": "learned_range" if learned else "fixed_small",
    }


def write_index(pipeline: str = "DDIMPipeline") -> dict[str, Any]:
    """Return the model_index.json of a folder with unet/ and scheduler/.

    Args:
      pipeline: the class of diffusers that loads the folder.
    """
    return {
        "_class_name": pipeline,
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
