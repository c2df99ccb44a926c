"""The style of all figures: colors, fonts, axes, and the file that a figure is written to."""

from __future__ import annotations

import contextlib
import math
import os
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

matplotlib = deferred("matplotlib")
matplotlib_figure = deferred("matplotlib.figure")
ticker = deferred("matplotlib.ticker")

INK, FAINT, RULE, PAPER = "#222222", "#767676", "#e2e2e2", "#ffffff"

# Okabe & Ito (2008), distinguishable with any color vision; yellow is left out because it is too
# pale on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5A5A5A", "#882255")
NAMES = ("blue", "orange", "green", "pink")  # of the first of them
MORE_COLORS = ("#332288", "#999933", "#117733", "#8B5A2B")  # after Tol (2021), for many curves
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

STYLE = {
    "text.parse_math": False,  # names of classes may contain dollars
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.09,
    "savefig.dpi": 160,
    "savefig.facecolor": PAPER,
}


@contextlib.contextmanager
def figure(
    path: str | os.PathLike,
    panels: int,
    size: tuple[float, float] = (5.2, 3.5),
    rows: int = 1,
    *,
    title: str | None = None,
    title_size: float | None = None,
) -> Iterator[list[Axes]]:
    """A figure in this style, written to a file when the block ends without an error.

    Args:
      path: the file to write, atomically.
      panels: the number of panels.
      size: the size of a panel, in inches.
      rows: the number of rows in which the panels stand.
      title: stands at the top.
      title_size: the size of the title, in points.

    Yields:
      The axes of the panels.
    """
    with matplotlib.rc_context(STYLE):
        columns = math.ceil(panels / rows)
        drawn = matplotlib_figure.Figure(
            figsize=(size[0] * columns, size[1] * rows), layout="constrained"
        )
        axes = list(drawn.subplots(rows, columns, squeeze=False).ravel())
        for axis in axes[panels:]:
            axis.remove()
        yield axes[:panels]
        if title:
            look = {} if title_size is None else {"fontsize": title_size}
            drawn.suptitle(title, x=0.01, ha="left", fontweight="bold", **look)
        with atomic_path(path) as temporary:
            drawn.savefig(temporary)


def wrapped(label: str) -> str:
    """Break the label of an axis into lines that fit next to a panel.

    Args:
      label: one line of text, which is broken after at most 36 characters.
    """
    return "\n".join(textwrap.wrap(label, 36))


def log_if_wide(axis: Axes) -> None:
    """Make the y axis logarithmic if positive values span more than a factor of four.

    Its lower limit follows the lines: a bar that reaches 0 has no end on a logarithmic axis.

    Args:
      axis: the axes, with all their lines drawn.
    """
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axis.lines])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 4 * values.min():
        axis.set_yscale("log")
        axis.set_ylim(bottom=values.min() / (values.max() / values.min()) ** 0.05)
        plain_logarithms(axis.yaxis, math.log10(values.max() / values.min()))


def plain_logarithms(axis: Axis, decades: float) -> None:
    """Show the ticks of a logarithmic axis as plain numbers, such as 0.5 and not 5 x 10^-1.

    Args:
      axis: the x or y axis.
      decades: the powers of ten that the axis spans; below 3 there are ticks at 2 and 5 as well.
    """
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def error_bars(
    axis: Axes,
    x: Sequence[float],
    y: Sequence[float],
    *,
    xerr: Sequence[float] | None = None,
    yerr: Sequence[float] | None = None,
    color: str = RULE,
) -> None:
    """Draw thin bars behind points, half an interval to both sides of each; none where all are 0.

    Args:
      axis: the axes.
      x: the points.
      y: likewise.
      xerr: half the widths of horizontal intervals, 0 where one is not known.
      yerr: half the widths of vertical intervals, likewise.
      color: the color of the bars.
    """
    if any(error is not None and np.any(error) for error in (xerr, yerr)):
        look = {"fmt": "none", "ecolor": color, "elinewidth": 1.2, "alpha": 0.6, "zorder": 1}
        axis.errorbar(x, y, xerr=xerr, yerr=yerr, **look)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number.

    Args:
      value: anything; None, text and arrays are not numbers.
    """
    return value is not None and np.isscalar(value) and math.isfinite(value)
