r"""Import published weights as a workdir, for sample, evaluate, edit and other commands.

python -m experiments.import_weights --from=diffusers --path=FOLDER --out=WORKDIR
python -m experiments.import_weights --from=dit --path=DiT-XL-2-256x256.pt --out=WORKDIR \
    --autoencoder=WORKDIR_OF_ONE

diffusers: a UNet2DModel in DDPM's layout, an AutoencoderKL or a DiTTransformer2DModel, as
config.json and diffusion_pytorch_model.safetensors or .bin; a scheduler_config.json in the same
folder is used.
dit, sit, lightningdit: transformers by their authors' names. score_sde: checkpoints of the JAX or
the torch program. edm, edm2: the .pkl files of Karras et
al., whose code is not executed. guided_diffusion, improved_diffusion, consistency_models: the .pt
files of OpenAI. stable_diffusion: the folder of a pipeline of Stable Diffusion 1, 2 or XL; sd3:
of 3 or 3.5. A network of latents needs its autoencoder, imported before.
Nothing in a file is executed. docs/weights.md says more.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    flags.DEFINE_enum(
        "from",
        None,
        [
            "diffusers",
            "dit",
            "sit",
            "lightningdit",
            "score_sde",
            "edm",
            "edm2",
            "guided_diffusion",
            "improved_diffusion",
            "consistency_models",
            "stable_diffusion",
            "sd3",
        ],
        "publisher of the weights",
        required=True,
    )
    path = "file of weights, or its folder"
    values.path_flag("path", None, path, required=True, stored=values.READ)
    values.path_flag("out", None, "workdir to make", required=True, stored=values.FOLDER)
    values.path_flag(
        "autoencoder",
        "",
        "workdir of the imported autoencoder, for a network of latents (default: none)",
    )
    flags.DEFINE_string(
        "data",
        "folder",
        "name of the data set that the network was trained on (config.data.name), for evaluate and "
        "edit",
    )
    cli.launch("diffusion_jax.studies.weights.import_pipeline:import_weights", config="none")
