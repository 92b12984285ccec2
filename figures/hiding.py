r"""Whether errors hide from a reader that is narrower than the number of classes, in linear networks and perceptrons.

Digits, with inputs whitened but in (f). Oja's reader follows the errors at a rate :math:`\rho` relative to that of the
weights; squared error, gradient descent, perfect mirrors. (a) Growth of the visible error after a small tilt of P out
of a state in which it sees none: linear networks that know the strongest mode, and tanh units in a state that Newton's
method finds on 40 images. (b) Modes that linear networks know in the end, from small starts; squares: minibatches.
"Realisable" targets are what a linear map makes of the images at best, without the rest of the labels. (c) What a
perceptron (16 rectifiers) leaves of the labels' variance on 256 images, after as many steps of full batches (dots) or
of minibatches of 32 (squares); crosses: a Kolen-Pollack mirror that starts aligned. (d) The visible share of its error,
over r/m; dashed: minibatches. (e) A slow reader that is changed half way. (f) The visible share at the end of training
in a perceptron of three hidden layers (cross-entropy, batch normalisation, minibatches), if the channel that reads the
output is the only narrow one, and (dashed) if all are.

**Theory.** Black lines in (a): :func:`linfb.theory.turning_exponent`, and for tanh units the leading eigenvalue of
:func:`linfb.theory.visible_error_flow`. Dotted, and the line in (b): the condition of linear networks without noise,
:math:`\rho > \min\,\mathrm{Re}\,\mathrm{eig}(PW_2Q)/\|E\|_2^2`, in which :math:`\|E\|_2^2` is the largest eigenvalue
of the hidden errors' second moment. What a network cannot learn of its labels acts as label noise. Labels of equally
frequent classes have one variance along all modes, so that this noise is stronger along weaker modes: no reader rests
on strong ones, however slow.

**What is seen** (quick preset, two seeds, means; runs last 90 time constants of the weights).

*Linear networks.* With realisable targets and r = 1 they know 1.06 modes up to :math:`\rho = 3` and 6.0 at 10 (theory:
3.8). With labels hidden states are left at all rates, as theory says, but slowly: in this time 1.3 modes are known at
1, 2.5 at 3, 6.3 at 10.

*Hidden states of tanh units* are left from :math:`\rho = 0.2` on; the condition of linear networks says 7.4. Exponents
above .01 are those of theory to half a percent.

*Perceptron.* Slow readers hide errors: at r = 1 the visible share falls to .18 (of r/m) with a fixed P and .22 at
:math:`\rho = 0.1`; at 10 it is 1.2. What is left of the variance falls with the rate from .53 to .37 at r = 1, .42 to
.29 at r = 2, .33 to .16 at r = 4; the whole error leaves .10, none .59. Minibatches make a difference of .011 (root
mean square), the rate one of .15. If a fifth of the labels is random more error is left, and fast readers are ahead as
well. Changed half way, a slow reader does as well when it stops (.51 against .50), better when P is drawn anew (.45),
and best when it becomes fast (.38; r = 2: .40, .40, .33, .23).

*A Kolen-Pollack mirror* takes the gain away: at r = 1 .49 is left at best and .53 at :math:`\rho = 10`, as with a fixed
P, although more of the error is visible; :math:`PW_2Q` is a fifth of what it is with a perfect mirror, and negative in
.03 of all looks. What is seen is not learned, as in capture.

*Deep perceptron.* The output channel, alone narrow, sees .04 of r/m with a fixed P, .24 at :math:`\rho = 10`, 1.4 at
100, while accuracy rises from .87 to .96. Readers of hidden layers do find their errors. With all channels narrow, the
fastest readers diverge.

In none of the perceptrons r counts what is known: with 16 rectifiers and r = 1 nine or ten classes are recognised at
any rate.

*CIFAR-10* (preset ``cpu``: 20,000 images for the deep perceptron, 128 units in every hidden layer, 1,200 minibatches).
The picture is another one: readers that follow see .8 to 1.3 of r/m at the output, and leave more of the error (r = 1,
output alone narrow: .77 to .82) than a fixed P does (.72); the whole error leaves .45. What they see is not learned in
this time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, THEORY, new_figure, panel_letter
from figures._watched import ROWS, Look, Watching, rows_of, spread, watched

if TYPE_CHECKING:
    import xarray as xr

    from linfb.datasets import Splits
    from linfb.rules import Rule

TARGETS = ("labels", "realisable")
"""What a linear network learns: labels, or what it can make of them at best, without the rest."""
CASES = ("full batch", "minibatches", "random labels", "Kolen-Pollack")
NARROW = ("output", "all")
"""Which channels of a deep perceptron are narrow: that which reads the output, or all."""
CHANGES = ("nothing", "P stops", "P drawn again", "fast reader")
"""What happens to a slow reader half way."""
TILT = 1e-8
"""By how much P is tilted out of a hidden state."""
LARGE, SMALL = 1e-4, 1e-13
"""Between which what P sees counts."""


@dataclass(frozen=True)
class Config(Watching):
    """Settings of the figure; reader rates relative to the weights' rate, times in tau.

    Inputs are images whitened in their `n_in` leading principal components. Linear networks know the moments of
    `train` of them, from starts of `start_scale`; the perceptron learns the first `rows`, in `wrong` of which the label
    is random in one case. Networks that start from a hidden state have `still` images and run for `still_time`. All of
    these have `n_hidden` hidden units and learn by gradient descent with `learning_rate`. The deep perceptron has
    `widths`, sees images as they are, and learns by `steps` minibatches with `deep_rate`; its readers have rates of
    their own. Of `slow` and `fast` readers the slow ones are changed half way.
    """

    ranks: tuple[int, ...] = (1, 2, 4)
    reader_rates: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
    seeds: tuple[int, ...] = (0, 1)
    n_in: int = 20
    n_hidden: int = 16
    rows: int = 256
    wrong: float = 0.2
    start_scale: float = 1e-2
    learning_rate: float = 0.3
    t_max: float = 90.0
    looks: int = 8
    slow: float = 0.3
    fast: float = 10.0
    still: int = 40
    still_time: float = 150.0
    widths: tuple[int, ...] = (32, 32, 32)
    steps: int = 600
    deep_rate: float = 0.1
    deep_reader_rates: tuple[float, ...] = (0.0, 1.0, 10.0, 30.0, 100.0)
    train: float | int | None = 1000


PARTS = "ranks"
CONFIGS = {
    "quick": Config(),
    "cpu": Config(data="cifar10", train=20_000, validation=1000, widths=(128,) * 3, steps=1200, batch_size=128),
}  # fmt: skip


def on_data(config: Config, data: str) -> Config:
    """Return the configuration for other images."""
    from figures import _watched

    return _watched.on_data(config, CONFIGS["quick"], data)


def whitened(splits: Splits, n_in: int) -> Splits:
    """Return all parts in the leading principal components of the training part, where their covariance is one."""
    x = splits.train.x.astype(np.float64)
    mean = x.mean(axis=0)
    values, axes = np.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    axes = axes * np.sign(axes[abs(axes).argmax(axis=0), np.arange(len(axes))])
    ways = (axes / np.sqrt(np.maximum(values, 1e-12)))[:, : -n_in - 1 : -1]

    def moved(part: Any) -> Any:
        return type(part)((part.x.astype(np.float64) - mean) @ ways, part.y)

    return replace(
        splits, train=moved(splits.train), validation=moved(splits.validation), test=moved(splits.test)
    )  # fmt: skip


def centred(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Return one-hot labels without their mean."""
    rows = np.eye(n_classes)[labels]
    return rows - rows.mean(axis=0)


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per rank, everything: growth from hidden states, linear networks, perceptrons, changes half way."""
    import xarray as xr

    images = config.splits(resources)
    inputs = whitened(images, config.n_in)
    found = [
        xr.merge([
            *(make(rank, inputs, config, resources) for make in (grown, linear, perceptrons, changed)),
            deep(rank, images, config, resources),
        ]) for rank in config.ranks
    ]  # fmt: skip
    return xr.concat(found, dim="rank", combine_attrs="drop").assign_coords(rank=list(config.ranks))


# Linear networks, and hidden states


def tasks(inputs: Splits) -> dict[str, Any]:
    """Return what a linear network learns of labels: with what it cannot learn as noise, and without."""
    from linfb import Task

    x, y = inputs.train.x, centred(inputs.train.y, inputs.n_classes)
    A = y.T @ x / len(x)
    rest = y - x @ A.T
    return {"labels": Task(A, label_noise=rest.T @ rest / len(x)), "realisable": Task(A)}


def linear(rank: int, inputs: Splits, config: Config, resources: Resources) -> xr.Dataset:
    """Return how many modes linear networks know in the end, how far P reads the weakest, and the modes' strengths."""
    import xarray as xr

    from linfb import LinearNetwork, SmallRandom
    from linfb import simulate as run
    from linfb.linear import SGD, Euler
    from linfb.rules import low_rank, mirrors, readers

    steps = round(config.t_max / config.learning_rate)
    both, rule = tasks(inputs), low_rank(rank, reader=readers.Oja(), mirror=mirrors.Exact())
    U, s, V = both["labels"].left, both["labels"].singular_values, both["labels"].right
    network = LinearNetwork((config.n_in, config.n_hidden, inputs.n_classes), SmallRandom(config.start_scale))
    observe = {
        "known": lambda snap: (np.einsum("oi,...op,pi->...i", U, snap.map, V) / s).sum(axis=-1),
        "on_weakest": lambda snap: np.sum((snap.channels[-1].P @ U[:, -rank:]) ** 2, axis=(-2, -1)) / rank,
    }
    found = [
        run(
            task, network, rule, [steps * config.learning_rate], seeds=config.seeds,
            rates={"reader_rate": config.reader_rates}, method=method, observe=observe, device=resources.device,
        ).isel(time=0, drop=True)[list(observe)].expand_dims(target=[target], descent=[descent])
        for target, task in both.items()
        for descent, method in (
            ("full batch", Euler(config.learning_rate)), ("minibatches", SGD(config.learning_rate, config.batch_size))
        )
    ]  # fmt: skip
    return xr.combine_by_coords(found, combine_attrs="drop").assign(
        s=("mode", s), noise=("mode", np.diag(U.T @ both["labels"].noise_covariance @ U))
    )


