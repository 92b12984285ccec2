r"""What label noise keeps up at the end of learning, and how large a step may be.

Online learning on noisy labels does not come to rest. About one learned mode, balanced behind a channel that sees the
share :math:`\kappa` of its output direction, the loss on top of that of the noise is, to first order in the learning
rate,

.. math::
    \frac{\eta\sigma^2 s}{4b}\Bigl[\frac{n-1}{\sqrt\kappa} + (m+1)\sqrt\kappa + \frac{1-\kappa}{3\sqrt\kappa}\Bigr] ,

and full-batch gradient descent is stable up to :math:`\eta_{\max} = 1/(\sqrt\kappa\,s)`.

**Theory** (black lines). (a) The excess loss against the learning rate at four ranks; (b) against the rank at three
batch sizes b, dotted for b = 1 without the factor :math:`\kappa`; (c) the largest stable step, and, dashed, the limit
of online learning in the mean square with one sample per step.

**What is seen.** Online learning (dots: every seed, and their mean) follows the lines while steps are small. Where
inputs are many a narrow channel is noisier, since it leaves the readout larger than the features. Gradient descent
from near the solution returns to it (dots) or leaves it (crosses) as theory says: a channel that makes a mode slower
by :math:`1/\sqrt\kappa` allows steps larger by the same factor, so that the number of steps need not grow. Online
learning with single samples must take steps several times smaller, and its limit moves with the rank alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, PAGE, THEORY, new_figure, panel_letter

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Config:
    """Settings of the figure; time in units of tau. A channel of rank r sees the share r / n_out of the mode."""

    ranks: tuple[int, ...] = (1, 2, 4, 8)
    learning_rates: tuple[float, ...] = (0.01, 0.02, 0.04)
    batch_sizes: tuple[int, ...] = (1, 2, 4)
    seeds: tuple[int, ...] = tuple(range(12))
    n_in: int = 10
    n_out: int = 8
    s: float = 1.5
    noise: float = 0.1
    burn_in: float = 8.0
    t_max: float = 32.0
    n_times: int = 25
    ratios: tuple[float, ...] = (0.8, 0.95, 1.05, 1.2)


PARTS = "ranks"
CONFIGS = {"quick": Config(), "paper": Config(seeds=tuple(range(100)), t_max=200.0, n_times=201)}
STEPS = 300  # of gradient descent from near the solution


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return excess losses, (rank, rate, seed) and (rank, batch, seed), and by how much gradient descent grows."""
    import xarray as xr

    return xr.concat([_one_rank(rank, config, resources) for rank in config.ranks], dim="rank", combine_attrs="drop")


