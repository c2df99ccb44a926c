r"""Measure speed on this machine: training, its loop, data, samplers, and other programs.

python -m experiments.benchmark --config=configs/cifar10.py:vp
python -m experiments.benchmark --configs='configs/mnist.py:vp;configs/cifar10.py:vp' \
    --parts=training,loop --out=then.json
python -m experiments.benchmark --config=configs/cifar10.py:vp --parts=training --against=then.json
python -m experiments.benchmark --parts=sampling --samplers='ancestral.ddim;multistep.unipc@karras'
python -m experiments.benchmark --parts=peers --peers='edm=FOLDER;diffusers'

training: the compiled train step, on batches that are on the device. loop: a short run of the real
training loop: steps, data, logging, checkpoints and the rest; every step is waited for. data: the
input pipeline. sampling: each sampler against as many bare network evaluations (fresh weights, no
guidance, no clip), and its own work on a denoiser that costs nothing. kernels: attention, and the
gradient of a convolution in a loop. peers: other programs with the same network (docs/speed.md).
Programs take turns, so that other load affects all alike; the cache of compilation is off. The data
are the config's if they are on this machine, else noise. --against compares times within the spread
of both runs, not the hour at which they were made.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    flags.DEFINE_string(
        "configs", "", "several configs, with semicolons, instead of --config; without overrides"
    )
    flags.DEFINE_string(
        "parts",
        "training,data,sampling",
        "parts to measure, with commas: training, loop, data, sampling, kernels, peers",
    )
    flags.DEFINE_string(
        "samplers", "", "samplers, with semicolons, each with @grid if it has its own (default 12)"
    )
    values.integer_flag("nfe", 10, "number of network evaluations per image", 2, 10_000)
    flags.DEFINE_string(
        "shape", "", "height, width and channels of noise to measure on (default: the data)"
    )
    values.integer_flag("classes", 10, "number of classes of that noise", 0, 100_000)
    batch = "number of images at once, of samplers (default 16, on an accelerator 256)"
    values.integer_flag("batch_size", 0, batch, 0, 65_536)
    values.integer_flag("repeats", 20, "number of times that everything is timed", 1, 1000)
    values.integer_flag("steps", 120, "number of training steps of the loop", 12, 1_000_000)
    flags.DEFINE_string(
        "peers", "diffusers", "edm=FOLDER, adm=FOLDER, dit=FOLDER, diffusers, with ;"
    )
    presets = "sizes of peers: accelerator, accelerator_quick, cpu or tiny (default: by the device)"
    flags.DEFINE_string("preset", "", presets)
    values.path_flag("peer_python", "", "Python that has PyTorch, for peers (default: this one)")
    values.integer_flag("peer_batch", 0, "batch of peers (default: the preset's)", 0, 65_536)
    values.path_flag("out", "runs/benchmark.json", "JSON file for all numbers")
    values.path_flag("against", "", "earlier file of this command to compare with (default: none)")
    cli.launch(
        "diffusion_jax.studies.benchmark.command:benchmark",
        config="file",
        default="configs/cifar10.py:vp",
        short=(),
        spec="config_name",
    )
