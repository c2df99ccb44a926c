r"""Train a model, or resume the run where the same command stopped.

python -m experiments.train --config=configs/digits.py:vp --workdir=runs/a \
    --config.optimizer.learning_rate=3e-4
"""

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag(
        "workdir",
        None,
        "folder of the run; running the same command again resumes training",
        required=True,
    )
    cli.launch("diffusion_jax.studies.training:train", config="file", overridden="asked")