def hidden_start(rank: int, inputs: Splits, config: Config) -> tuple[np.ndarray, ...]:
    """Return images, labels and W1, W2, P of tanh units that have hidden all error from P, found by Newton's method."""
    x, y = inputs.train.x[: config.still], centred(inputs.train.y[: config.still], inputs.n_classes)
    rng = np.random.default_rng(config.seeds[0])
    W1, W2 = (
        rng.uniform(-1, 1, shape) / np.sqrt(shape[1])
        for shape in ((config.n_hidden, config.n_in), (inputs.n_classes, config.n_hidden))
    )
    P = np.linalg.qr(rng.standard_normal((inputs.n_classes, rank)))[0].T
    for _ in range(100):
        h = np.tanh(x @ W1.T)
        seen = (y - h @ W2.T) @ P.T
        slopes = np.einsum("ak,mk,mi->maki", P @ W2, 1 - h**2, x).reshape(seen.size, -1)
        step = np.linalg.lstsq(slopes, seen.ravel())[0].reshape(W1.shape)
        W1 = W1 + step * min(1.0, 1.0 / np.linalg.norm(step))
        if np.linalg.norm(step) < 1e-12:
            break
    h = np.tanh(x @ W1.T)
    return x, y, W1, W2 + (np.eye(len(W2)) - P.T @ P) @ (y - h @ W2.T).T @ np.linalg.pinv(h).T, P


