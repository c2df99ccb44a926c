r"""Compile a train step for devices that are not present: its memory, collectives and least time.

python -m experiments.plan --config=configs/imagenet256_latent.py:flow --topology=v5e:16x16 \
    --config.mesh.fsdp=16
python -m experiments.plan --config=configs/cifar10.py:edm,full --topology=v5e:2x4 --search
python -m experiments.plan --workdir=runs/sd --topology=v5e:2x4 --sampling

Topologies: a TPU slice (v5e, v5p, v6e; pip install 'diffusion_jax[tpu]', no TPU needed), cpu:8, or
gpu, which means the GPUs of this machine. The real step is compiled, which takes minutes for large
networks. --search compiles several settings and keeps each result in --out, so that running the
same command again resumes the search. --nocompiled only counts parameters, state and FLOPs.
docs/plan.md says more.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    flags.DEFINE_string(
        "topology",
        None,
        "devices to compile for: a TPU slice such as v5e:16x16 (v5e, v5p, v6e), cpu:8, or gpu",
        required=True,
    )
    values.path_flag("workdir", "", "folder of a trained model, instead of --config")
    flags.DEFINE_bool("sampling", False, "plan the program that draws samples, on one device")
    flags.DEFINE_bool("search", False, "find the cheapest remat, fsdp and accumulation that fit")
    flags.DEFINE_float(
        "hbm",
        0.0,
        "memory of a device in GiB; 0 takes that of the chip",
        lower_bound=0,
        upper_bound=1e6,
    )
    flags.DEFINE_bool(
        "compiled",
        True,
        "compile the step; --nocompiled counts parameters, state and FLOPs alone, in seconds",
    )
    flags.DEFINE_bool("json", False, "print the result as JSON instead of text")
    values.path_flag("out", "", "JSON file for all numbers (default: none is written)")
    short = ("sampler", "nfe", "guidance")  # of --sampling
    cli.launch("diffusion_jax.studies.plans:plan", config="either", short=short)
