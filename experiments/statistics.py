"""Compute reference statistics of a data set: the mean and covariance of its features.

python -m experiments.statistics --config=configs/digits.py --features=classifier --out=digits.npz
python -m experiments.statistics --workdir=runs/a --features=inception --out=reference.npz

Running the same command again resumes an interrupted run. experiments.evaluate takes the file with
--reference and refuses it for another extractor, data set, size or resize.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag(
        "workdir", None, "folder of a trained model whose data to describe, instead of --config"
    )
    flags.DEFINE_string(
        "features",
        "",
        "features of the images: pixels, thumbnails, classifier, inception, inception_spatial, "
        "efficientnet_lite0, dinov2_vitb14, dinov2_vitl14 or clip_vitl14_336 (default pixels up "
        "to 1,000 numbers an image, else classifier)",
    )
    flags.DEFINE_string("split", "train", "split of the data set, train or test")
    values.integer_flag(
        "num", 0, "number of images, from the first of the split; 0 takes all", 0, 1_000_000
    )
    values.path_flag("out", None, "file to write, ending in .npz", required=True)
    cli.launch("diffusion_jax.studies.reference_statistics:statistics", config="either", short=())
