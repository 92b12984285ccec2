r"""What a wide network learns from an error that comes back through a narrow channel, in the lazy regime.

Of the feedback B only the matrix :math:`C = \lim W_2 B/k` counts: the kernel of gradient flow is
:math:`\Sigma\,I + \Theta\,C`, with :math:`\Sigma` of the readout and :math:`\Theta` of the hidden layer. C is I for
backpropagation, :math:`P^\top P` for an aligned channel with reader P, and zero for feedback alignment.

**Theory** (black lines). Kernel regression in each eigendirection of C (:func:`linfb.theory.lazy_outputs`), at infinite
width. Three outputs have the same targets, and the channel sees the shares c = 1, 0.3 and 0 of them.

**What is seen.** Every output is learned, whether the channel sees it or not; what it sees is learned faster. (a, b)
Networks of width 1024 (dots, five seeds) scatter about the lines; the output with c = 1 is that of backpropagation,
and under feedback alignment (crosses, mean of the outputs) all outputs are as if not seen. (c) The outputs under the
channel approach theory with the powers -0.45 (ReLU) and -0.48 (erf) of the width, where theory has -1/2, and not the
theory with backpropagation's kernel (crosses). Under feedback alignment the powers are -0.36 and -0.55: ReLU networks
of these widths are still farther from the limit, 0.058 at width 1024 against 0.037 under the channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, THEORY, new_figure, panel_letter

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Config:
    """Settings of the figure; times in tau."""

    activations: tuple[str, ...] = ("relu", "erf")
    shares: tuple[float, ...] = (1.0, 0.3, 0.0)
    n_in: int = 3
    train: int = 40
    test: int = 200
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    times: tuple[float, ...] = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
    step: float = 2.5


PARTS = "activations"
CONFIGS = {
    "quick": Config(),
    "paper": Config(widths=(64, 128, 256, 512, 1024, 2048, 4096), seeds=tuple(range(50)), step=1.0),
}
RULES = ("channel", "feedback alignment")


def task(activation: str, config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training and test inputs and targets, the same for every output, of normal inputs.

    The target of erf units, which are odd, is odd: a sine; that of ReLU a product.
    """
    rng = np.random.default_rng(0)
    X, Z = (rng.standard_normal((size, config.n_in)) for size in (config.train, config.test))
    Y, labels = (
        np.repeat(np.where(activation == "erf", np.sin(2 * x[:, 0]), x[:, 0] * x[:, 1])[:, None], len(config.shares), 1)
        for x in (X, Z)
    )
    return X, Y, Z, labels


def functions(activation: str) -> tuple[Any, Any]:
    """Return a hidden unit's function and its slope."""
    from scipy.special import erf

    return {
        "linear": (lambda u: u, np.ones_like),
        "relu": (lambda u: np.maximum(u, 0.0), lambda u: (u > 0).astype(float)),
        "erf": (lambda u: erf(u * np.sqrt(0.5)), lambda u: np.sqrt(2 / np.pi) * np.exp(-0.5 * u**2)),
    }[activation]