def tilted(P: np.ndarray, way: np.ndarray) -> np.ndarray:
    """Return orthonormal rows that are a little off those of P, in the direction of others."""
    return np.linalg.qr((P + TILT * way / np.linalg.norm(way)).T)[0].T


def rate_of_growth(seen: Any, size: float) -> float:
    """Return the exponent of the flow whose steps of a size change what P sees: in the second half of those that count.

    These are the steps until it is large, or so small that rounding is in it; NaN if there are few.
    """
    seen = np.asarray(seen)
    beyond = np.flatnonzero((seen > LARGE) | (seen < SMALL))
    last = int(beyond[0]) - 1 if beyond.size else len(seen) - 1
    first = last // 2
    return float(np.expm1(np.log(seen[last] / seen[first]) / (last - first)) / size) if last >= 8 else np.nan


def fine_rates(config: Config) -> np.ndarray:
    """Return reader rates for lines: those of the runs, and some between."""
    rates = np.array(config.reader_rates)
    between = np.geomspace(rates[rates > 0].min(), rates.max(), 25)
    return np.unique(np.concatenate([between, rates]).round(12))


def grown(rank: int, inputs: Splits, config: Config, resources: Resources) -> xr.Dataset:
    """Return with which exponent P comes to see more, tilted out of hidden states, and what theory says."""
    import xarray as xr

    kinds = {target: _grown_linear(rank, tasks(inputs)[target], config) for target in TARGETS}
    kinds["tanh"], condition = _grown_tanh(rank, inputs, config)
    found = {"growth": "reader_rate", "exponent": "fine_rate"}
    return xr.Dataset(
        {
            name: (("kind", along), list(values))
            for (name, along), values in zip(found.items(), zip(*kinds.values(), strict=True), strict=True)
        } | {"still_condition": condition},
        {"kind": list(kinds), "reader_rate": list(config.reader_rates), "fine_rate": fine_rates(config)},
    )  # fmt: skip


def _grown_linear(rank: int, task: Any, config: Config) -> tuple[list[float], list[float]]:
    """Return exponents of a linear network that knows the strongest modes, measured and by theory.

    Of the noise only the variances along the modes count here, so that the start is a fixed point.
    """
    from linfb import LinearNetwork, Task
    from linfb import simulate as run
    from linfb.linear import Euler
    from linfb.networks import Given
    from linfb.rules import low_rank, mirrors, readers
    from linfb.theory import turning_exponent

    U, s, V = task.left, task.singular_values, task.right
    noise = np.diag(U.T @ task.noise_covariance @ U)
    root = np.eye(config.n_hidden, rank) * np.sqrt(s[:rank])
    P = U[:, :rank].T
    network = LinearNetwork((config.n_in, config.n_hidden, len(U)), Given((root @ V[:, :rank].T, U[:, :rank] @ root.T)))
    noisy, way = bool(noise.max() > 1e-12), np.zeros_like(P)
    way[0 if noisy else -1] = U[:, -1 if noisy else rank]  # from the strongest to the weakest mode, or to the next one
    rule = low_rank(rank, reader=readers.Oja(start=tilted(P, way)), mirror=mirrors.Exact())
    size = config.learning_rate
    runs = run(
        Task(task.teacher, label_noise=U @ np.diag(noise) @ U.T), network, rule,
        size * np.arange(round(config.still_time / size) + 1), rates={"reader_rate": config.reader_rates},
        method=Euler(size),
        observe={"seen": lambda snap: np.linalg.norm(snap.channels[-1].P @ (task.teacher - snap.map), axis=(-2, -1))},
    ).seen.squeeze(drop=True)  # fmt: skip
    theory = [turning_exponent(s, rank, rate, noise=noise).real for rate in fine_rates(config)]
    return [rate_of_growth(one, size) for one in runs.transpose("reader_rate", "time").values], theory


