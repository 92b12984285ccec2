"""One look for all figures: theory in black lines, simulation in colour, readable at column width."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

COLUMN, PAGE = 3.4, 7.0
"""Widths of one column and of a page, in inches."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F5FA8", "#8C6D31")
"""Okabe and Ito's colours, which remain distinct under colour blindness (without yellow and black), and two more."""

THEORY: dict[str, Any] = {"color": "black", "linewidth": 0.9, "zorder": 3}
"""How theory is drawn."""

GREY = "#8A8A8A"


def style() -> AbstractContextManager[None]:
    """Return a context in which Matplotlib draws in the project's style; nothing outside it changes."""
    from cycler import cycler
    from matplotlib import rc_context

    return rc_context(
        {
            "font.size": 8,
            "font.family": "DejaVu Sans",
            "axes.titlesize": 8,
            "axes.labelsize": 8,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "legend.frameon": False,
            "legend.handlelength": 1.6,
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.6,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "xtick.major.size": 2.5,
            "ytick.major.size": 2.5,
            "lines.linewidth": 1.2,
            "lines.markersize": 3,
            "text.usetex": False,
            "pdf.fonttype": 42,
            "svg.hashsalt": "linfb",
            "figure.constrained_layout.use": True,
            "savefig.transparent": False,
        }
    )


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure that belongs to nobody: no pyplot, no global list of figures."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def panel_letter(axes: Any, letter: str) -> None:
    """Write a panel's letter at its upper left corner."""
    axes.text(-0.02, 1.03, letter, transform=axes.transAxes, fontweight="bold", ha="right", va="bottom", fontsize=9)


def stamp(figure: Any, words: str) -> None:
    """Write at the upper right corner, above everything else, how a figure was made."""
    from textwrap import fill

    words = fill(words, int(16 * figure.get_figwidth()), max_lines=3, placeholder=" ...")
    figure.suptitle(words, x=0.995, ha="right", fontsize=7, color=GREY)


def dots(axes: Any, x: Any, runs: Any, colour: str, **options: Any) -> None:
    """Draw every run of a simulation as small pale dots and their median as larger ones.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
    x : array_like, shape (point,)
    runs : array_like, shape (run, point)
    colour : str
    **options
        For the median's dots, for example a label.
    """
    import numpy as np

    for run in np.asarray(runs):
        axes.plot(x, run, ".", color=colour, markersize=4.5, alpha=0.35, markeredgewidth=0, zorder=4)
    axes.plot(
        x, np.median(runs, axis=0), "o", color=colour, markersize=3.6, markeredgewidth=0, zorder=5,
        **options,
    )  # fmt: skip


def curves(axes: Any, x: Any, runs: Any, colour: str, **options: Any) -> None:
    """Draw every run as a thin line with dots at its points, and their median as a bold line."""
    import numpy as np

    for run in np.asarray(runs):
        axes.plot(x, run, "-", color=colour, linewidth=0.5, alpha=0.5, zorder=1)
        axes.plot(x, run, ".", color=colour, markersize=2.5, alpha=0.6, markeredgewidth=0, zorder=1)
    axes.plot(x, np.median(runs, axis=0), color=colour, linewidth=1.5, zorder=2, **options)


def strip(axes: Any, place: float, runs: Any, colour: str) -> None:
    """Draw every run of a rule as a dot, side by side about its place on the x axis, and their median as a bar.

    Runs that are NaN are left out.
    """
    import numpy as np

    shown = np.asarray(runs)[np.isfinite(runs)]
    if shown.size:
        shift = 0.12 * np.linspace(-1, 1, shown.size) if shown.size > 1 else np.zeros(1)
        axes.plot(place + shift, shown, "o", color=colour, markersize=3.5, markeredgewidth=0)
        axes.plot([place - 0.3, place + 0.3], [np.median(shown)] * 2, "-", color=colour, linewidth=1.8)


def levels(axes: Any, accuracy: Any, cells: Any, nothing: str = "zero feedback") -> None:
    """Draw accuracies without a channel, where their cells are there: seeds as thin lines, medians as thick ones."""
    lines = {"backpropagation": ("backpropagation", "-"), "zero feedback": (nothing, (0, (4, 2)))}
    for label, (cell, look) in lines.items():
        if cell in cells:
            runs = accuracy.sel(cell=cell)
            for run in runs.values:
                axes.axhline(run, color=GREY, linewidth=0.4, alpha=0.6, linestyle=look, zorder=0)
            axes.axhline(float(runs.median()), color=GREY, linewidth=1.1, linestyle=look, label=label, zorder=0)


def published(axes: Any, numbers: Any, spread: float | None, colour: str, label: str) -> None:
    """Draw published numbers by rank as open markers, with their standard deviation where it is known."""
    look: Any = {"fmt": "D", "mfc": "none", "markersize": 4, "markeredgewidth": 0.8, "elinewidth": 0.8}
    axes.errorbar(list(numbers), list(numbers.values()), spread, color=colour, capsize=2, zorder=6, **look)
    axes.errorbar([], [], color="black", label=label, **look)


def published_level(axes: Any, level: float, spread: float) -> None:
    """Draw a published accuracy of backpropagation as a band of plus and minus its standard deviation."""
    axes.axhspan(level - spread, level + spread, color=GREY, alpha=0.25, linewidth=0,
                 label="paper, backpropagation (s.d.)", zorder=0)  # fmt: skip


ZERO = 0.5
"""Where rank 0 is drawn on a logarithmic axis."""


def rank_axis(axis: Any, ranks: Any) -> None:
    """Make an axis logarithmic, with a tick for every rank; rank 0 has a place of its own at its lower end.

    From the largest rank down, those are labelled that are not too close to the one labelled before.
    """
    import numpy as np

    shown = sorted({0, *ranks})
    labelled = [shown[-1]]
    for rank in shown[-2:0:-1]:
        if np.log(labelled[-1] / rank) > 0.055 * np.log(shown[-1] / ZERO):
            labelled.append(rank)
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log", base=2)
    axis.set_view_interval(ZERO / 1.3, max(shown) * 1.3, ignore=True)
    axis.set_ticks([rank or ZERO for rank in shown], [str(rank) if rank in (0, *labelled) else "" for rank in shown])
    axis.set_ticks([], minor=True)


def error_scale(axes: Any, accuracies: Any) -> None:
    """Make the y axis, of accuracies below 1, logarithmic in the error."""
    import numpy as np

    def height(accuracy: Any) -> Any:
        return -np.log(np.maximum(1 - accuracy, 1e-4))

    low, high = (float(limit) for limit in (accuracies.min(), accuracies.max()))
    low, high = max(0.0, 0.95 * low - 0.02), 1 - (1 - high) / 1.2
    ticks: list[float] = []
    for tick in (*np.arange(0.1, 0.95, 0.1 if high - low > 0.4 else 0.05), 0.95, 0.98, 0.99, 0.995, 0.998):
        apart = height(tick) - height(ticks[-1]) if ticks else np.inf
        if low <= tick <= high and apart > 0.05 * (height(high) - height(low)):
            ticks.append(float(tick))
    axes.set_yscale("function", functions=(height, lambda height: 1 - np.exp(-height)))
    axes.set_ylim(low, high)
    axes.set_yticks(ticks, [f"{tick:.3f}".lstrip("0").rstrip("0") for tick in ticks])
