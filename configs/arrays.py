r"""Arrays of any shape: vectors, series, images and volumes of numbers in one file.

    python -m experiments.train --config=configs/arrays.py --config.data.path=FILE.npz \
        --workdir=runs/mine
    python -m experiments.train --config=configs/arrays.py:edm --config.data.path=FILE.npy \
        --config.model.width=64 --workdir=runs/wide

Data: 'data' (N, N_1, ..., N_d, C) with d = 0 to 3, as uint8, int16, float16 or float32, and
optionally 'labels' (N,), in an .npz file; or an .npy file (docs/data.md). Time: the network is
chosen by the shape, for one or two CPU cores: a MLP for vectors, else a U-Net, or a transformer
where the extents are odd. Another one is named by --config.model.name.

Variants: ddpm, vp, subvp, ve, edm, flow (the default).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import base, variant


def get_config(name: str = "flow") -> ConfigDict:
    """Return the config of a variant, whose network the shape of the data will choose.

    Args:
      name: ddpm, vp, subvp, ve, edm or flow.

    Raises:
      UserError: for an unknown variant.
    """
    config = variant(base(), name)
    config.data.update(name="arrays", batch_size=64)
    config.model = ConfigDict({"name": "auto"})  # assembly/by_shape.py
    config.optimizer.learning_rate = 1e-3
    config.training.update(steps=3000, eval_every=500, sample_every=500, checkpoint_every=500)
    config.sampler.clip = "none"  # normalized values have no bounds
    return config
