"""Flags for paths, whole numbers and conditions, and those of every command that judges images."""

from __future__ import annotations

from collections.abc import Iterable

from absl import flags

from diffusion_jax.assembly import config_schema
from experiments import usage

flags.disclaim_key_flags()  # a flag belongs to the command that asks for it here

# what a URL such as gs://BUCKET/NAME in a flag means: the folder of a trained model, a folder to
# fetch and to write to, a file to write in such a folder, something to read, and data that are
# fetched with config.data.path
MODEL, FOLDER, FILE, READ, DATA = "model", "folder", "file", "read", "data"
USUAL = {"workdir": MODEL, "teacher": MODEL, "out": FILE, "images": DATA, "reference": READ}
PATHS: dict[str, str] = {}  # the flags that path_flag defined -> one of these; '': local paths only


def path_flag(
    name: str, default: str | None, help: str, *, required: bool = False, stored: str = ""
) -> None:
    """Define a flag for a file or a folder: ~ is the home directory, and '' is refused.

    Args:
      name: the name of the flag.
      default: its default.
      help: a phrase for --help, to which the default is added.
      required: whether the command needs it.
      stored: what a URL means: MODEL, FOLDER, FILE, READ or DATA; '' takes what is usual for the
        name, and refuses URLs where nothing is.
    """
    flags.DEFINE_string(name, default, help, required=required)
    PATHS[name] = stored or USUAL.get(name, "")


def integer_flag(
    name: str, default: int | None, help: str, low: int, high: int, *, required: bool = False
) -> None:
    """Define a flag for a whole number; one out of range would exhaust the memory, or hang.

    Args:
      name: the name of the flag.
      default: its default.
      help: a phrase for --help, to which the default is added.
      low: the least value.
      high: the largest value.
      required: whether the command needs it.
    """
    flags.DEFINE_integer(name, default, help, lower_bound=low, upper_bound=high, required=required)


def size_flag() -> None:
    """Define --size: height and width of images."""
    flags.DEFINE_string(
        "size",
        "",
        "height and width of images, such as 64x96, for a network that takes several sizes, such "
        "as one that was trained with config.data.buckets (default those of training)",
    )


def condition_flags() -> None:
    """Define --condition and --dense: the arrays that condition samples."""
    flags.DEFINE_string(
        "condition",
        "",
        "numbers that condition the model, such as 1.5,20, several in turn as 1,2;3,4, or an .npz "
        "or .npy file of 'condition'; 'none' draws without (default those of test examples)",
    )
    path_flag(
        "dense",
        "",
        "file of what conditions the model in every position: an image, or an .npz or .npy of "
        "arrays; 'none' draws without (default test examples)",
        stored=READ,
    )


def judge_flags(count: int | None, what: str, *, least: int = 10, standard: str) -> None:
    """Define --num, --features, --metrics and --reference: how many images are judged, and by what.

    Args:
      count: the default number of images.
      what: a phrase for the number of images, for --help.
      least: the least number.
      standard: the metrics that are measured by default, for --help.
    """
    integer_flag("num", count, what, least, 10_000_000)
    flags.DEFINE_string(
        "features",
        "",
        "features of the images, with commas, the first of which decides: values (of arrays that "
        "are not images), pixels, thumbnails, classifier, inception, inception_spatial, "
        "efficientnet_lite0, dinov2_vitb14, dinov2_vitl14, both also with _reg (registers), "
        "clip_vitl14_336 (default pixels up to 1,000 numbers an image, else inception above "
        "32x32 where its weights are installed, else classifier)",
    )
    flags.DEFINE_string(
        "metrics",
        "",
        "metrics, with commas: accuracy, frechet, kid, prdc, class_accuracy, inception_score, "
        "memorization, mmd, mmd_median, sliced_wasserstein, frechet_infinity, frechet_interval; "
        "fid, sfid, fd_dinov2 and cmmd add "
        f"the features that they are of (default {standard})",
    )
    path_flag(
        "reference",
        "",
        "file of experiments.statistics to compare with (default: 10,000 training images)",
    )


def without_effect(names: Iterable[str], mode: str, modes: Iterable[str]) -> dict[str, str]:
    """What to say of each flag that the command line sets, where the command makes no use of it.

    Args:
      names: the flags of the command.
      mode: the flag that changes what the command does; '' if no such flag is set.
      modes: all flags that do.
    """
    found = {}
    for name in names:
        if not flags.FLAGS[name].present or name in modes:
            continue
        said = f"--{name}={flags.FLAGS[name].value}"
        if mode:
            found[name] = f"{said} has no effect with --{mode}; leave it out"
            continue
        keys = (usage.SHORT.get(name), f"sampler.{name}", name)
        key = next((key for key in keys if key in config_schema.KEYS), "")
        remedy = f"set that of the model by --config.{key}=VALUE" if key else "leave it out"
        other = list(modes)[-1]  # the one before it, --list, takes no flags
        found[name] = f"{said} belongs to --{other}, and has no effect on a trained model; {remedy}"
    return found
