r"""Tables of numbers and categories: the rows of a CSV or Parquet file.

    python -m experiments.train --config=configs/tables.py --config.data.path=FILE.csv \
        --workdir=runs/table
    python -m experiments.train --config=configs/tables.py:flow,full --config.data.path=FILE.csv \
        --config.data.label=COLUMN --config.data.exclude=ID --workdir=runs/by_class

Data: a heading, and a row for each sample; FILE_test.csv may have the rows that are held out
(docs/guides/tables.md). Network: an MLP. Sizes: light, for hundreds of rows, which keeps the
weights of the smallest held-out loss; and full, for thousands of rows. Time: one or two minutes on
one CPU core.

Variants: ddpm, vp, subvp, ve, edm, flow (the default), each with ',full' for the larger size.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.base import base, split_size, variant
from diffusion_jax.assembly.components import network
from diffusion_jax.assembly.specs import with_args


def get_config(name: str = "flow") -> ConfigDict:
    """Return the config of a variant and a size.

    Args:
      name: ddpm, vp, subvp, ve, edm or flow; and optionally a comma and light or full.

    Raises:
      UserError: for an unknown variant or size.
    """
    name, size = split_size(name)
    config = variant(base(), name)
    config.data.update(name="table", batch_size=64 if size == "light" else 256)
    if size == "light":
        config.model = network("mlp.MLP", width=128, blocks=2, dropout=0.2)
        config.training.update(steps=1500, eval_every=100, checkpoint_every=100, best="eval_loss")
        config.sampler.checkpoint = "best"
    else:
        config.model = network("mlp.MLP", width=256, blocks=4)
        config.training.update(steps=4000, eval_every=500, checkpoint_every=500)
    config.training.sample_every = config.training.steps
    if name == "edm":  # channels have variance 1
        config.parameterization = with_args(config.parameterization, sigma_data=1.0)
        config.objective = with_args(config.objective, sigma_data=1.0)
    if name == "ve":
        config.process = with_args(config.process, sigma_max=30.0)
    config.optimizer.learning_rate = 1e-3
    config.sampler.clip = "none"  # normalized values have no bounds
    config.sampler.nfe = 200  # the network is small
    return config
