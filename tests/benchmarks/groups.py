"""What is measured: a function per group of rows, each from sizes and ceilings to rows and curves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np

import linfb
from linfb import rules
from linfb.engine import Model, cost
from linfb.rules import Channel, Rule, mirrors, readers
from tests.benchmarks import networks, pairs, peers
from tests.benchmarks.measure import difference, distance, interleaved, met, pinned, row, summary
from tests.benchmarks.networks import Sizes

OURS, THEIRS = "linfb", "PyTorch"
BP = rules.backpropagation()
BATCHES = 3  # on which accuracy is judged


@dataclass(frozen=True)
class Setting:
    """Sizes, threads, and the machine's ceilings just before."""

    sizes: Sizes
    ceilings: Mapping[str, Any]
    threads: int = 2

    def gemm(self, dtype: str = "float32") -> float:
        """Return the ceiling of products, operations per second."""
        return self.ceilings["gemm_flops_per_s"][dtype][str(self.threads)]

    def counted(self, model: Model, rule: Rule, rows: int) -> Any:
        """Return the cost of a step."""
        return cost(model, rule, batch_size=rows, optimizer=networks.optimiser())


def _against_torch(kind: str, at_most: float, norms: tuple[str | None, ...]) -> Callable[[Setting], dict[str, Any]]:
    def group(setting: Setting) -> dict[str, Any]:
        found = []
        for norm in norms:
            sizes = setting.sizes
            model = getattr(networks, kind)(sizes, norm)
            x, labels = networks.batch(model, sizes.batch)
            with pinned(setting.threads):
                weights = networks.gradients(model, BP, x, labels)[0]
                sides: dict[str, Any] = {OURS: networks.stepper(model, BP, x, labels), THEIRS: None}
                accuracy = None
                if peers.torch() is not None:
                    peers.torch().set_num_threads(setting.threads)
                    net = peers.placed(getattr(peers, kind)(sizes, norm), weights)
                    accuracy = _accuracy(model, net, sizes.batch)
                    sides[THEIRS] = peers.stepper(net, x, labels, channels_last=kind == "vgg")
                flops = setting.counted(model, BP, sizes.batch).total.flops
                found.append(row(
                    f"{kind}, {'batch normalisation' if norm else 'offsets'}: a training step", sides, sizes.seconds,
                    over=(OURS, THEIRS), at_most=at_most, accuracy=accuracy,
                    flops=dict.fromkeys(sides, flops), ceiling=setting.gemm(),
                ))  # fmt: skip
        return {"rows": found}

    return group


def _accuracy(model: Model, net: Any, rows: int) -> dict[str, Any]:
    """Return how far gradients of both sides are from PyTorch's in double precision."""
    ours, theirs = [], []
    for seed in range(BATCHES):
        x, labels = networks.batch(model, rows, seed=seed)
        exact = peers.gradients(net, x, labels, "float64")
        ours.append(distance(peers.like_theirs(networks.gradients(model, BP, x, labels)[1], exact), exact))
        theirs.append(distance(peers.gradients(net, x, labels), exact))
    what = f"gradients against {THEIRS} in float64, worst array, median of {BATCHES} batches"
    return {"what": what, "value": median(ours), "peer": median(theirs)}


def _saving(setting: Setting, name: str, model: Model, rule: Rule) -> dict[str, Any]:
    """Measure how much of the counted saving of a rule shows in the time of a step."""
    rows, sides = setting.sizes.batch, ("low rank", "backpropagation")
    x, labels = networks.batch(model, rows)
    counted = [setting.counted(model, one, rows) for one in (rule, BP)]
    with pinned(setting.threads):
        accuracy = _against_double(model, rule, rows)
        entry = row(
            name, {side: networks.stepper(model, one, x, labels) for side, one in zip(sides, (rule, BP), strict=True)},
            setting.sizes.seconds, over=sides, accuracy=accuracy,
            flops={side: one.total.flops for side, one in zip(sides, counted, strict=True)}, ceiling=setting.gemm(),
        )  # fmt: skip
    low, bp = counted
    roofline = [one.seconds(setting.gemm(), setting.ceilings["copy_bytes_per_s"]["warm"]) for one in counted]
    net, realised = low.net_saving(bp), 1 - entry["ratio"]["value"]
    entry["saving"] = {"realised": realised, "counted": net, "roofline": 1 - roofline[0] / roofline[1]}
    entry["judged"] = {
        "what": "realised / counted saving", "value": realised / net,
        "quartiles": sorted((1 - value) / net for value in entry["ratio"]["quartiles"]),
    }  # fmt: skip
    entry["goal"] = {"at_least": 0.8}
    entry["met"] = met(entry["judged"]["value"], entry["goal"])
    return entry


