"""Evaluate samples at several guidance scales and by several guides: fidelity against diversity.

python -m experiments.guidance_sweep --workdir=runs/a --guides='cfg(); interval(high=2.0)'
python -m experiments.guidance_sweep --mixture --out=docs/images/guidance_mixture.png

All cells use the same seeds. Writes guidance_sweep.md, .json, .png and _strips.png into the
workdir. Finished cells are kept in its folder guidance_sweep/ and are not run again. A guide is
compiled once for all scales. --mixture draws the same for a mixture whose denoisers are exact.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "folder of a trained model")
    flags.DEFINE_string(
        "scales", "0,0.5,1,1.5,2,3,4,6", "guidance scales, with commas; 1 is no guidance"
    )
    flags.DEFINE_string(
        "guides",
        "cfg(); cfg(rescale=0.7); interval(low=0.2, high=3.0)",
        "guides, separated by ';'; see diffusion_jax/denoisers/guides.py",
    )
    values.judge_flags(1000, "number of images in each cell", standard="accuracy,frechet,prdc")
    flags.DEFINE_bool(
        "mixture", False, "draw the picture of a mixture with exact denoisers instead"
    )
    values.path_flag("out", "guidance_mixture.png", "picture that --mixture writes")
    study = "diffusion_jax.studies.sweep.guidance_sweep"
    other = {"mixture": f"{study}:draw_mixture"}
    cli.launch(f"{study}:guidance_sweep", config="workdir", instead=other, short=("sampler", "nfe"))
