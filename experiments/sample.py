r"""Draw images from a trained model: WORKDIR/samples.npz (uint8) and samples.png.

python -m experiments.sample --workdir=runs/a --num=64 --labels=0,1,2 \
    --config.sampler.name=ode.edm_heun --seeds=0-63
python -m experiments.sample --workdir=runs/folder --labels=cat,dog --num=20
python -m experiments.sample --workdir=runs/b --prompt="a bold seven" --prompt="a thin 3" \
    --guidance=4
python -m experiments.sample --workdir=runs/a --num=30 --gif
python -m experiments.sample --workdir=runs/c --condition=1.5,20 --num=20
python -m experiments.sample --workdir=runs/d --dense=small.png --num=8

The same seed always gives the same image. The picture has a row for each class, with its name. A
model of captions draws every prompt from every seed: a row of the picture is a prompt, a column a
seed. A model that arrays condition takes those of test examples unless others are given, and
shows condition, sample and truth. --gif also writes samples.gif: x_t and x0-hat side by side.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "folder of a trained model", required=True)
    values.integer_flag(
        "num",
        None,
        "number of images to draw, or of images of each prompt (default 64, or 8 of each prompt); "
        "not used with --seeds",
        1,
        1_000_000,
    )
    values.size_flag()
    flags.DEFINE_string(
        "seeds", "", "one image for each seed, such as 0-63,100 (default 0 to num - 1)"
    )
    flags.DEFINE_string(
        "labels",
        "",
        "classes to draw in turn, by number or name, such as 0,1,2 or cat,dog; 'any' draws without "
        "a class (default all classes)",
    )
    flags.DEFINE_multi_string("prompt", [], "caption to draw, for a model of captions")
    flags.DEFINE_string(
        "negative_prompt", "", "caption that guidance leads away from (default: no caption)"
    )
    values.condition_flags()
    flags.DEFINE_float(
        "guidance",
        None,
        "scale of the guidance, 1 for none (default config.sampler.guidance)",
        lower_bound=0,
        upper_bound=1000,
    )
    values.path_flag("out", "", "files to write, without the ending (default WORKDIR/samples)")
    flags.DEFINE_bool("gif", False, "also write an animation of x_t and x0-hat, NAME.gif")
    values.integer_flag("gif_frames", 40, "number of frames of the animation, at most", 2, 1000)
    flags.DEFINE_float(
        "gif_fps", 12.0, "frames of the animation in a second", lower_bound=1, upper_bound=50
    )
    cli.launch("diffusion_jax.studies.generation:sample", config="workdir")
