r"""Evaluate a trained model's images: scores, their spread over seeds, and those of real images.

python -m experiments.evaluate --workdir=runs/a --num=1000 --repeats=5
python -m experiments.evaluate --workdir=runs/captions
python -m experiments.evaluate --workdir=runs/a --features=pixels,classifier,inception \
    --metrics=frechet,kid,prdc,memorization

A model of captions draws the captions that were kept from training, or the test captions. Prints a
table and writes evaluation.json into the workdir. --reference takes a file of
experiments.statistics. Metrics that the data do not allow (those of labels, or of more images than
there are) are left out, with a note before anything is sampled. An autoencoder is also judged on
held-out images: rate, distortion and bounds on the likelihood in nats, PSNR, active units.
"""

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "folder of a trained model", required=True)
    standard = "accuracy,frechet,kid,prdc, and those of logits, as far as the features allow"
    values.judge_flags(1000, "number of images in each set", standard=standard)
    values.integer_flag("repeats", 3, "number of sets, which have disjoint seeds", 1, 1000)
    cli.launch("diffusion_jax.studies.evaluation:evaluate", config="workdir")
