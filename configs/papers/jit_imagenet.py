r"""JiT on the pixels of ImageNet at 256x256 and 512x512 (Li & He 2025).

    python -m experiments.train --config=configs/papers/jit_imagenet.py:B/16 --workdir=runs/jit

Data: TFDS's `imagenet2012`. The paper is "Back to basics: let denoising generative models denoise":
a plain transformer over patches of 16 or 32 pixels predicts the clean image, and the loss is that
of the velocity. Settings: its table 9, and the authors' program LTH14/JiT. Class-conditional,
batches of 1,024, 600 epochs, 50 Heun steps, guidance while their time is above 0.1. The paper takes
the best of three averages, of rates 0.9996, 0.9998 and 0.9999; ours is the last. Hardware and time:
TPUs, then 8 H200 GPUs for the program in PyTorch; neither states a time.

Variants, with parameters and FID after 600 epochs (tables 6 to 8):

    B/16    131 million, 256x256, FID 3.66
    L/16    459 million, 256x256, FID 2.36
    B/32    133 million, 512x512, noise of scale 2, FID 4.02
    L/32    462 million, 512x512, noise of scale 2, FID 2.53

In their sampler the velocity near the data is also (x_t - x0) / max(t, 0.05); ours is exact. The
sizes H and G, whose dropout differs by block, are left out.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import jit, network
from configs.papers._published import average, published, run
from diffusion_jax.core.errors import unknown
from diffusion_jax.models.dit import SIZES

VARIANTS = ("B/16", "L/16", "B/32", "L/32")
START = {"B": 4, "L": 8}  # the first block with the tokens of the class
SCALES = {"B/16": 2.9, "L/16": 2.4, "B/32": 2.9, "L/32": 2.5}  # of guidance
IMAGES, BATCH = 1_281_167, 1024


def get_config(name: str = "B/16") -> ConfigDict:
    """Return the config of a size and a patch.

    Args:
      name: B/16, L/16, B/32 or L/32.

    Raises:
      UserError: for another name.
    """
    if name not in VARIANTS:
        raise unknown("variant", name, VARIANTS)
    size, patch = name[0], int(name[2:])
    noise = patch / 16
    config = published(
        "imagenet2012", image_size=16 * patch, channels=3, num_classes=1000, flip=True
    )
    config = jit(config, noise_scale=noise)
    config.label_dropout = 0.1
    config.model = network(
        "dit.DiT",
        patch=patch,
        noise_embedding="adm_plain",
        dtype="bfloat16",
        rms_norm=True,
        qk_norm="rms",
        swiglu=True,
        rope=True,
        bottleneck=128,
        registers=32,
        registers_from=START[size],
        class_registers=True,
        **SIZES[size],
    )
    epoch = IMAGES / BATCH
    config.optimizer.update(learning_rate=2e-4, warmup=round(5 * epoch), b2=0.95)
    # t below 0.9, where sigma / alpha = noise t / (1 - t)
    config.sampler.guide = f"interval(cfg(), high={9 * noise})"
    config.sampler.guidance = SCALES[name]
    return average(run(config, steps=round(600 * epoch), batch_size=BATCH, every=5000), 0.9999)
