"""What things cost on this machine: training, the loop around it, the data, samplers.

python -m experiments.benchmark --config=configs/cifar10.py:vp
python -m experiments.benchmark --configs='configs/mnist.py:vp;configs/cifar10.py:vp' --parts=training,loop --out=then.json
python -m experiments.benchmark --config=configs/cifar10.py:vp --parts=training --against=then.json
python -m experiments.benchmark --parts=sampling --samplers='ancestral.ddim;multistep.unipc@karras' --nfe=10

Four parts. **training**: the compiled train step alone, on batches that are on the device already.
**loop**: a short run of the real training loop, every moment of which is counted as step, data,
logging, checkpointing or the rest; the step is waited for at each call, so nothing that the loop
does beside it hides. **data**: the input pipeline alone. **sampling**: one compiled base.sample
against as many bare evaluations in one compiled scan, the same network with fresh weights, no
guidance, no clip; and the sampler's own work, timed on a denoiser that costs nothing. Sampling
programs take turns in every round, so that what else the machine does strikes them alike.

Data are those of the config if it has data.path or they are embedded; else, or with --shape, noise
of the config's shape. Compilation is timed without the cache on disk. On a busy machine the
difference of two times is uncertain by some percent, and from one hour to the next by more than
--against can know, which compares with the spread inside the two runs.

To add a part: a function (config, settings) -> {'rows', 'columns', 'facts'} in PARTS; rows have
'config' and 'what' by which they are compared, and 'seconds', all that was measured.
"""

from __future__ import annotations

import jax
from absl import flags

from diffusion_jax import files, parsing, provenance
from diffusion_jax.assembly import config_files
from diffusion_jax.errors import UserError
from diffusion_jax.report import tables
from diffusion_jax.studies import benchmark
from experiments import cli, values


def main(config) -> None:

    FLAGS = flags.FLAGS
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is measured
    settings = {
        name: FLAGS[name].value for name in ("classes", "nfe", "batch_size", "repeats", "steps")
    }
    settings["samplers"] = [part.strip() for part in FLAGS.samplers.split(";") if part.strip()]
    settings["shape"] = parsing.integers("shape", FLAGS.shape, 1, 4096)
    if len(settings["shape"]) not in (0, 1, 3):
        raise UserError(
            f"--shape={FLAGS.shape}: write height, width and channels, such as 32,32,3; one number for points"
        )
    out = parsing.output("out", FLAGS.out, ".json")[".json"]
    parts, stored = (
        benchmark.chosen_parts(FLAGS.parts),
        files.load_json(FLAGS.against, benchmark.earlier) if FLAGS.against else None,
    )
    specs = [spec.strip() for spec in FLAGS.configs.split(";") if spec.strip()]
    configs = {spec: config_files.load_config(spec) for spec in specs} or {FLAGS.config: config}
    stamp = provenance.provenance(
        {name: one.to_dict() for name, one in configs.items()}, config.seed
    )

    def keep(found: dict, **more) -> dict:
        record = {
            name: {key: part[key] for key in ("rows", "facts")} for name, part in found.items()
        }
        record |= {"settings": settings, "configs": configs, "provenance": stamp, **more}
        files.save_json(out, record)
        return record

    found = benchmark.measure(configs, parts, settings, keep)
    for name, part in found.items():
        print(
            f"## {name}\n\n{part['facts']}\n\n{tables.markdown_table(part['rows'], part['columns'])}"
        )
    if stored:
        rows, other = benchmark.compare(stored, found), benchmark.differences(stored, keep(found))
        keep(found, against={"path": FLAGS.against, "rows": rows, "differences": other})
        print(
            f"## against {FLAGS.against}\n\n{tables.markdown_table(rows, benchmark.COMPARED) if rows else 'nothing in common'}"
        )
        print("".join(f"not the same machine or software: {line}\n" for line in other), end="")
    print(out)


if __name__ == "__main__":
    flags.DEFINE_string(
        "configs", "", "instead of --config, several separated by ';'; overrides do not reach them"
    )
    flags.DEFINE_string(
        "parts", "training,data,sampling", f"with commas: {', '.join(benchmark.PARTS)}"
    )
    flags.DEFINE_string(
        "samplers",
        ";".join(benchmark.SAMPLERS),
        "specs separated by ';', each with @grid if it wants its own",
    )
    values.integer_flag("nfe", 10, "network evaluations per image", 2, 10_000)
    flags.DEFINE_string(
        "shape",
        "",
        "noise of this height, width and channels instead of data; by default the config's data",
    )
    values.integer_flag("classes", 10, "with --shape", 0, 100_000)
    values.integer_flag(
        "batch_size",
        16,
        "images at once, of samplers; training has config.data.batch_size",
        1,
        65_536,
    )
    values.integer_flag("repeats", 20, "how often everything is timed", 1, 1000)
    values.integer_flag("steps", 120, "of the training loop", 12, 1_000_000)
    values.path_flag("out", "runs/benchmark.json", "the file of all numbers")
    values.path_flag("against", "", "a file that this command wrote before, to compare with")
    cli.launch(main, config="file", default="configs/cifar10.py:vp", short=())
