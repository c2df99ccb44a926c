"""CIFAR-10, 32x32 colour. `full` is the DDPM-sized network for an accelerator; `light` (the default) runs on a CPU, for a look.

    python -m experiments.train --config=configs/cifar10.py:edm,full --workdir=runs/cifar10

Variants: ddpm, vp, subvp, ve, edm, flow; each also with ',full'.
"""

from configs.base import base, network, split_size, variant


def get_config(name: str = "vp"):
    name, size = split_size(name)
    config = variant(base(), name)
    config.data.name = "cifar10"
    config.data.flip = True
    config.optimizer.update(learning_rate=2e-4, warmup=1000)
    config.training.update(eval_every=1000, sample_every=1000, checkpoint_every=1000)
    if size == "light":
        config.model = network("unet.UNet", stem=2, width=64, multipliers=(1, 2), blocks=2, attention=(8,), head_width=32)
        config.training.steps = 20_000
        config.ema.halflives = (100_000,)
    else:
        config.model = network("unet.UNet", width=128, multipliers=(2, 2, 2), blocks=3, attention=(16,), head_width=64,
                               dropout=0.13, updown="resblock", dtype="bfloat16")  # fmt: skip
        config.data.batch_size = 512
        config.training.update(steps=400_000, steps_per_call=10, eval_every=5000, sample_every=5000, checkpoint_every=5000)
        config.ema.halflives = (500_000,)
    return config
