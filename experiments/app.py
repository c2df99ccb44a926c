r"""Draw from a trained model in a page of the browser, on this machine.

python -m experiments.app --workdir=runs/a
python -m experiments.app --workdir=runs/a --port=8000 --config.sampler.nfe=20

The page draws images of a class or a prompt by any sampler, two samplers from the same seeds, and
inpaints by a mask that is painted on an image. It shows the command line of every picture. It needs
gradio (docs/guides/app.md), and listens on this machine alone unless --host says otherwise.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "folder of a trained model", required=True)
    flags.DEFINE_string(
        "host",
        "127.0.0.1",
        "address to listen on; 0.0.0.0 lets other machines use the page, without a password",
    )
    values.integer_flag("port", 7860, "port to listen on", 1, 65535)
    cli.launch("diffusion_jax.studies.app.server:serve", config="workdir", overridden="overridden")
