"""Reference statistics of a data set: mean and covariance of its features, in a file that says what
they are of.

python -m experiments.statistics --config=configs/digits.py --features=classifier --out=digits.npz
python -m experiments.statistics --workdir=runs/a --features=inception --out=reference.npz

The same command goes on where it was interrupted. experiments.evaluate takes the file with
--reference and refuses it for another extractor, data set, size or resize.
"""

from __future__ import annotations

from absl import flags

from diffusion_jax import parsing
from diffusion_jax.assembly import workdir
from diffusion_jax.errors import UserError, printable, unknown
from diffusion_jax.evaluation import judge, statistics
from experiments import cli, values


def main(config) -> None:

    FLAGS = flags.FLAGS
    if FLAGS.split not in ("train", "test"):
        raise unknown("split", FLAGS.split, ("train", "test"))
    out = parsing.output("out", FLAGS.out, ".npz")[".npz"]
    dataset = workdir.images(config, FLAGS.workdir)
    if len(dataset.image_shape) != 3:
        raise UserError(
            f"data.name={config.data.name} is a set of points; statistics are of images"
        )
    extractor = judge.extractor_for(
        FLAGS.features or judge.default_features(dataset.train), dataset.train
    )
    found = statistics.compute(
        extractor,
        getattr(dataset, FLAGS.split),
        dataset.name,
        FLAGS.split,
        FLAGS.num or None,
        partial=f"{out}.partial.npz",
    )
    statistics.save(out, found)
    print(f"{out}: " + printable(", ".join(f"{key} {value}" for key, value in found.of.items())))


if __name__ == "__main__":
    values.path_flag(
        "workdir", None, "the folder of a trained model, for its data (instead of --config=FILE.py)"
    )
    flags.DEFINE_string(
        "features",
        "",
        "features of the images: pixels, thumbnails, classifier, inception or efficientnet_lite0 "
        "(default pixels up to 1,000 numbers an image, else classifier)",
    )
    flags.DEFINE_string("split", "train", "train or test")
    values.integer_flag("num", 0, "the split's first images alone; 0: all", 0, 1_000_000)
    values.path_flag("out", None, "the .npz to write", required=True)
    cli.launch(main, config="either", short=())
