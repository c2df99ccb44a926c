r"""Edit held-out samples with a trained model: inpaint, colorize, upscale, interpolate, translate.

python -m experiments.edit --workdir=runs/a --task=inpaint --mask=half --method=pigdm
python -m experiments.edit --workdir=runs/a --task='superres(factor=4,std=0.05)' --method=ddnm \
    --labels=own --draws=3
python -m experiments.edit --workdir=runs/a --task=translate --labels=3,7 --config.sampler.nfe=100
python -m experiments.edit --workdir=runs/a --task=sdedit --image=mine.png --labels=7
python -m experiments.edit --workdir=runs/emoji --task=sdedit --prompt="a blue heart" \
    --config.sampler.guidance=4
python -m experiments.edit --workdir=runs/series --mask='half(axis=0)' --draws=10

The model is not trained for any of these tasks. Tasks with a --method: inpaint (with --mask),
colorize, superres, deblur, linear, saturate; without: interpolate, sdedit, translate. Writes
WORKDIR/edits/TASK-METHOD.png, strips of measurement, result and truth, and a .json file with the
PSNR of every image; for series, volumes and vectors the errors in the units of the data next to
those of interpolation, and an .npz file. docs/inverse.md says more.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "folder of a trained model", required=True)
    flags.DEFINE_string("task", "inpaint", "task, with its arguments as in a call (see above)")
    flags.DEFINE_string(
        "mask",
        "",
        "mask of inpaint: half, 'box(side=0.5)', 'random(keep=0.3)', 'channels(known=(0,))', a "
        "picture that is white where pixels are known, or an .npy file of ones and zeros (default "
        "half)",
    )
    flags.DEFINE_string(
        "method", "ddnm", "method: replacement, repaint, dps, pigdm, ddnm or unguided"
    )
    flags.DEFINE_string(
        "labels",
        "",
        "condition: own (the true class, caption, numbers and dense array), or classes in turn, by "
        "number or name, such as 3,cat (default none); for translate target classes (default all)",
    )
    flags.DEFINE_multi_string("prompt", [], "caption, for a model of captions; used in turn")
    flags.DEFINE_string(
        "negative_prompt", "", "caption that guidance leads away from (default: no caption)"
    )
    flags.DEFINE_multi_string("image", [], "picture file to edit, instead of held-out images")
    values.integer_flag("num", None, "number of held-out images (default 8)", 1, 1_000_000)
    values.integer_flag("first", None, "number of the first of them (default 0)", 0, 10**9)
    values.integer_flag("draws", 1, "number of results for each image", 1, 100_000)
    values.integer_flag("seed", 0, "seed of the first image; the others follow", 0, 2**32 - 1)
    flags.DEFINE_string(
        "strength", "0.3,0.5,0.7", "strengths of sdedit: shares of the sampler's steps, in (0, 1]"
    )
    values.integer_flag(
        "scale", 0, "enlargement of pixels; 0 enlarges to about 48 pixels a side", 0, 64
    )
    values.path_flag(
        "out", "", "files to write, without the ending (default WORKDIR/edits/TASK-METHOD)"
    )
    cli.launch("diffusion_jax.studies.edits.command:edit", config="workdir")
