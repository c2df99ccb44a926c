"""Train on the embedded digits, sample, evaluate and compare samplers, in a few minutes.

python -m experiments.quickstart            (or: make quickstart)
"""

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag(
        "workdir",
        "runs/quickstart",
        "folder of the run; running the same command again resumes training",
    )
    values.integer_flag(
        "num", 200, "number of images of each sampler in the comparison", 20, 1_000_000
    )
    cli.launch(
        "diffusion_jax.studies.quickstart:quickstart",
        config="file",
        default="configs/digits.py:vp",
    )
