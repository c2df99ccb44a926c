r"""Publish a trained model: a small folder to use, to share and to upload to a hub as it is.

python -m experiments.publish --workdir=runs/a --out=pretrained/a --license=apache-2.0 \
    --data_source="Example, https://example.org" --data_license="CC BY 4.0"
python -m experiments.publish --workdir=runs/a --out=pretrained/a --sampler=dpmpp_2m --nfe=20 \
    --config.sampler.ema=50k

Writes config.json, data.json, weights.safetensors, the optimized grids of the workdir,
manifest.json, a model card (README.md) and samples.png; a model of latents has its autoencoder
with it. The sampling settings choose the weights and are published with them. Every command takes
the folder as --workdir, also by the address where it is uploaded (docs/guides/publishing.md).
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "folder of a trained model", required=True)
    values.path_flag(
        "out",
        None,
        "folder to write; a published model that is there is replaced",
        required=True,
    )
    flags.DEFINE_enum(
        "dtype", "float16", ["float16", "bfloat16"], "number type to which weights are rounded"
    )
    flags.DEFINE_string(
        "evaluations",
        "",
        "files of experiments.evaluate for the model card, with commas (default "
        "WORKDIR/evaluation.json)",
    )
    flags.DEFINE_multi_string(
        "prompt",
        [],
        "caption of a row of the picture, for a model of captions (default its data's)",
    )
    flags.DEFINE_bool("unfinished", False, "publish a run that has not reached its last step")
    flags.DEFINE_string("license", "", "license of the weights, such as apache-2.0")
    flags.DEFINE_string("data_license", "", "license of the data, for the model card")
    flags.DEFINE_string("data_source", "", "where the data came from, for the model card")
    flags.DEFINE_string("limitations", "", "what else the model card says of the model's limits")
    cli.launch("diffusion_jax.studies.weights.publish:publish", config="workdir")