def _against_double(model: Model, rule: Rule, rows: int) -> dict[str, Any]:
    """Return how far the gradients of W, Q and P are from those in double precision."""
    found = []
    for seed in range(BATCHES):
        x, labels = networks.batch(model, rows, seed=seed)
        single, double = (networks.gradients(model, rule, x.astype(t), labels)[1:] for t in ("float32", "float64"))
        found.append(max(distance(a.values(), list(b.values())) for a, b in zip(single, double, strict=True)))
    what = f"gradients of W, Q and P against float64, worst array, median of {BATCHES} batches"
    return {"what": what, "value": median(found)}


def low_rank(setting: Setting) -> dict[str, Any]:
    """A step at r = width / 8 against backpropagation in the same engine."""
    sizes = setting.sizes
    cases = {
        f"square MLP, {sizes.base} wide": (networks.square(sizes.base, 4), rules.low_rank(1 / 8)),
        "vgg": (networks.vgg(sizes), rules.low_rank(1 / 8)),
        "vit": (networks.vit(sizes), rules.low_rank(max(1, sizes.dim // 8))),
    }
    rows = [_saving(setting, f"{name}, r = width/8: a training step", *case) for name, case in cases.items()]
    return {"rows": rows}


def closed_form(setting: Setting) -> dict[str, Any]:
    """A trajectory of a linear network, from the closed form and by integration."""
    sizes = setting.sizes
    n_in, _, n_out = sizes.linear
    task = linfb.gaussian_teacher(n_in, n_out, n_out // 2, scale=1 / 8)
    network, times = linfb.LinearNetwork(sizes.linear, linfb.Balanced(0.1)), np.linspace(0.5, 100.0, sizes.times)
    channel = rules.low_rank(max(1, n_out // 8), reader=readers.Fixed(), mirror=mirrors.Exact())
    from linfb.linear.simulation import initial_state

    weights = initial_state(task, network, BP, seed=0)[0].weights
    integrate = peers.trajectory(weights, task.Sigma_yx, task.Sigma_xx, times, 1e-9)

    def predicted(rule: Rule) -> np.ndarray:
        return linfb.theory.predict(task, network, rule, times, observe="network_map")["network_map"].values[0]

    def simulated(rule: Rule, rtol: float = 1e-9) -> np.ndarray:
        method = linfb.linear.Dop853(rtol=rtol, atol=1e-3 * rtol)
        return linfb.simulate(task, network, rule, times, method=method, observe="network_map")["network_map"].values[0]

    def accuracy(rule: Rule) -> dict[str, Any]:
        gap = difference(predicted(rule), simulated(rule, 1e-12))
        return {"what": "maps, closed form against integration at rtol 1e-12, relative", "value": gap}

    name = f"linear {'-'.join(map(str, sizes.linear))}, {sizes.times} times to t = 100"
    peer_sides = {"closed form": lambda: predicted(BP), "SciPy DOP853 (rtol 1e-9)": integrate}
    own_sides = {"closed form": lambda: predicted(channel), "linfb DOP853 (rtol 1e-9)": lambda: simulated(channel)}
    with pinned(1):
        found = [
            row(f"{name}: {what}", sides, sizes.seconds, over=tuple(reversed(sides)), at_least=20.0, threads=1,
                accuracy=accuracy(rule))
            for what, sides, rule in (("backpropagation", peer_sides, BP), ("fixed channel", own_sides, channel))
        ]  # fmt: skip
    return {"rows": found}


def online(setting: Setting) -> dict[str, Any]:
    """Learning sample by sample in single precision: our compiled loop against a compiled scan."""
    from linfb.linear.flow import State
    from linfb.linear.online import advance

    sizes, rng = setting.sizes, np.random.default_rng(0)
    single = np.float32
    weights = tuple(
        (rng.standard_normal((n, m)) / np.sqrt(m)).astype(single)
        for m, n in zip(sizes.linear[:-1], sizes.linear[1:], strict=True)
    )
    inputs = rng.standard_normal((sizes.samples, sizes.linear[0])).astype(single)
    labels = rng.standard_normal((sizes.samples, sizes.linear[-1])).astype(single)
    state = State(tuple(W[None] for W in weights), tuple(Channel() for _ in weights[1:]))

    def ours() -> tuple[np.ndarray, ...]:
        moved = advance(BP, 0.0, state, inputs[:, None, None], labels[:, None, None], 1e-4)
        return tuple(W[0] for W in moved.weights)

    theirs = None if peers.jax() is None else peers.online_scan(weights, inputs, labels, 1e-4)
    with pinned(1):
        accuracy = None
        if theirs is not None:
            worst = max(difference(mine, other) for mine, other in zip(ours(), theirs(), strict=True))
            accuracy = {"what": f"weights after {sizes.samples} steps, relative", "value": worst}
        name = f"linear {'-'.join(map(str, sizes.linear))}, {sizes.samples} online steps"
        entry = row(
            name, {OURS: ours, "JAX scan": theirs}, sizes.seconds, over=(OURS, "JAX scan"), at_most=0.8,
            accuracy=accuracy, threads=1, steps=sizes.samples,
        )  # fmt: skip
    return {"rows": [entry]}


def ensemble(setting: Setting) -> dict[str, Any]:
    """Many small networks together, one by one, and one by one in PyTorch."""
    sizes = setting.sizes
    *widths, n_out = sizes.member
    model = networks.perceptron(widths[0], widths[1:], n_out, norm="batch")
    x, labels = networks.batch(model, sizes.member_batch)
    members, seconds = sizes.members, sizes.seconds / 2
    singles = [networks.stepper(model, BP, x, labels, seed) for seed in range(members)]
    step_together = networks.ensemble_stepper(model, BP, x, labels, members)
    in_a_row = 8  # as in training, where what a step finds in the caches is its own
    widths_of_member = "-".join(map(str, sizes.member))
    name = f"{members} perceptrons {widths_of_member}, batch {sizes.member_batch}: {in_a_row} steps of each"
    torch, found = peers.torch(), []

    def together() -> None:
        for _ in range(in_a_row):
            step_together()

    def one_by_one() -> None:
        for call in singles:
            for _ in range(in_a_row):
                call()

    def theirs(threads: int) -> Callable[[], Any] | None:
        if torch is None:
            return None
        steps = peers.single_members(sizes.member, members, x, labels, in_a_row)

        def call() -> None:
            torch.set_num_threads(threads)
            steps()

        return call

    flops = in_a_row * members * setting.counted(model, BP, sizes.member_batch).total.flops
    with pinned(setting.threads):
        accuracy = {
            "what": f"weights of members against their single runs after {in_a_row} steps, worst array of all",
            "value": networks.members_apart(model, BP, x, labels, members, in_a_row),
        }
        sides = {"ensemble": together, "one by one": one_by_one}
        shared: dict[str, Any] = {
            "flops": dict.fromkeys(sides, flops), "ceiling": setting.gemm(), "accuracy": accuracy
        }  # fmt: skip
        found.append(row(name, sides, seconds, over=("one by one", "ensemble"), at_least=3.0, **shared))
        for threads in (1, setting.threads):
            peer = f"{THEIRS}, {threads} thread{'s' if threads > 1 else ''}"
            sides = {"ensemble": together, "one by one": one_by_one, peer: theirs(threads)}
            shared["flops"] = dict.fromkeys(sides, flops)
            found.append(row(name, sides, seconds, over=(peer, "ensemble"), at_least=5.0, **shared))
    return {"rows": found}


def linear(setting: Setting) -> dict[str, Any]:
    """Fast paths of the linear core against what they replace."""
    modules = [pairs]
    if find_spec("tests.benchmarks.linear") is not None:
        modules.append(import_module("tests.benchmarks.linear"))
    functions = [
        function
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
        if not inspect.signature(function).parameters  # the rest is help
    ]
    found = []
    with pinned(1):
        for function in functions:
            try:
                made = function()
            except ImportError as error:
                sides = {str(error.name): "missing"}
                found.append({"name": function.__name__, "sides": sides, "over": [], "ratio": None, "met": None})
                continue
            for name, slow, fast, distance in made:
                accuracy = {"what": "results", "value": float(distance(slow(), fast()))}  # and warm
                found.append(row(
                    name, {"slow": slow, "fast": fast}, setting.sizes.seconds / 3, over=("slow", "fast"), threads=1,
                    accuracy=accuracy, least=3, warm_up=0,
                ))  # fmt: skip
    return {"rows": found}


def _curve(setting: Setting, axis: str, points: list[tuple[int, Model, int, Rule]]) -> dict[str, Any]:
    """Measure steps of backpropagation and of a low-rank rule at each point (place on the axis, model, rows, rule)."""
    curve: dict[str, Any] = {"axis": axis, "x": [], "sides": {}}
    for place, model, rows, rule in points:
        x, labels = networks.batch(model, rows)
        of_each = {"backpropagation": BP, "low rank": rule}
        with pinned(setting.threads):
            steps = {side: networks.stepper(model, one, x, labels) for side, one in of_each.items()}
            durations = interleaved(steps, setting.sizes.seconds / 6, least=3, most=100)
        curve["x"].append(place)
        for side, one in of_each.items():
            found = summary(durations[side])
            flops = setting.counted(model, one, rows).total.flops
            found |= {"gflop": flops / 1e9, "share_of_ceiling": flops / (found["ms"] / 1e3) / setting.gemm()}
            curve["sides"].setdefault(side, []).append(found)
    return curve


def scaling(setting: Setting) -> dict[str, Any]:
    """Steps of square perceptrons, four layers deep unless that is the axis, against every size."""
    sizes, rows = setting.sizes, setting.sizes.batch
    eighth, base = rules.low_rank(1 / 8), networks.square(sizes.base, 4)
    curves = [
        _curve(setting, "width", [(w, networks.square(w, 4), rows, eighth) for w in sizes.scaling_width]),
        _curve(setting, "depth", [(d, networks.square(sizes.base, d), rows, eighth) for d in sizes.scaling_depth]),
        _curve(setting, "batch", [(n, base, n, eighth) for n in sizes.scaling_batch]),
        _curve(setting, "rank", [(r, base, rows, rules.low_rank(r)) for r in sizes.scaling_rank]),
        _members(setting),
    ]
    return {"rows": [], "curves": curves}


def _members(setting: Setting) -> dict[str, Any]:
    """Measure a step of all members against their number, one by one and together."""
    sizes = setting.sizes
    *widths, n_out = sizes.member
    model = networks.perceptron(widths[0], widths[1:], n_out, norm="batch")
    x, labels = networks.batch(model, sizes.member_batch)
    curve: dict[str, Any] = {"axis": "ensemble size", "x": list(sizes.scaling_members), "sides": {}}
    for members in sizes.scaling_members:
        singles = [networks.stepper(model, BP, x, labels, seed) for seed in range(members)]
        together = networks.ensemble_stepper(model, BP, x, labels, members)
        sides: dict[str, Any] = {"one by one": lambda steps=singles: [call() for call in steps]}
        if together is None:
            curve["sides"]["ensemble"] = "missing"
        else:
            sides["ensemble"] = together
        with pinned(setting.threads):
            for side, found in interleaved(sides, sizes.seconds / 6, least=3, most=100).items():
                curve["sides"].setdefault(side, []).append(summary(found))
    return curve


GROUPS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "mlp": _against_torch("mlp", 0.9, (None, "batch")),
    "vgg": _against_torch("vgg", 0.6, (None, "batch")),
    "vit": _against_torch("vit", 0.9, (None,)),
    "low_rank": low_rank,
    "closed_form": closed_form,
    "online": online,
    "ensemble": ensemble,
    "linear": linear,
    "scaling": scaling,
}
"""The groups by name, in the order in which they are measured."""
