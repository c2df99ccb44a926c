r"""Train a noise-conditional classifier, for classifier guidance; or resume the run in the workdir.

python -m experiments.train_classifier --config=configs/digits.py:vp \
    --workdir=runs/digits_classifier
python -m experiments.sample --workdir=runs/digits \
    --config.sampler.guide='classifier(workdir="runs/digits_classifier")'

The config is that of a diffusion model: its data, process, distribution of times, optimizer and
EMAs, and the options of its U-Net, whose downward half becomes the classifier
(models/classifier.py). At the end the accuracy on held-out images by noise level is printed and
written to classifier.md and classifier.json in the workdir.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag(
        "workdir",
        None,
        "folder of the run; running the same command again resumes training",
        required=True,
    )
    flags.DEFINE_enum(
        "pool", "attention", ["attention", "mean"], "how the last feature map becomes a vector"
    )
    cli.launch("diffusion_jax.studies.training:train_classifier", config="file", short=("steps",))
