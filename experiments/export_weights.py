r"""Export a trained network to a published format: the inverse of experiments.import_weights.

python -m experiments.export_weights --workdir=WORKDIR --to=diffusers \
    --path=FOLDER [--config.sampler.ema=50k]
python -m experiments.export_weights --workdir=WORKDIR --to=diffusers --path=FOLDER --label=3

A U-Net becomes a pipeline of diffusers (model_index.json, unet/, scheduler/), from which
DDIMPipeline.from_pretrained(FOLDER) and DDPMPipeline.from_pretrained(FOLDER) draw; an autoencoder
a DiT or a SiT becomes config.json and a file of weights. The weights are those that
experiments.sample uses. docs/weights.md says which networks can be exported.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "folder of a trained model", required=True)
    flags.DEFINE_enum("to", None, ["diffusers", "dit", "sit"], "format to write", required=True)
    values.path_flag("path", None, "folder to write to", required=True, stored=values.FOLDER)
    flags.DEFINE_string(
        "label",
        "",
        "class to export of a model of classes, by number or name; 'any' exports the model without "
        "a class",
    )
    flags.DEFINE_bool(
        "variance",
        False,
        "keep a learned variance, which DDPMPipeline can use and DDIMPipeline cannot",
    )
    flags.DEFINE_bool(
        "network_only",
        False,
        "export a U-Net without pipeline and scheduler; its timestep is then 1000 c_noise",
    )
    cli.launch(
        "diffusion_jax.studies.weights.export_weights:export_weights", config="workdir", short=()
    )