def _grown_tanh(rank: int, inputs: Splits, config: Config) -> tuple[tuple[list[float], list[float]], float]:
    """Return the same for tanh units that start from a hidden state, and the condition of linear networks for it."""
    from linfb.engine import Optimizers, sgd
    from linfb.engine.layers import Dense, Tanh
    from linfb.engine.losses import squared_error
    from linfb.engine.models import Model
    from linfb.engine.state import initial_state, step
    from linfb.rules import low_rank, mirrors, readers
    from linfb.theory import visible_error_flow

    x, y, W1, W2, P = hidden_start(rank, inputs, config)
    h = np.tanh(x @ W1.T)
    errors = y - h @ W2.T
    model = Model((Dense(*W1.shape[::-1]), Tanh(), Dense(*W2.shape[::-1])))
    size = config.learning_rate
    found = []
    for rate in config.reader_rates:
        flow = visible_error_flow(errors, P, W2, P @ W2, x, h, 1 - h**2, rate)
        leading = np.linalg.eigh(flow)[1][:, -1].reshape(-1, rank)  # symmetric: the mirror is perfect
        start = tilted(P, leading.T @ errors)
        rule = low_rank(rank, reader=readers.Oja(start=start), mirror=mirrors.Exact())
        own = Optimizers(sgd(size), P=sgd(rate * size))
        state, _ = initial_state(model, rule, own, 0, np.array)
        state = state._replace(weights=(W1.copy(), None, W2.copy()))
        seen: list[float] = []
        for number in range(1, round(config.still_time / size) + 1):
            reader = np.array(getattr(state.channels[-1], "P", None))
            state, _, outputs = step(model, rule, squared_error, own, state, x, y, number=number)
            seen.append(float(np.linalg.norm((y - outputs) @ reader.T)))
            if not SMALL < seen[-1] < LARGE:
                break
        found.append(rate_of_growth(seen, size))
    theory = [
        float(np.linalg.eigvalsh(visible_error_flow(errors, P, W2, P @ W2, x, h, 1 - h**2, rate))[-1])
        for rate in fine_rates(config)
    ]
    return (found, theory), linear_condition(errors, P @ W2 @ W2.T @ P.T, P)


def linear_condition(errors: np.ndarray, pull: np.ndarray, P: np.ndarray) -> float:
    """Return the critical rate that a linear network, whitened inputs, no noise would have, from its P W2 Q."""
    hidden = errors - errors @ P.T @ P
    weakest = np.linalg.eigvals(pull).real.min()
    return float(weakest / np.linalg.eigvalsh(hidden.T @ hidden / len(hidden)).max())


# Perceptrons


def perceptrons(rank: int, inputs: Splits, config: Config, resources: Resources) -> xr.Dataset:
    """Return what a perceptron with one hidden layer, squared error, sees and knows over time."""
    import xarray as xr

    steps = round(config.t_max / config.learning_rate)
    numbers = spread(steps, config.looks)
    found, whole, none = [], [], []
    for case in CASES:
        splits = few(inputs, config, config.wrong if case == "random labels" else 0.0)
        batch_size = config.batch_size if case == "minibatches" else len(splits.train.y)
        some = [
            _watched(splits, _members(rule_of(case, one), rates, config.learning_rate, config), looks, batch_size,
                     config, resources)
            for one, rates, looks in (
                (rank, config.reader_rates, numbers), (inputs.n_classes, (0.0,), (steps,)), (0, (0.0,), (steps,))
            )
        ]  # fmt: skip
        shape = (len(config.reader_rates), len(config.seeds), len(numbers))
        found.append({name: values.reshape(shape) for name, values in some[0].items()})
        whole.append(some[1]["error"][:, 0])
        none.append(some[2]["error"][:, 0])
    dimensions = ("case", "reader_rate", "seed", "step")
    coordinates = (list(CASES), list(config.reader_rates), list(config.seeds), list(numbers))
    return xr.Dataset(
        {name: (dimensions, np.stack([one[name] for one in found])) for name in found[0]}
        | {"whole": (("case", "seed"), whole), "none": (("case", "seed"), none)},
        dict(zip(dimensions, coordinates, strict=True)),
    )


def _members(rule: Rule, reader_rates: Sequence[float], rate: float, config: Config) -> list[Any]:
    """Return a member for every rate of the reader and every seed."""
    from linfb.engine import Member, Optimizers, sgd

    return [Member(rule, Optimizers(sgd(rate), P=sgd(one * rate)), s) for one in reader_rates for s in config.seeds]


def rule_of(case: str, rank: int) -> Rule:
    """Return the rule of a case; rank 0 stands for a channel that carries nothing."""
    from linfb.rules import low_rank, mirrors, readers

    if rank == 0:
        return low_rank(1, reader=readers.Fixed(), mirror=mirrors.Zero())
    mirror = mirrors.KolenPollack(start="aligned") if case == "Kolen-Pollack" else mirrors.Exact()
    return low_rank(rank, reader=readers.Oja(), mirror=mirror)


def few(inputs: Splits, config: Config, wrong: float = 0.0) -> Splits:
    """Return the rows that the perceptron learns; a share of their labels is drawn anew."""
    part = inputs.train
    labels = np.array(part.y[: config.rows])
    rng = np.random.default_rng(0)
    drawn = rng.random(len(labels)) < wrong
    labels[drawn] = rng.integers(0, inputs.n_classes, drawn.sum())
    return replace(inputs, train=type(part)(part.x[: config.rows], labels))