def gradient_flow(
    times: Any, X: np.ndarray, Y: np.ndarray, Z: np.ndarray, W1: np.ndarray, W2: np.ndarray, *,
    fixed: Any = 0.0, metric: np.ndarray, activation: str, step: float,
) -> np.ndarray:  # fmt: skip
    """Train a network of standard normal weights by Runge-Kutta steps; return its outputs at Z, (time, test, out).

    The feedback, shaped like W2, is fixed + metric @ W2: an aligned channel has P.T @ P and nothing fixed.
    """
    value, slope = functions(activation)
    k, p = W2.shape[1], len(X)
    x, z = (points / np.sqrt(X.shape[1]) for points in (X, Z))

    def velocity(W1: np.ndarray, W2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fields = x @ W1.T
        hidden = value(fields)
        error = (Y - hidden @ W2.T / np.sqrt(k)) / (p * np.sqrt(k))
        return (slope(fields) * (error @ (fixed + metric @ W2))).T @ x, error.T @ hidden

    def moved(weights: tuple[np.ndarray, ...], by: tuple[np.ndarray, ...], h: float) -> tuple[np.ndarray, ...]:
        return tuple(w + h * v for w, v in zip(weights, by, strict=True))

    outputs, now = [], 0.0
    weights: tuple[np.ndarray, ...] = (W1, W2)
    for time in times:
        count = int(np.ceil((time - now) / step))
        for _ in range(count):
            h = (time - now) / count
            first = velocity(*weights)
            second = velocity(*moved(weights, first, h / 2))
            third = velocity(*moved(weights, second, h / 2))
            fourth = velocity(*moved(weights, third, h))
            mean = tuple((a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(first, second, third, fourth, strict=True))
            weights = moved(weights, mean, h)
        now = time
        outputs.append(value(z @ weights[0].T) @ weights[1].T / np.sqrt(k))
    return np.array(outputs)


def paired(width: int, n_in: int, n_out: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return standard normal weights with units in pairs that cancel, so that all outputs start at zero."""
    W1, W2 = rng.standard_normal((width // 2, n_in)), rng.standard_normal((n_out, width // 2))
    return np.concatenate([W1, W1]), np.concatenate([W2, -W2], axis=1)


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return the test loss of every output by theory and simulation, and the deviation of outputs by width."""
    import xarray as xr

    parts = [_one_activation(activation, config) for activation in config.activations]
    return xr.concat(parts, dim="activation", combine_attrs="drop")


def _one_activation(activation: str, config: Config) -> xr.Dataset:
    import xarray as xr

    from linfb.theory import lazy_outputs

    X, Y, Z, labels = task(activation, config)
    metrics = {"channel": np.diag(config.shares), "feedback alignment": np.zeros((len(config.shares),) * 2)}
    theory, other = (
        np.array([lazy_outputs(config.times, X, Y, Z, metric=c, activation=activation) for c in chosen])
        for chosen in (metrics.values(), [1.0] * len(metrics))
    )
    losses = np.empty((len(config.seeds), *theory.shape[:2], len(config.shares)))
    right, wrong = (np.empty((len(RULES), len(config.widths), len(config.seeds))) for _ in range(2))
    for w, width in enumerate(config.widths):
        for s, seed in enumerate(config.seeds):
            rng = np.random.default_rng((seed, width))
            weights = paired(width, config.n_in, len(config.shares), rng)
            independent = rng.standard_normal(weights[1].shape)
            for r, rule in enumerate(RULES):
                found = gradient_flow(
                    config.times, X, Y, Z, *weights, metric=metrics[rule], activation=activation, step=config.step,
                    fixed=independent if rule == "feedback alignment" else 0.0,
                )  # fmt: skip
                right[r, w, s], wrong[r, w, s] = (np.sqrt(np.mean((found - t[r]) ** 2)) for t in (theory, other))
                losses[s, r] = np.mean((found - labels) ** 2, axis=1) / 2  # of the widest in the end
    return xr.Dataset(
        {
            "theory": (("rule", "time", "output"), np.mean((theory - labels) ** 2, axis=2) / 2),
            "loss": (("seed", "rule", "time", "output"), losses),
            "deviation": (("rule", "width", "seed"), right),
            "deviation_wrong": (("rule", "width", "seed"), wrong),
        },
        coords={
            "rule": list(RULES), "time": list(config.times), "width": list(config.widths), "seed": list(config.seeds)
        },
    ).expand_dims(activation=[activation])  # fmt: skip


def power(deviation: xr.DataArray, size: str, runs: str) -> xr.DataArray:
    """Return the power of a size (a dimension) with which deviations fall, in the root mean square of the runs."""
    rms = np.sqrt((deviation**2).mean(runs))
    x = np.log(rms[size]) - np.log(rms[size]).mean()
    return (np.log(rms) * x).sum(size) / (x**2).sum()


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return the deviation of the widest networks, with which power of the width it falls, and wrong theory's."""
    found: dict[str, float] = {}
    for activation in config.activations:
        for rule in RULES:
            one = results.sel(activation=activation, rule=rule)
            name = f"{activation}, {rule}"
            found |= {
                f"{name}: deviation of outputs at width {config.widths[-1]}": float(
                    np.sqrt((one.deviation.isel(width=-1) ** 2).mean())
                ),
                f"{name}: the same by backpropagation's kernel": float(
                    np.sqrt((one.deviation_wrong.isel(width=-1) ** 2).mean())
                ),
                f"{name}: power of the width": float(power(one.deviation, "width", "seed")),
                f"{name}: the same by backpropagation's kernel, power": float(
                    power(one.deviation_wrong, "width", "seed")
                ),
            }
        last = results.theory.sel(activation=activation, rule="channel").isel(time=-1)
        for share, loss in zip(config.shares, last.values, strict=True):
            found[f"{activation}: last test loss by theory, c = {share:g}"] = float(loss)
    return found


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: test loss against time for each activation, and the deviation from theory against width."""
    figure = new_figure(PAGE, 2.7)
    panels = figure.subplots(1, len(config.activations) + 1)
    for axes, name, letter in zip(panels, config.activations, "ab", strict=False):
        one = results.sel(activation=name).isel(time=slice(1, None))
        axes.plot([], [], **THEORY, label="theory")
        for colour, output, share in zip(COLOURS, range(len(config.shares)), config.shares, strict=False):
            own = one.sel(rule="channel").isel(output=output)
            _runs(axes, own, colour, "o", f"channel, c = {share:g}")
            axes.plot(one.time, own.theory, **THEORY)
        _runs(axes, one.sel(rule="feedback alignment").mean("output"), COLOURS[3], "x", "feedback alignment")
        axes.set_xscale("log")
        axes.set_xlabel("time / $\\tau$")
        axes.set_title({"relu": "ReLU", "erf": "erf", "linear": "linear"}[name])
        panel_letter(axes, letter)
    panels[0].set_ylabel("loss on test inputs, per output")
    axes, widths = panels[-1], results.width.values
    for colour, name in zip(COLOURS[4:], config.activations, strict=False):
        for variable, marker in (("deviation", "o"), ("deviation_wrong", "x")):
            values = results[variable].sel(activation=name, rule="channel").transpose("width", "seed")
            axes.plot(widths, values, marker, color=colour, markersize=3, alpha=0.6, markeredgewidth=0.6)
        axes.plot([], [], "o", color=colour, markersize=3, label=name)
        first = float(np.sqrt((results.deviation.sel(activation=name, rule="channel", width=widths[0]) ** 2).mean()))
        axes.plot(widths, first * np.sqrt(widths[0] / widths), **THEORY)
    axes.plot([], [], "x", color=GREY, markersize=3, label="backprop's kernel")
    axes.plot([], [], **THEORY, label="$k^{-1/2}$")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("width k")
    axes.set_ylabel("deviation from theory")
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    axes.set_ylim(2e-3, 0.25)
    axes.legend(loc="lower left")
    panel_letter(axes, "abc"[len(config.activations)])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _runs(axes: Any, one: xr.Dataset, colour: str, marker: str, label: str) -> None:
    """Draw the loss of every network as dots."""
    values = one.loss.transpose("time", "seed")
    axes.plot(one.time, values, marker, color=colour, markersize=2.5, alpha=0.6, markeredgewidth=0.6)
    axes.plot([], [], marker, color=colour, markersize=3, label=label)