def weights_of(rank: int, config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return balanced weights that have learned the mode, and the reader of the channel."""
    kappa = rank / config.n_out
    readout = np.full((config.n_out, 1), 1 / np.sqrt(config.n_out))
    strength = np.sqrt(config.s / np.sqrt(kappa))
    return np.sqrt(kappa) * strength * np.eye(1, config.n_in), strength * readout, np.eye(rank, config.n_out)


def _one_rank(rank: int, config: Config, resources: Resources) -> xr.Dataset:
    import xarray as xr

    from linfb import LinearNetwork, Task
    from linfb import simulate as run
    from linfb.linear import SGD, Euler
    from linfb.networks import Given
    from linfb.rules import low_rank, mirrors, readers
    from linfb.theory import largest_step

    W1, W2, P = weights_of(rank, config)
    task = Task(W2 @ W1, label_noise=config.noise)
    rule = low_rank(rank, reader=readers.Fixed(P), mirror=mirrors.Exact())
    times = np.linspace(config.burn_in, config.t_max, config.n_times)

    def losses(weights: tuple[np.ndarray, ...], method: Any, times: np.ndarray, seeds: Any) -> np.ndarray:
        observe = {"excess": lambda snap: np.sum((snap.map - task.teacher) ** 2, axis=(-2, -1)) / 2}
        network = LinearNetwork((config.n_in, 1, config.n_out), Given(weights))
        found = run(task, network, rule, times, seeds=seeds, method=method, observe=observe, device=resources.device)
        return found.excess.transpose("seed", "time").values

    def steady(rate: float, batch_size: int) -> np.ndarray:
        whole = np.unique(np.rint(times / rate)) * rate
        return losses((W1, W2), SGD(rate, batch_size), whole, config.seeds).mean(axis=1)

    limit = 1 / (np.sqrt(rank / config.n_out) * config.s)
    rng = np.random.default_rng(0)
    near = tuple(W + 1e-6 * rng.standard_normal(W.shape) for W in (W1, W2))
    grown = []
    for ratio in config.ratios:
        step = ratio * limit
        first, last = losses(near, Euler(step), np.array([0.0, STEPS * step]), [0])[0]
        grown.append(np.log(last / first))
    slowest = min(config.learning_rates)
    result = xr.Dataset(
        {
            "excess": (("rate", "seed"), [steady(rate, 1) for rate in config.learning_rates]),
            "batched": (("batch", "seed"), [steady(slowest, size) for size in config.batch_sizes]),
            "grown": ("ratio", grown),
            "online": largest_step(W1, W2, P=P, batch_size=1),
        },
        coords={
            "rate": list(config.learning_rates), "batch": list(config.batch_sizes), "seed": list(config.seeds),
            "ratio": list(config.ratios),
        },
    )  # fmt: skip
    return result.expand_dims(rank=[rank])


def expected(rank: float, rate: float, batch_size: int, config: Config, *, kappa: float | None = None) -> float:
    """Return the excess loss by theory."""
    from linfb.theory import mode_excess_loss

    share = rank / config.n_out if kappa is None else kappa
    return mode_excess_loss(
        config.s, share, config.n_in, config.n_out, noise=config.noise, learning_rate=rate, batch_size=batch_size
    )


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return how far excess losses are from theory at the smallest rate, and how often stability is as it says."""
    slowest = min(config.learning_rates)
    found, blind = [], []
    for rank in config.ranks:
        for size in config.batch_sizes:
            mean = float(results.batched.sel(rank=rank, batch=size).mean())
            found.append(abs(mean / expected(rank, slowest, size, config) - 1))
            blind.append(abs(mean / expected(rank, slowest, size, config, kappa=1.0) - 1))
    stable = results.grown < 0
    return {
        "largest relative deviation of the excess loss at the smallest rate": max(found),
        "the same if kappa is ignored": max(blind),
        "share of gradient descents that are stable or not as theory says": float(
            (stable == (results.ratio < 1)).mean()
        ),
        "the same from the limit of backpropagation": float(
            (stable == (results.ratio < np.sqrt(results["rank"] / config.n_out))).mean()
        ),
    }


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: excess loss against rate and against rank, and the largest step."""
    figure = new_figure(PAGE, 2.7)
    rates, widths, steps = figure.subplots(1, 3)
    unit = config.noise**2
    ends = [min(config.learning_rates) / 1.2, max(config.learning_rates) * 1.2]
    for colour, rank in zip(COLOURS, config.ranks, strict=False):
        runs = results.excess.sel(rank=rank).transpose("seed", "rate") / unit
        _means(rates, config.learning_rates, runs, colour, f"r = {rank}")
        rates.plot(ends, [expected(rank, rate, 1, config) / unit for rate in ends], **THEORY)
    line = np.linspace(min(config.ranks), config.n_out, 60)
    slowest = min(config.learning_rates)
    for colour, size in zip(COLOURS[4:], config.batch_sizes, strict=False):
        runs = results.batched.sel(batch=size).transpose("seed", "rank") / unit
        _means(widths, config.ranks, runs, colour, f"b = {size}")
        widths.plot(line, [expected(rank, slowest, size, config) / unit for rank in line], **THEORY)
    widths.axhline(expected(1, slowest, 1, config, kappa=1.0) / unit, **THEORY | {"linestyle": ":"})
    steps.plot(line, 1 / (np.sqrt(line / config.n_out) * config.s), **THEORY)
    steps.plot(config.ranks, results.online, **THEORY | {"linestyle": "--"})
    for rank in config.ranks:
        for ratio in config.ratios:
            stable = float(results.grown.sel(rank=rank, ratio=ratio)) < 0
            place = ratio / (np.sqrt(rank / config.n_out) * config.s)
            steps.plot(rank, place, "o" if stable else "x", color=COLOURS[0] if stable else COLOURS[1], markersize=4)
    for axes in (rates, widths):
        axes.set_yscale("log")
        axes.set_ylabel(r"excess loss / $\sigma^2$")
        axes.legend(handletextpad=0.2)
    rates.set_xscale("log")
    rates.set_xticks(config.learning_rates, [f"{rate:g}" for rate in config.learning_rates])
    rates.minorticks_off()
    rates.set_xlabel(r"learning rate $\eta$")
    for axes in (widths, steps):
        axes.set_xscale("log")
        axes.set_xticks(config.ranks, [str(rank) for rank in config.ranks])
        axes.minorticks_off()
        axes.set_xlabel(f"rank of the channel, of {config.n_out}")
    steps.set_yscale("log")
    steps.set_ylabel(r"step $\eta$")
    steps.plot([], [], "o", color=COLOURS[0], markersize=4, label="returns")
    steps.plot([], [], "x", color=COLOURS[1], markersize=4, label="leaves")
    steps.legend(handletextpad=0.2)
    for axes, letter in zip((rates, widths, steps), "abc", strict=True):
        panel_letter(axes, letter)
    return figure


def _means(axes: Any, x: Any, runs: Any, colour: str, label: str) -> None:
    """Draw every seed as a pale dot and their mean as a larger one."""
    for run in runs.values:
        axes.plot(x, run, ".", color=colour, markersize=4, alpha=0.3, markeredgewidth=0)
    axes.plot(x, runs.mean("seed"), "o", color=colour, markersize=3.6, markeredgewidth=0, label=label, zorder=5)
