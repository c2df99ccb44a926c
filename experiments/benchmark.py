r"""Measure speed on this machine: training, the training loop, the data pipeline, samplers.

python -m experiments.benchmark --config=configs/cifar10.py:vp
python -m experiments.benchmark --configs='configs/mnist.py:vp;configs/cifar10.py:vp' \
    --parts=training,loop --out=then.json
python -m experiments.benchmark --config=configs/cifar10.py:vp --parts=training --against=then.json
python -m experiments.benchmark --parts=sampling --nfe=10 \
    --samplers='ancestral.ddim;multistep.unipc@karras'

training: the compiled train step, on batches that are on the device. loop: a short run of the real
training loop, whose time is divided into steps, data, logging, checkpoints and the rest; every step
is waited for, so that nothing is hidden behind it. data: the input pipeline. sampling: a compiled
run of each sampler against as many bare network evaluations (fresh weights, no guidance, no clip),
and the sampler's own work on a denoiser that costs nothing. Programs take turns, so that other load
on the machine affects all of them alike; compilation is timed without the cache on disk. The data
are the config's if they are on this machine, else noise of their shape. --against compares times
within the spread of both runs, which does not cover that a machine is slower in another hour.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    flags.DEFINE_string(
        "configs", "", "several configs, with semicolons, instead of --config; without overrides"
    )
    flags.DEFINE_string(
        "parts", "training,data,sampling", "parts, with commas: training, loop, data, sampling"
    )
    flags.DEFINE_string(
        "samplers", "", "samplers, with semicolons, each with @grid if it has its own (default 12)"
    )
    values.integer_flag("nfe", 10, "number of network evaluations per image", 2, 10_000)
    flags.DEFINE_string(
        "shape", "", "height, width and channels of noise to measure on (default: the data)"
    )
    values.integer_flag("classes", 10, "number of classes of that noise", 0, 100_000)
    values.integer_flag("batch_size", 16, "number of images at once, of samplers", 1, 65_536)
    values.integer_flag("repeats", 20, "number of times that everything is timed", 1, 1000)
    values.integer_flag("steps", 120, "number of training steps of the loop", 12, 1_000_000)
    values.path_flag("out", "runs/benchmark.json", "JSON file for all numbers")
    values.path_flag("against", "", "earlier file of this command to compare with (default: none)")
    cli.launch(
        "diffusion_jax.studies.benchmark:benchmark",
        config="file",
        default="configs/cifar10.py:vp",
        short=(),
        spec="config_name",
    )