def _watched(
    splits: Splits, members: Sequence[Any], numbers: Sequence[int], batch_size: int, config: Config,
    resources: Resources,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return what is measured of every member after some steps, shape (member, step)."""
    from linfb.engine import mlp

    model = mlp(config.n_in, (config.n_hidden,), splits.n_classes, norm=None)
    found: dict[str, np.ndarray] = {}
    looked = watched(
        splits, model, members, numbers, ("train",), batch_size=batch_size, loss="squared_error",
        device=resources.device,
    )  # fmt: skip
    start: dict[int, np.ndarray] = {}
    for t, looks in enumerate(looked):
        for m, look in enumerate(looks):
            if look is not None:
                for name, value in measured(look, splits.train.y, start.setdefault(m, reader_of(look))).items():
                    found.setdefault(name, np.full((len(members), len(numbers)), np.nan))[m, t] = value
    return found


def reader_of(look: Look) -> np.ndarray:
    """Return P of the channel that reads the output."""
    channel = look.views["train"].channels[-1]
    assert channel is not None
    return channel.filters


def measured(look: Look, labels: np.ndarray, start: np.ndarray) -> dict[str, float]:
    """Return what is left of the errors and how much of it P sees, on training rows, and the test accuracy.

    `error` is in units of the labels' variance, `visible` in units of r/m, `followed` of what any r directions could
    see; `turned` is the share of P outside of what it read at the start, `classes` how many are mostly recognised,
    `pull` the smallest eigenvalue of P W2 Q, and `condition` the critical rate that a linear network would have.
    """
    view = look.views["train"]
    rows, P = rows_of(view.carried.reads[-1]), reader_of(look)
    labels, errors = labels[: len(rows)], -len(rows) * rows
    outputs = np.eye(rows.shape[1])[labels] - errors
    seen, size = np.sum((errors @ P.T) ** 2), np.sum(errors**2)
    right = outputs.argmax(axis=1) == labels
    best = np.linalg.eigvalsh(errors.T @ errors)[-len(P) :].sum()
    ideal, Q = P @ look.kernels[-1], getattr(view.channels[-1], "Q", None)
    pull = ideal @ (ideal if Q is None else Q).T
    return {
        "error": size / np.sum(centred(labels, rows.shape[1]) ** 2),
        "visible": seen / size * rows.shape[1] / len(P),
        "followed": seen / best,
        "turned": 1 - np.sum((P @ start.T) ** 2) / len(P),
        "classes": float(sum(right[labels == label].mean() > 0.5 for label in np.unique(labels))),
        "pull": np.linalg.eigvals(pull).real.min(),
        "condition": linear_condition(errors, pull, P) if len(P) < rows.shape[1] else np.nan,
        "accuracy": look.accuracy,
    }


def changed(rank: int, inputs: Splits, config: Config, resources: Resources) -> xr.Dataset:
    """Return what is left of the errors, and how much P sees, when a slow reader is changed half way."""
    import xarray as xr

    steps, splits = round(config.t_max / config.learning_rate), few(inputs, config)
    numbers = [int(number) for number in np.linspace(0, steps, 2 * config.looks + 1).round()]
    found = []
    for change in CHANGES:
        rule = _changed_rule(change, rank, numbers[config.looks], config)
        members = _members(rule, (config.slow,), config.learning_rate, config)
        found.append(_watched(splits, members, numbers, config.rows, config, resources))
    dimensions = ("change", "seed", "moment")
    return xr.Dataset(
        {f"{name}_changed": (dimensions, np.stack([one[name] for one in found])) for name in ("error", "visible")},
        {"change": list(CHANGES), "seed": list(config.seeds), "moment": config.learning_rate * np.array(numbers)},
    )


def _changed_rule(change: str, rank: int, after: int, config: Config) -> Rule:
    """Return a rule whose reader is another one after so many steps."""
    from linfb.rules import low_rank, mirrors, readers

    class Changed(readers.Oja):
        def gradient(self, view: Any) -> Any:
            descent = super().gradient(view)
            if view.number is None or view.number <= after or change == "nothing":
                return descent
            if change == "P drawn again":
                if view.number > after + 1:
                    return descent
                P = view.channel.P
                drawn = readers.draw("orthonormal", rank, P.shape[-1], np.random.default_rng(config.seeds[0]))
                return (P - drawn.astype(P.dtype)) / (config.slow * config.learning_rate)
            return descent * (0.0 if change == "P stops" else config.fast / config.slow)

    return low_rank(rank, reader=Changed(), mirror=mirrors.Exact())


def deep(rank: int, images: Splits, config: Config, resources: Resources) -> xr.Dataset:
    """Return what the channels into every hidden layer of a deep perceptron see in the end, in units of r/m.

    Cross-entropy, batch normalisation, minibatches; all channels are narrow, or that which reads the output alone.
    """
    import xarray as xr

    from linfb.engine import mlp
    from linfb.engine.observables import captured_energy

    model, last = mlp(images.train.x.shape[1], config.widths, images.n_classes), len(config.widths)
    widths = np.array([*config.widths[1:], images.n_classes])
    variance = np.sum(centred(images.train.y[:ROWS], images.n_classes) ** 2)

    def trained(rule: Rule, reader_rates: Sequence[float]) -> Any:
        """Return what channels see, what is left of the errors, and accuracies, shapes (rate, seed[, layer])."""
        shape = (len(reader_rates), len(config.seeds))
        seen, ends = np.full((*shape, last), np.nan), np.full((2, *shape), np.nan)
        members = _members(rule, reader_rates, config.deep_rate, config)
        *_, looks = watched(
            images, model, members, (config.steps,), ("train",), batch_size=config.batch_size, device=resources.device
        )
        for place, look in zip(np.ndindex(shape), looks, strict=True):
            if look is not None:
                view = look.views["train"]
                shares = captured_energy(view)[1:] * widths / np.minimum(rule.rank, widths)
                seen[place] = np.where([rule.at(k) is rule for k in range(1, last + 1)], shares, np.nan)
                errors = rows_of(view.carried.reads[-1])
                ends[:, *place] = np.sum((len(errors) * errors) ** 2) / variance, look.accuracy
        return seen, *ends

    rules = [replace(rule_of("full batch", rank), layers=(last,) if one == "output" else None) for one in NARROW]
    seen, error, accuracy = zip(*(trained(rule, config.deep_reader_rates) for rule in rules), strict=True)
    whole = trained(replace(rule_of("full batch", images.n_classes), layers=(last,)), (0.0,))
    dimensions = ("narrow", "deep_reader_rate", "seed")
    coordinates = (list(NARROW), list(config.deep_reader_rates), list(config.seeds))
    return xr.Dataset(
        {
            "deep_visible": ((*dimensions, "layer"), np.array(seen)), "deep_error": (dimensions, np.array(error)),
            "deep_accuracy": (dimensions, np.array(accuracy)), "deep_whole_error": ("seed", whole[1][0]),
            "deep_whole_accuracy": ("seed", whole[2][0]),
        },
        dict(zip(dimensions, coordinates, strict=True)) | {"layer": range(1, last + 1)},
    )  # fmt: skip


# What is said of it


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return how far exponents are from theory and from the condition of linear networks, and what ends look like."""
    slow, fast = config.reader_rates[0], config.reader_rates[-1]
    first, found = results.isel(rank=0), {}
    for kind in results.kind.values:
        here = results.sel(kind=kind)
        exponent = here.exponent.sel(fine_rate=list(config.reader_rates)).rename(fine_rate="reader_rate")
        found[f"{kind}: largest deviation of an exponent"] = float(abs(here.growth - exponent).max())
        found[f"{kind}: largest relative deviation of those above .01"] = float(
            abs(here.growth / exponent - 1).where(exponent > 0.01).max()
        )
        found[f"{kind}: share of the signs that are as theory says"] = float(
            ((here.growth > 0) == (exponent > 0)).mean()
        )
        grows = first.fine_rate.where(first.exponent.sel(kind=kind) > 0)
        found[f"{kind}, r={config.ranks[0]}: smallest rate at which the hidden state is left, by theory"] = float(
            grows.min()
        )
    found[f"tanh, r={config.ranks[0]}: the same by the condition of linear networks"] = float(first.still_condition)
    for target in TARGETS:
        here = first.sel(target=target, descent="full batch")
        for rate in config.reader_rates[1:]:
            known = here.known.sel(reader_rate=rate)
            found[f"linear, {target}, rate {rate:g}: modes known"] = float(known.mean())
        weakest = here.on_weakest.sel(reader_rate=fast)
        found[f"linear, {target}, rate {fast:g}: share of P on the weakest mode"] = float(weakest.mean())
    variance = first.s**2 + first.noise
    found["largest over smallest variance of labels along modes"] = float(variance.max() / variance.min())
    last = results.isel(step=-1)
    for rank in config.ranks:
        for rate in config.reader_rates:
            end = last.sel(rank=rank, case="full batch", reader_rate=rate)
            for name in ("error", "visible", "turned", "accuracy"):
                found[f"r={rank}, rate {rate:g}: {name}"] = float(end[name].mean())
        for case in CASES[2:]:
            ends = last.error.sel(rank=rank, case=case).mean("seed").dropna("reader_rate")
            found[f"{case}, r={rank}: error, slowest reader"] = float(ends[0])
            found[f"{case}, r={rank}: error, best reader"] = float(ends.min())
        for change in CHANGES:
            ends = results.error_changed.sel(rank=rank, change=change).isel(moment=-1)
            found[f"r={rank}, changed half way, {change}: error"] = float(ends.mean())
    for case in CASES:
        found[f"{case}, whole error: error"] = float(last.whole.sel(case=case).mean())
        found[f"{case}, nothing carried: error"] = float(last.none.sel(case=case).mean())
    ends = last.error.sel(case="full batch")
    found["root mean square difference of errors that minibatches make"] = float(
        np.sqrt(((last.error.sel(case="minibatches") - ends) ** 2).mean())
    )
    found["the same that the reader's rate makes, slowest and fastest"] = float(
        np.sqrt(((ends.sel(reader_rate=slow) - ends.sel(reader_rate=fast)) ** 2).mean())
    )
    found["smallest condition of linear networks in the perceptron, full batch"] = float(
        last.condition.sel(case="full batch").min()
    )
    for case in (CASES[0], CASES[3]):
        pull = last.pull.sel(case=case)
        for rate in (slow, fast):
            found[f"{case}, rate {rate:g}: P W2 Q in the end, median"] = float(pull.sel(reader_rate=rate).median())
        share = (results.pull.sel(case=case) < 0).sum() / np.isfinite(results.pull.sel(case=case)).sum()
        found[f"{case}: share of looks with a negative P W2 Q"] = float(share)
    found["fewest classes recognised, full batch"] = float(last.classes.sel(case="full batch").min())
    found["runs that diverged"] = float(np.isnan(last.error).sum())
    found["runs that diverged, deep"] = float(np.isnan(results.deep_accuracy).sum())
    for rank in config.ranks:
        for narrow in NARROW:
            for rate in config.deep_reader_rates:
                here = results.sel(rank=rank, narrow=narrow, deep_reader_rate=rate)
                words = f"deep, r={rank}, narrow: {narrow}, rate {rate:g}"
                found[f"{words}: visible at the output"] = float(here.deep_visible.isel(layer=-1).mean())
                found[f"{words}: error"] = float(here.deep_error.mean())
                found[f"{words}: accuracy"] = float(here.deep_accuracy.mean())
    found["deep, whole error: error"] = float(first.deep_whole_error.mean())
    found["deep, whole error: accuracy"] = float(first.deep_whole_accuracy.mean())
    return {name: value for name, value in found.items() if np.isfinite(value)}


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: hidden states and linear networks, perceptrons by reader rate, over time, and changed."""
    figure = new_figure(PAGE, 5.2)
    (growth, modes, error), (course, change, layers) = figure.subplots(2, 3)
    rank = config.ranks[0]
    first = results.sel(rank=rank)
    _growth(growth, first, config)
    _modes(modes, first, config)
    _error(error, results, config)
    _course(course, first, config)
    _changes(change, first, config)
    _layers(layers, first, config)
    for axes, letter in zip((growth, modes, error, course, change, layers), "abcdef", strict=True):
        panel_letter(axes, letter)
    for axes in (growth, modes, error):
        _rate_axis(axes, config.reader_rates)
    _rate_axis(layers, config.deep_reader_rates)
    for axes in (course, change):
        axes.set_xlabel(r"time, $t/\tau$")
    return figure


def _places(reader_rates: Sequence[float]) -> np.ndarray:
    """Return where reader rates are drawn on a logarithmic axis: zero below the smallest."""
    rates = np.array(reader_rates)
    return np.where(rates > 0, rates, rates[rates > 0].min() / 4)


def _rate_axis(axes: Any, reader_rates: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(_places(reader_rates), [f"{rate:g}" for rate in reader_rates])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(r"reader rate, $\rho$")


def _growth(axes: Any, first: xr.Dataset, config: Config) -> None:
    """Draw exponents against the reader's rate."""
    names = {"labels": "linear, labels", "realisable": "linear, realisable", "tanh": "tanh units, labels"}
    fine = np.where(first.fine_rate > 0, first.fine_rate, np.nan)
    for (kind, label), colour in zip(names.items(), COLOURS, strict=False):
        here = first.sel(kind=kind)
        axes.plot(fine, here.exponent, **THEORY)
        axes.plot(_places(config.reader_rates), here.growth, "o", color=colour, label=label, zorder=4)
    axes.axvline(float(first.still_condition), **THEORY | {"linestyle": ":"})
    axes.axhline(0, color=GREY, linewidth=0.6, linestyle=":")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(-0.6, 9)
    axes.set_yticks([-0.1, -0.01, 0, 0.01, 0.1, 1], ["-.1", "-.01", "0", ".01", ".1", "1"])
    axes.set_ylabel(r"exponent of what P sees, $\tau^{-1}$")
    axes.set_title(f"out of a hidden state, r = {int(first['rank'])}")
    axes.legend(loc="upper left", handletextpad=0.2)


def _modes(axes: Any, first: xr.Dataset, config: Config) -> None:
    """Draw how many modes linear networks know in the end."""
    from linfb.theory import critical_reader_rate

    for target, colour in zip(TARGETS, COLOURS, strict=False):
        for descent in first.descent.values:
            runs = first.known.sel(target=target, descent=descent).transpose("seed", "reader_rate").values
            _both(axes, config, runs, colour, str(descent), target)
    axes.axvline(critical_reader_rate(first.s.values, int(first["rank"])), **THEORY)
    axes.axhline(float(first["rank"]), color=GREY, linewidth=0.6, linestyle=":")
    axes.set_ylim(0, first.sizes["mode"] + 0.3)
    axes.set_ylabel("modes known in the end")
    axes.set_title(f"linear networks, r = {int(first['rank'])}")
    axes.legend(loc="upper left", handletextpad=0.4)


def _both(axes: Any, config: Config, runs: np.ndarray, colour: str, descent: str, label: str) -> None:
    """Draw runs by reader rate: full batches as dots on a line, minibatches as open squares beside them."""
    places = _places(config.reader_rates)
    if descent == "full batch":
        axes.plot(places, np.median(runs, axis=0), "-", color=colour, linewidth=1.0, label=label)
        for run in runs:
            axes.plot(places / 1.08, run, "o", color=colour, markersize=2.8, markeredgewidth=0)
    else:
        for run in runs:
            axes.plot(places * 1.08, run, "s", color=colour, markersize=3.4, markeredgewidth=0.6, fillstyle="none")


def _error(axes: Any, results: xr.Dataset, config: Config) -> None:
    """Draw what is left of the perceptron's errors against the reader's rate, for every rank."""
    last = results.error.isel(step=-1)
    for rank, colour in zip(config.ranks, COLOURS[2:], strict=False):
        for case in ("full batch", "minibatches"):
            runs = last.sel(rank=rank, case=case).transpose("seed", "reader_rate").values
            _both(axes, config, runs, colour, case, f"r = {rank}")
    captured = last.sel(rank=config.ranks[0], case="Kolen-Pollack").transpose("seed", "reader_rate").values
    median = np.median(captured, axis=0)
    axes.plot(_places(config.reader_rates), np.where(median < 1, median, np.nan), "--", color=COLOURS[2], linewidth=0.9,
              label=f"r = {config.ranks[0]}, Kolen-Pollack")  # fmt: skip
    for run in captured:
        axes.plot(_places(config.reader_rates), run, "x", color=COLOURS[2], markersize=3.5)
    for name, label, look in (("none", "nothing carried", (0, (4, 2))), ("whole", "whole error", "-")):
        level = float(results[name].sel(case="full batch").mean())
        axes.axhline(level, color=GREY, linewidth=1.0, linestyle=look, label=label, zorder=0)
    axes.set_ylim(0, 2 * float(results.none.sel(case="full batch").mean()))
    axes.set_ylabel("error left, share of variance")
    axes.set_title("perceptron")
    axes.legend(loc="upper right", handletextpad=0.4, labelspacing=0.2)


def _course(axes: Any, first: xr.Dataset, config: Config) -> None:
    """Draw the visible share of the error over time, for every rate of the reader."""
    from matplotlib import colormaps

    times = first.step.values * config.learning_rate
    rates = config.reader_rates
    for i, rate in enumerate(rates):
        colour = colormaps["cividis"](0.95 * i / (len(rates) - 1))
        for case, look in (("full batch", "-"), ("minibatches", "--")):
            runs = first.visible.sel(case=case, reader_rate=rate).median("seed")
            axes.plot(times[1:], runs[1:], look, color=colour, linewidth=1.2 if look == "-" else 0.8,
                      label=f"{rate:g}" if look == "-" else None)  # fmt: skip
    axes.axhline(1.0, color=GREY, linewidth=0.6, linestyle=":")
    axes.set_xscale("log")
    axes.set_ylim(0, None)
    axes.set_ylabel("visible share of the error / (r/m)")
    axes.set_title(f"perceptron, r = {int(first['rank'])}")
    axes.legend(title=r"$\rho$", title_fontsize=7, loc="lower left", ncols=2, handletextpad=0.4, columnspacing=0.8)


def _changes(axes: Any, first: xr.Dataset, config: Config) -> None:
    """Draw what is left of the errors when a slow reader is changed half way."""
    names = {
        "nothing": f"$\\rho$ = {config.slow:g}", "P stops": "then 0", "P drawn again": "then P drawn anew",
        "fast reader": f"then $\\rho$ = {config.fast:g}",
    }  # fmt: skip
    looks = ("-", (0, (2, 2)), "-", "-")
    for (change, label), colour, look in zip(
        names.items(), ("black", COLOURS[4], COLOURS[5], COLOURS[1]), looks, strict=True
    ):
        for i, run in enumerate(first.error_changed.sel(change=change).transpose("seed", "moment").values):
            axes.plot(first.moment, run, color=colour, linestyle=look, linewidth=1.2,
                      label=label if i == 0 else None)  # fmt: skip
    axes.axvline(float(first.moment[config.looks]), color=GREY, linewidth=0.6, linestyle=":")
    axes.set_ylim(0, 1.6 * float(first.error_changed.isel(moment=config.looks).max()))
    axes.set_ylabel("error left, share of variance")
    axes.set_title(f"changed half way, r = {int(first['rank'])}")
    axes.legend(loc="upper right", handletextpad=0.4, labelspacing=0.2)


def _layers(axes: Any, first: xr.Dataset, config: Config) -> None:
    """Draw what the channels of a deep perceptron see in the end."""
    places = _places(config.deep_reader_rates)
    top = first.layer.values[-1]
    lines = [(top, "output", COLOURS[0], "-", "output, alone narrow"), (top, "all", COLOURS[0], "--", "output")]
    lines += [
        (layer, "all", colour, "--", f"hidden layer {layer + 1}")
        for layer, colour in zip(first.layer.values[:-1], COLOURS[3:], strict=False)
    ]
    for layer, narrow, colour, look, label in lines:
        runs = first.deep_visible.sel(layer=layer, narrow=narrow).transpose("seed", "deep_reader_rate").values
        axes.plot(places, np.median(runs, axis=0), color=colour, linestyle=look, linewidth=1.0, label=label)
        for run in runs:
            axes.plot(places, run, "o", color=colour, markersize=2.8, fillstyle="full" if look == "-" else "none")
    axes.axhline(1.0, color=GREY, linewidth=0.6, linestyle=":")
    axes.set_yscale("log")
    axes.set_ylim(None, 25 * float(first.deep_visible.max()))
    axes.set_ylabel("visible share of the error / (r/m)")
    axes.set_title(f"deep perceptron, r = {int(first['rank'])}")
    axes.legend(loc="upper left", handletextpad=0.4, labelspacing=0.2)
