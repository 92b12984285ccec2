"""The figures: each simulates and draws on a tiny configuration, agrees with theory, and is cached by content."""

import json
import math
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from jaxtyping import config as jaxtyping_config

import figures
from figures import __main__ as command
from figures import (
    _cache,
    _measured,
    _record,
    _run,
    _source,
    _style,
    _training,
    _variants,
    _watched,
    alignment,
    blocks,
    capture,
    carried,
    classes,
    committee,
    compute,
    constrained,
    cost,
    deep,
    hiding,
    language,
    learning_times,
    mlp,
    modes,
    networks,
    noise,
    phase_diagram,
    rank,
    readers,
    receptive_fields,
    regimes,
    small_starts,
    threshold,
    transformer,
    unbalanced,
    update_rank,
    wide,
)  # fmt: skip
from linfb import rules
from linfb.engine import Member, amsgrad, sgd, train, train_ensemble
from linfb.engine import cost as engine_cost
from linfb.engine import mlp as mlp_network
from linfb.experiments import Store

ROOT = Path(figures.__file__).parents[1]
HERE = _run.Resources()
SMALL = cost.Network("mlp", {"widths": (24, 16)}, 8, image=4)
CLASS_RULES = ("backpropagation", "zero feedback", "low-rank r=1", "low-rank r=3")
TINY = {
    "modes": modes.Config(
        rules=("backpropagation", "fixed P", "Oja on labels", "DFA (3 layers)", "zero feedback"), seeds=(0, 1), n_in=5,
        n_hidden=4, n_out=4, t_max=6.0, n_times=13,
    ),
    "rank": rank.Config(
        rules=(*rank.REFERENCES, "fixed P, Q learned", "Oja on labels"), ranks=(1, 2, 4), seeds=(0, 1), n_in=8,
        n_hidden=6, n_out=6, teacher_rank=3, teacher_scale=0.8, step_size=4e-3, t_max=4.0,
    ),
    "threshold": threshold.Config(decays=(0.3, 0.7), ranks=(4, 8, 12), seeds=(0, 1), n_out=16, n_modes=4),
    "learning_times": learning_times.Config(
        cases=((8, 1, 2), (24, 6, 12)), seeds=tuple(range(150)), many_modes_seeds=20, t_max=40.0, n_times=201
    ),
    "mlp": mlp.Config(
        cells=("backpropagation", "zero feedback", "fixed P r=1", "fixed P r=5", "Oja r=1", "Oja r=5"), seeds=(0, 1, 2),
        widths=(16,), epochs=3, learning_rates=(1e-2, 1e-6),
    ),
    "constrained": constrained.Config(
        cells=(
            "backpropagation", "zero feedback", "zero feedback into 1", "into hidden layer 1 r=1",
            "into hidden layer 3 r=1", "into hidden layer 3 r=10", "all layers r=1", "all layers r=10",
            "narrow network r=1", "narrow network r=10", "direct from output r=10", "direct from last hidden r=10",
        ),
        seeds=(0, 1), widths=(12, 12, 12), epochs=4, learning_rates=(1e-2,), train=700,
    ),
    "classes": classes.Config(
        cells=(*(f"3 classes / {rule}" for rule in CLASS_RULES), *(f"10 classes / {rule}" for rule in CLASS_RULES)),
        seeds=(0, 1), widths=(16, 16), epochs=3, learning_rates=(1e-2,),
    ),
    "networks": networks.Config(
        cells=(
            "vgg / low-rank", "vit / feedback alignment", "retina / backpropagation", "retina / narrow optic nerve",
            "retina / zero feedback",
        ),
        train=400, validation=100,
        vgg=networks.Ranked(
            {"widths": (6,), "dense": 16}, 1, 50, (1e30, 1e-2), "rmsprop", 0.0, ("Exponential", 0.9), ("flip",), 4
        ),
        vit=networks.Ranked({"patch": 4, "width": 8, "depth": 1, "heads": 2}, 2, 50, (1e-2,), rank=4),
        retina=networks.Ranked(
            {"width": 4, "bottleneck": 4, "size": 3, "ventral": 1, "dense": 16, "dropout": 0.0}, 2, 10, (1e-2, 1e-6),
            rank=4,
        ),
    ),
    "blocks": blocks.Config(
        cells=(
            "backpropagation", *blocks.NOTHING, "second block r=1/4", "all blocks r=1/4", "all blocks r=1/2",
            "Q only r=1/2", "neither r=1/2",
        ),
        seeds=(0,), train=200, validation=100,
        network=_training.Training({"widths": (4, 4, 4), "dense": 8, "dropout": 0.0}, 1, 50, (1e-2,)),
        epochs={"second block": 2},
    ),
    "transformer": transformer.Config(
        cells=("backpropagation", "zero feedback", "normative r=1", "normative r=4", "Oja r=4"), seeds=(0,),
        train=700, validation=100, feedback_rate=0.01,
        network=_training.Training({"patch": 4, "width": 8, "depth": 1, "heads": 2}, 6, 25, (1e-2,)),
    ),
    "receptive_fields": receptive_fields.Config(
        cells=("feedback of 1", "nerve of 2"), seeds=(0, 1), train=200, validation=100, width=4, size=3, ventral=1,
        dense=16, dropout=0.0, epochs=1, batch_size=20, learning_rate=5e-3, samples=8,
    ),
    "language": language.Config(
        cells=(*language.FULL, "low-rank r=1", "low-rank r=4", "direct low-rank r=4"), seeds=(0,), characters=8000,
        length=16, width=8, heads=1, epochs=2, learning_rates=(1e-2,),
    ),
    "phase_diagram": phase_diagram.Config(
        decays=(0.1, 0.3), n_out=16, tasks=(4, 12), ranks=(2, 8, 14), n_modes=4, flow_ranks=(8,), time_rank=8,
        seeds=tuple(range(10)), n_times=61, t_end=150.0, sizes=(16, 32), size_draws=1000,
    ),
    "unbalanced": unbalanced.Config(
        imbalances=(0.0, 0.3, 1.5), ranks=(1, 4), seeds=(0, 1), width=4, n_times=61, t_max=12.0, drawn=(0.0, 1.5)
    ),
    "small_starts": small_starts.Config(
        scales=(1e-2, 3e-3), reader_rates=(1.0, 4.0), shares=(1e-2, 1.0), drawn=1e-2, n_times=201
    ),
    "regimes": regimes.Config(
        reader_rates=(1.2, 16.0), mirror_rates=(regimes.KOLEN_POLLACK, 10.0), ranks=(1,), seeds=(0,), t_max=40.0,
        n_times=161,
    ),
    "capture": capture.Config(
        ratios=(0.5,), reader_rates=(0.3, 0.6, 1.5), weight_decay=0.1, t_max=60.0, tilts=(0.08,),
        distances=(0.15, 0.2, 0.23, 0.25, 0.27, 0.35),
    ),
    "wide": wide.Config(widths=(32, 256), seeds=(0, 1, 2), train=12, test=20, times=(0.0, 2.0, 10.0, 20.0)),
    "committee": committee.Config(n_in=100, t_max=5.0, n_times=4, inputs=(16, 64), runs=20),
    "readers": readers.Config(
        cells=("fixed P r=2", "Oja r=2", "similarity matching r=2", "plain Oja by SGD r=2"),
        seeds=(0, 1), widths=(16, 16), steps=60, looks=3, frozen_time=25.0,
    ),
    "update_rank": update_rank.Config(
        cells=(
            "SGD / linear / low-rank r=2", "SGD / ReLU / low-rank r=2", "SGD / linear / backpropagation",
            "Muon / linear / low-rank r=2", "Adam / batch norm / low-rank r=2", "Adam / batch norm / low-rank r=5",
        ),
        seeds=(0,), widths=(16, 16), steps=12, looks=3,
    ),
    "alignment": alignment.Config(
        cells=("fixed P r=1", "fixed P r=4", "fixed P r=12", "Oja r=1", "Oja r=4"), seeds=(0, 1), widths=(12, 12),
        steps=20,
    ),
    "carried": carried.Config(
        cells=(
            "vgg / random r=3", "vgg / random r=24", "vgg / unrelated r=24", "vgg / Oja r=3", "vit / random r=3",
            "vit / random r=24", "vit / aligned r=3", "vit / fixed P r=3",
        ),
        seeds=(0, 1), widths=(6,), dense=8, vit={"patch": 4, "width": 8, "depth": 1, "heads": 2}, steps=6, draws=40,
    ),
    "compute": compute.Config(
        cells=(
            "mlp / backpropagation", "mlp / feedback alignment", "mlp / zero feedback", "mlp / low-rank r=1",
            "mlp / low-rank r=10", "vit / backpropagation", "vit / low-rank r=2",
        ),
        seeds=(0, 1), train=500, rounds=2, timed_steps=2,
        mlp=compute.Setting({"widths": (16, 16)}, 4, 20, (1e-2,), (0.5, 0.85, 0.999)),
        vit=compute.Setting({"patch": 4, "width": 8, "depth": 1, "heads": 2}, 2, 50, (1e-2,), (0.2,)),
    ),
    "cost": cost.Config(
        cells=("mlp_32", "vit"), ranks=(1, 4, 16), measured_ranks=(2,), rounds=2, timed_steps=2,
        mlp_32=cost.Case("perceptron", SMALL, SMALL),
        vit=cost.Case(
            "transformer", cost.Network("vit", {"patch": 4, "width": 16, "depth": 2, "heads": 2}, 4, image=8),
            cost.Network("vit", {"patch": 4, "width": 8, "depth": 1, "heads": 2}, 2, image=8),
        ),
    ),
    "hiding": hiding.Config(
        ranks=(1,), reader_rates=(0.0, 0.1, 2.0, 10.0), seeds=(0,), n_hidden=12, rows=100, t_max=60.0, looks=3,
        still=24, still_time=90.0, widths=(12, 12), steps=20, train=400, deep_reader_rates=(0.0, 3.0),
    ),
    "deep": deep.Config(
        channels=(1, 2), ranks=(1, 3), seeds=(0, 1), n_layers=3, width=3, c0=0.05, t_max=40.0, n_times=60,
        alphas=(0.2, 0.4),
    ),
    "noise": noise.Config(
        ranks=(1, 4), learning_rates=(0.02,), batch_sizes=(1, 2), seeds=tuple(range(16)), n_in=4, n_out=4, t_max=20.0,
        n_times=13,
    ),
}  # fmt: skip


class Simulated(dict[str, xr.Dataset]):
    """The tiny figures, each simulated when it is first asked for: part by part, and joined as the command does it.

    Shapes and types, whose checks take most of the time, are checked in the first part of every figure.
    """

    def __missing__(self, name: str) -> xr.Dataset:
        parts = []
        try:
            for part in _run.parts_of(name, TINY[name], HERE):
                parts.append(replace(part, dataset=figures.load(name).simulate(part.config, HERE)))
                jaxtyping_config.update("jaxtyping_disable", True)
        finally:
            jaxtyping_config.update("jaxtyping_disable", False)
        self[name] = _run.joined(name, TINY[name], parts)
        return self[name]


@pytest.fixture(scope="module")
def results() -> Simulated:
    return Simulated()


@pytest.mark.parametrize("name", ["modes", "threshold"])
def test_parts_joined_are_the_whole(name, results):
    whole = figures.load(name).simulate(TINY[name], HERE)
    xr.testing.assert_allclose(whole.transpose(*results[name].dims), results[name], rtol=1e-12)


def open_figures():
    return sys.modules["matplotlib.pyplot"].get_fignums() if "matplotlib.pyplot" in sys.modules else []


@pytest.mark.parametrize("name", figures.NAMES)
def test_figure_is_drawn_without_traces(name, results, tmp_path):
    import matplotlib as mpl

    before, opened = dict(mpl.rcParams), open_figures()
    tiny = _variants.Variant(name, "tiny", TINY[name])
    checks = _run.checks_of(tiny, results[name])
    _run.draw(tiny, results[name], tmp_path)
    assert dict(mpl.rcParams) == before
    assert open_figures() == opened
    assert all(math.isfinite(value) for value in checks.values())
    assert (tmp_path / f"{name}-tiny.pdf").read_bytes().startswith(b"%PDF")
    png = (tmp_path / f"{name}-tiny.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert 3000 < len(png) < 200_000


@pytest.mark.parametrize("name", figures.NAMES)
def test_text_is_readable_at_column_width(name, results):
    from matplotlib.text import Text

    with _style.style():
        figure = figures.load(name).plot(results[name], TINY[name])
        assert not figure.get_suptitle()  # what is written above a figure is how it was made
        _style.stamp(figure, "preset tiny, " + "epochs=3, " * 50)
        sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert figure.get_figwidth() in (_style.COLUMN, _style.PAGE)
    assert min(sizes) >= 7


def test_modes_follow_theory_and_not_that_of_backpropagation(results):
    checks = modes.checks(results["modes"], TINY["modes"])
    assert checks["largest deviation from theory"] < 1e-6
    assert checks["panels with theory"] == 6  # three rules at two ranks
    assert checks["fixed P, deviation if kappa is ignored"] > 0.3


def test_modes_check_would_notice_a_wrong_theory(results):
    wrong = results["modes"].assign(theory=results["modes"].unseen)
    assert modes.checks(wrong, TINY["modes"])["largest deviation from theory"] > 0.3


def test_every_rule_of_modes_can_be_built():
    config = modes.Config()
    for label in config.rules:
        rule, depth = modes.rule_of(label, config)
        assert depth == (3 if "3 layers" in label else 2)
        assert rule.reader.compresses == (label in modes.CHANNELS)


def test_rank_follows_theory(results):
    checks = rank.checks(results["rank"], TINY["rank"])
    assert checks["fixed P: largest deviation of a mode from theory, in units of s"] < 0.02  # Euler against flow
    assert checks["fixed P: the same if kappa is ignored"] > 0.3


def test_oja_on_labels_reaches_the_best_map_of_its_rank(results):
    best = rank.bounds(TINY["rank"])[1]
    loss = results["rank"].loss.transpose("rule", "seed", "rank")
    narrow = [r < TINY["rank"].teacher_rank for r in TINY["rank"].ranks]  # the weakest mode takes longer than this run
    assert np.abs(loss.sel(rule="Oja on labels").values - best)[:, narrow].max() < 1e-6
    assert np.all((loss.sel(rule="fixed P, Q learned").values - best)[:, narrow] > 1e-2)


def test_small_starts_take_as_long_as_theory_says(results):
    checks = small_starts.checks(results["small_starts"], TINY["small_starts"])
    assert checks["Oja: largest relative deviation of a half-time from theory"] < 0.01
    assert checks["the same if the channel stayed"] > 0.5
    assert checks["fixed P: relative deviation from theory, smallest start"] < 0.01
    assert checks["synapse-local: relative deviation from theory, smallest start"] < 0.01
    assert checks["normative, mode 2: relative deviation from theory, smallest start"] < 0.25  # late by about its root
    for name in ("synapse-local", "normative, mode 2"):
        assert checks[f"{name}: exponent of the time in the scale"] < -0.85
    assert checks["Oja: exponent of the time in the scale"] > -0.3


def test_regimes_are_where_theory_puts_them(results):
    checks = regimes.checks(results["regimes"], TINY["regimes"])
    assert checks["share of runs that turn or stay as theory says (mirrors not slower than the weights)"] == 1.0
    assert checks["the same with s_(r+1) for s_r"] == 0.5
    assert checks["multiplexing: largest relative deviation of a half-time from the law"] < 0.25
    assert checks["the same, all modes in parallel"] > 0.6
    assert checks["capture: largest deviation of the number of known modes from r"] < 0.1
    assert checks["the same with the fastest weight mirror"] > 0.5


def test_capture_is_where_theory_puts_it(results):
    checks = capture.checks(results["capture"], TINY["capture"])
    assert checks["period: largest relative deviation from theory"] < 0.05
    assert checks["the same if readers were infinitely fast"] > 0.3
    assert checks["share of runs that go round, from the cycle, where theory has one"] == 1.0
    assert checks["share of runs that turn, from the learned mode, above the critical rate only"] == 1.0
    assert checks["distance at which a tilted reader turns: mean relative deviation from theory"] < 0.15
    assert checks["second singular value of the hidden layer at the end, relative to the first"] < 0.01


def test_hidden_states_are_left_where_theory_says(results):
    """Tanh units leave theirs at a rate at which linear networks without noise are held, by theory and in fact."""
    found = results["hiding"].isel(rank=0)
    exponent = found.exponent.sel(fine_rate=[0.1, 2.0, 10.0]).transpose("kind", ...).values
    growth = found.growth.sel(reader_rate=[0.1, 2.0, 10.0]).transpose("kind", ...).values
    for k, kind in enumerate(found.kind.values):
        growing = exponent[k] > 0
        assert growth[k][growing] == pytest.approx(exponent[k][growing], rel=1e-2), kind
        assert np.array_equal(growing, {"labels": [1, 1, 1], "realisable": [0, 0, 1], "tanh": [0, 1, 1]}[kind]), kind
        assert np.all(growth[k][~growing] < 0), kind
    assert float(found.still_condition) > 2  # by which tanh units would stay at 2


def test_slow_readers_hide_errors_and_minibatches_do_not_show_them(results):
    checks = hiding.checks(results["hiding"], TINY["hiding"])
    assert checks["r=1, rate 0.1: visible"] < 0.3
    assert checks["r=1, rate 10: visible"] > 0.8
    noise = checks["root mean square difference of errors that minibatches make"]
    assert noise < 0.2 * checks["the same that the reader's rate makes, slowest and fastest"]
    changed = {change: checks[f"r=1, changed half way, {change}: error"] for change in hiding.CHANGES}
    assert abs(changed["P stops"] - changed["nothing"]) < 0.2 * (changed["nothing"] - changed["fast reader"])
    left = results["hiding"].error.isel(step=-1, rank=0).mean("seed")
    perfect, learned = (left.sel(case=case, reader_rate=[0.0, 10.0]).values for case in ("full batch", "Kolen-Pollack"))
    assert perfect[1] < perfect[0] - 0.1
    assert learned[0] == pytest.approx(perfect[0], rel=1e-3)  # where P rests, a mirror that starts aligned stays so
    assert learned[1] > perfect[1] + 0.1


def test_what_is_measured_of_hiding_by_hand():
    from linfb.theory import critical_reader_rate_at

    assert hiding.rate_of_growth(1e-8 * 1.03 ** np.arange(400), 0.1) == pytest.approx(0.3, rel=1e-12)
    E, P, W2, Q = np.diag([0.0, 2.0]), np.array([[1.0, 0.0]]), np.array([[1.5], [0.0]]), np.array([[2.0]])
    condition = hiding.linear_condition(np.sqrt(2) * E.T, P @ W2 @ Q.T, P)
    assert condition == pytest.approx(critical_reader_rate_at(E, P, W2, Q), rel=1e-12) == 0.75
    splits = hiding.whitened(TINY["hiding"].splits(HERE), 20)
    x = splits.train.x
    np.testing.assert_allclose(x.T @ x / len(x), np.eye(20), rtol=0, atol=1e-9)


def test_a_reader_is_changed_half_way_and_not_before():
    config = replace(TINY["hiding"], rows=50)
    splits = hiding.few(hiding.whitened(config.splits(HERE), config.n_in), config)
    model = mlp_network(config.n_in, (8,), 10, norm=None)

    def readers_of(change):
        members = hiding._members(hiding._changed_rule(change, 1, 2, config), (config.slow,), 0.3, config)
        return [looks[0].views["train"].channels[-1].P for looks in _watched.watched(
            splits, model, members, (2, 3, 4), ("train",), batch_size=50, loss="squared_error"
        )]  # fmt: skip

    slow, still, drawn, fast = map(readers_of, hiding.CHANGES)
    assert np.array_equal(slow[0], still[0])
    assert np.array_equal(slow[0], drawn[0])
    assert np.array_equal(still[0], still[2])
    steps = [P[1] - P[0] for P in (slow, fast)]
    np.testing.assert_allclose(steps[1], config.fast / config.slow * steps[0], rtol=0, atol=1e-5)  # single precision
    fresh = rules.readers.Fixed().initial(1, 10, np.random.default_rng(config.seeds[0]))
    np.testing.assert_allclose(drawn[1], fresh, rtol=0, atol=1e-6)
    assert np.abs(drawn[1] - slow[1]).max() > 0.1


def test_threshold_follows_theory(results):
    config = TINY["threshold"]
    checks = threshold.checks(results["threshold"], config)
    assert checks["the same, runs that are still undecided at the end left out"] == 1.0
    assert checks["share of runs whose count is as theory says"] > 0.9
    assert checks["the same if kappa is ignored"] < 0.7
    decided = results["threshold"].nearest * config.t_max >= threshold.DECIDED
    assert float(decided.mean()) > 0.8


def test_learning_times_follow_their_law(results):
    config = TINY["learning_times"]
    checks = learning_times.checks(results["learning_times"], config)
    assert checks["largest relative deviation of a run from its own half-learning time"] < 1e-6
    critical = 1.95 / math.sqrt(len(config.seeds))  # of the Kolmogorov-Smirnov test at the level 0.001
    assert checks["Kolmogorov-Smirnov distance, m=8 d=1 r=2"] < critical
    assert checks["the same from the law of rank r + 1, m=8 d=1 r=2"] > critical
    assert checks["Kolmogorov-Smirnov distance, m=24 d=6 r=12"] < critical  # the modes of a run repel: smaller still


def test_phase_diagram_follows_theory(results):
    config = TINY["phase_diagram"]
    checks = phase_diagram.checks(results["phase_diagram"], config)
    name = "largest deviation of a flow's final loss from that of its channel, in units of the loss at the start"
    assert checks[name] < 1e-3  # modes near the threshold are slow
    bias = checks["bias of the limit in standard errors of the mean, root mean square"]
    assert bias > 4
    assert checks["the same after correction"] < bias / 2  # what is left is O(1 / m^2), at m = 16 and 32
    critical = 1.95 / math.sqrt(len(config.seeds) * config.n_modes)
    for decay in config.decays:
        assert checks[f"Kolmogorov-Smirnov distance of half-learning times, decay {decay:g}"] < critical
    assert checks["the same from the corrected law at a decay larger by 0.1"] > 0.1


def test_half_times_interpolates_a_logistic_exactly():
    times = np.linspace(0.0, 10.0, 21)
    strength = 2.0 / (1 + np.exp(-(times[:, None] - np.array([3.3, 7.1, 40.0]))))
    assert learning_times.half_times(times, strength, 2.0) == pytest.approx([3.3, 7.1, np.inf], rel=1e-12)


def test_wide_networks_and_committees_approach_their_theory(results):
    found = wide.checks(results["wide"], TINY["wide"])
    for name in ("relu, channel", "erf, channel", "relu, feedback alignment", "erf, feedback alignment"):
        right, wrong = f"{name}: deviation of outputs at width 256", f"{name}: the same by backpropagation's kernel"
        assert found[right] < 0.6 * found[wrong]
    found = committee.checks(results["committee"], TINY["committee"])
    for name in ("erf", "linear"):
        own, other = f"{name}: deviation of overlaps at n = 64", f"{name}: the same from the flow of direct feedback"
        assert found[own] < 0.3 * found[other]
        assert abs(found[f"{name}: power of n with which runs approach the flow"] + 0.5) < 0.2
        assert abs(found[f"{name}: the same for the flow of direct feedback"]) < 0.1


def test_mlp_learns_and_chooses_rates_on_validation(results):
    found = results["mlp"]
    assert np.all(found.chosen_rate == 1e-2)  # 1e-6 learns nothing in three epochs
    test = found.test_accuracy.mean("seed")
    assert float(test.sel(cell="backpropagation")) > 0.9
    assert float(test.sel(cell="Oja r=5")) > float(test.sel(cell="zero feedback")) > mlp.CHANCE
    assert float(found.score.sel(learning_rate=1e-6).max()) < 0.5


def test_mlp_on_other_images():
    assert mlp.on_data(mlp.CONFIGS["quick"], "mnist").data == "mnist"
    paper = mlp.on_data(mlp.CONFIGS["paper"], "mnist")
    assert (paper.data, paper.epochs) == ("mnist", 160)


def test_constrained_narrows_the_way_back_and_not_the_network(results):
    test = results["constrained"].test_accuracy.mean("seed")
    lower = max(float(test.sel(cell=cell)) for cell in ("zero feedback", "all layers r=1"))
    assert float(test.sel(cell="all layers r=10")) > lower + 0.2
    assert float(test.sel(cell="into hidden layer 3 r=1")) < float(test.sel(cell="into hidden layer 3 r=10")) - 0.1
    assert float(test.sel(cell="narrow network r=1")) < 0.4
    assert constrained.PAPER["test accuracy, best test epoch"]["narrow network"] == {64: 0.5810}


@pytest.mark.parametrize("preset", constrained.CONFIGS)
def test_every_rule_of_constrained_is_the_one_it_is_called(preset):
    config = constrained.CONFIGS[preset]
    full = [*config.widths[1:], 10]
    for cell in config.cells:
        rule, (sweep, _, rank) = constrained.rule_of(cell, config), cell.partition(" r=")
        if sweep.startswith("into hidden layer"):
            layer = int(sweep[-1])
            assert rule.rank[layer] == int(rank)
            assert [rule.rank[one] for one in (1, 2, 3) if one != layer] == [
                full[one - 1] for one in (1, 2, 3) if one != layer
            ]
            other = constrained.rule_of(cell, replace(config, others="backpropagation"))
            assert (other.rank, other.layers) == (int(rank), (layer,))
        elif sweep == "narrow network":
            assert rule == rules.backpropagation()
            assert constrained.setting_of(cell, config).widths == (int(rank),) * 3
        elif rank:
            assert rule.rank == int(rank)
            assert rule.source == {"output": "network", "hidden": "hidden"}.get(sweep.split()[-1], "above")
        if sweep not in ("narrow network", "all layers"):
            assert constrained.setting_of(cell, config) == config
    assert constrained.rule_of("zero feedback into 2", config).layers == (2,)
    with pytest.raises(ValueError, match="others must be one of"):
        constrained.rule_of("into hidden layer 1 r=1", replace(config, others="none"))


def test_others_at_full_rank_are_not_backpropagation():
    config = replace(TINY["constrained"], cells=("into hidden layer 1 r=1",), seeds=(0,), epochs=1, train=400)
    own, again = (constrained.simulate(config, HERE).score.item() for _ in range(2))
    other = constrained.simulate(replace(config, others="backpropagation"), HERE).score.item()
    assert own == again
    assert own != other


def test_all_layers_are_trained_as_long_as_the_paper_did():
    paper = constrained.CONFIGS["paper"]
    assert (paper.epochs, paper.lr_decay) == (160, 0.975)
    everywhere = constrained.setting_of("all layers r=10", paper)
    assert (everywhere.epochs, everywhere.lr_decay, everywhere.widths) == (150, 0.98, (512,) * 3)


def test_papers_numbers_are_drawn_beside_ours_on_its_images_alone(results):
    config, found = TINY["constrained"], results["constrained"]

    def labels(config):
        return [text.get_text() for text in constrained.plot(found, config).legends[0].get_texts()]

    assert "paper, best test epoch" in labels(replace(config, data="cifar10"))
    assert not any("paper" in label for label in labels(config))
    compared = constrained.checks(found, replace(config, data="cifar10"))
    ours = float(found.test_accuracy.sel(cell="all layers r=10").mean())
    assert compared["the same minus the paper's, all layers r=10"] == pytest.approx(ours - 0.6184, abs=1e-12)
    assert "the same minus the paper's, all layers r=1" not in compared  # it has none
    assert not any("paper" in key for key in constrained.checks(found, config))


def made_shares(table):
    """Return shares by seed and rank."""
    return xr.DataArray(table, dims=("seed", "rank"), coords={"rank": [4, 0, 2]})


def test_smallest_rank_that_suffices_by_hand():
    found = classes.minimal_ranks(
        made_shares([[0.99, 0.2, 0.96], [0.951, 0.5, 0.949], [0.9, 0.96, 0.9], [0.9, 0.1, 0.2]])
    )
    assert found.tolist() == [2, 4, 0, np.inf]


def test_shares_are_of_backpropagations_accuracy_above_chance(results):
    found, config = results["classes"], TINY["classes"]
    test = found.test_accuracy.sel(seed=1)
    by_hand = (test.sel(cell="3 classes / low-rank r=3") - 1 / 3) / (
        test.sel(cell="3 classes / backpropagation") - 1 / 3
    )
    assert float(classes.shares(found, config)[3].sel(rank=3, seed=1)) == pytest.approx(float(by_hand), rel=1e-12)
    assert classes.shares(found, config)[10]["rank"].values.tolist() == [0, 1, 3]
    smallest = {number: np.median(classes.minimal_ranks(one)) for number, one in classes.shares(found, config).items()}
    assert smallest[3] < smallest[10]
    assert float(classes.shares(found, config)[3].sel(rank=3).min()) > 0.9


def test_seeds_that_no_rank_suffices_for_are_shown_and_not_in_the_checks(results):
    config, found = TINY["classes"], results["classes"]
    low = found.assign(test_accuracy=found.test_accuracy.where(~found.cell.isin(["10 classes / low-rank r=3"]), 0.2))
    assert "smallest rank that suffices, 10 classes" not in classes.checks(low, config)
    assert "smallest rank that suffices, 3 classes" in classes.checks(low, config)
    shapes = [line.get_marker() for line in classes.plot(low, config).axes[1].lines]
    assert shapes.count("^") == 1


def test_incomplete_cifar100_is_refused_or_labelled(results, monkeypatch):
    from linfb import datasets

    images = np.zeros((400, 2, 2, 3), np.uint8)
    labels = np.arange(400) % 100
    part = datasets.Dataset("cifar100-subset", images, labels, images, labels, tuple(map(str, range(100))))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, root: part)
    with pytest.raises(
        ValueError, match="all of CIFAR-100, 500 training images a class, but the folder holds 4 a class"
    ):
        classes.simulate(classes.CONFIGS["paper"], HERE)
    assert classes.images_of(classes.CONFIGS["cpu"], HERE) is part

    def titles(found):
        return [axes.get_title() for axes in classes.plot(found, TINY["classes"]).axes]

    whole = results["classes"]
    assert titles(whole) == ["digits", ""]
    assert titles(whole.assign(incomplete=~whole.incomplete))[1] == "trend only"


def test_classes_on_other_images():
    quick = classes.on_data(classes.CONFIGS["quick"], "mnist")
    assert (quick.data, quick.train) == ("mnist", 4000)
    with pytest.raises(ValueError, match="data must be CIFAR-100"):
        classes.on_data(classes.CONFIGS["paper"], "mnist")
    assert constrained.on_data(constrained.CONFIGS["paper"], "mnist").epochs == 160
    assert constrained.on_data(constrained.CONFIGS["quick"], "cifar10").train == 4000


def test_augmentations_by_their_names():
    from linfb.datasets import RandomFlip, RandomRotation

    assert _training.augmentations(("flip", "rotation 10")) == (RandomFlip(), RandomRotation(10.0))


def test_networks_learn_and_choose_rates_on_validation(results):
    found = results["networks"]
    retina = found.sel(cell="retina / backpropagation")
    assert float(retina.chosen_rate) == 1e-2  # 1e-6 learns nothing in two epochs
    assert float(retina.score.sel(learning_rate=1e-2, seed=0)) == float(retina.validation_accuracy.sel(seed=0).max())
    assert float(retina.score.sel(learning_rate=1e-6, seed=0)) < 0.3
    assert np.isnan(retina.score.sel(learning_rate=1e-6, seed=1))  # the first seed chooses alone
    assert float(retina.test_accuracy.min()) > 0.6
    assert float(found.test_accuracy.sel(cell="retina / narrow optic nerve").min()) > 0.6
    assert float(found.test_accuracy.sel(cell="retina / zero feedback").max()) < 0.5


def test_networks_record_loss_of_every_step_and_accuracy_of_every_epoch(results):
    found = results["networks"]
    for cell, steps, epochs in (("retina / zero feedback", 80, 2), ("vit / feedback alignment", 16, 2)):
        one = found.sel(cell=cell)
        assert np.isfinite(one.step_loss).sum("step").values.tolist() == [steps] * 2
        assert np.isfinite(one.validation_accuracy).sum("epoch").values.tolist() == [epochs] * 2
        assert steps == epochs * int(one.steps_per_epoch)
    assert found.chance.values == pytest.approx(0.1)


def test_a_rate_at_which_a_run_diverges_is_counted_and_not_chosen(results):
    vgg = results["networks"].sel(cell="vgg / low-rank")
    assert vgg.diverged.sel(learning_rate=1e30).values[0] == 1
    assert vgg.diverged.sel(learning_rate=1e-2).values.tolist() == [0, 0]
    assert float(vgg.chosen_rate) == 1e-2
    counts = networks.checks(results["networks"], TINY["networks"])
    assert counts["runs that diverged"] == counts["runs that diverged, vgg / low-rank"] == 1


def test_runs_that_diverge_have_no_accuracy_and_are_shown(results):
    from matplotlib.text import Text

    config = replace(TINY["networks"], cells=("retina / backpropagation",))
    config = replace(config, retina=replace(config.retina, learning_rates=(1e30,)))
    found = networks.simulate(config, HERE)
    assert np.all(np.isnan(found.test_accuracy))
    assert np.all(found.diverged == 1)
    assert networks.checks(found, config) == {
        "learning rate, retina / backpropagation": 1e30,
        "runs that diverged, retina / backpropagation": 2.0,
        "runs that diverged": 2.0,
    }

    def words(results, config):
        return [text.get_text() for text in networks.plot(results, config).findobj(Text)]

    assert "2 of 2\ndiverged" in words(found, config)
    assert not any("diverged" in word for word in words(results["networks"], TINY["networks"]))


def ranks_of(rule, model):
    """Return the width of the channel into every kernel layer but the first."""
    from linfb.rules.channels import resolved_ranks

    layers = [model.layers[i] for i in model.kernels]
    return resolved_ranks(rule, [one.n_out for one in layers], [getattr(one, "blocks", 1) for one in layers])[0]


def test_blocks_are_narrow_where_they_are_said_to_be():
    from linfb.engine.architectures import vgg_like

    model = vgg_like((32, 32, 3), 10)
    full = {1: 64, 2: 128, 3: 128, 4: 256, 5: 256, 6: 512, 7: 512, 8: 256, 9: 10}
    for cell, narrow in {
        "last block r=1/4": {6: 128, 7: 128},
        "second block r=1/8": {2: 16, 3: 16},
        "all blocks r=1/2": {layer: full[layer] // 2 for layer in range(1, 8)},
        "Q only r=3": dict.fromkeys(range(1, 8), 3),
        "backpropagation": {},
    }.items():
        assert ranks_of(blocks.rule_of(cell, 8), model) == full | narrow
    learns = {
        name: (rule.reader.learns, rule.mirror.learns)
        for name in blocks.ABLATION
        for rule in [blocks.rule_of(f"{name} r=1/4", 8)]
    }
    assert learns == {
        "all blocks": (True, True), "Q only": (False, True), "P only": (True, False), "neither": (False, False)
    }  # fmt: skip
    with pytest.raises(ValueError, match="cell must be one of"):
        blocks.rule_of("first block r=1/4", 8)
    with pytest.raises(ValueError, match="cell must be one of"):
        blocks.rule_of("last block", 8)


def test_no_error_passes_a_block_with_zero_feedback():
    from linfb.datasets import load_dataset
    from linfb.engine.architectures import vgg_like

    splits = load_dataset("digits").splits(train=200, validation=50, layout="image")
    model = vgg_like(splits.shape, 10, widths=(4, 4, 4), dense=8, dropout=0.0)
    some = {cell: blocks.rule_of(cell, 6) for cell in blocks.NOTHING} | {"all": rules.zero_feedback(layers=range(1, 6))}
    losses = _training.image_networks(
        some, model, splits, TINY["blocks"].network, HERE, "digits", seeds=(0,), choosing_seeds=1, keep=["step_loss"]
    ).step_loss.squeeze()  # fmt: skip
    assert np.array_equal(losses.sel(cell=blocks.NOTHING[0]), losses.sel(cell="all"))
    assert not np.allclose(losses.sel(cell=blocks.NOTHING[1]), losses.sel(cell="all"), rtol=1e-3)  # control


def test_places_are_trained_as_long_as_they_are_said_to_be(results):
    last = results["blocks"].chosen_epoch.max("seed")
    assert float(last.drop_sel(cell=["second block r=1/4", blocks.NOTHING[1]]).max()) == 0
    paper = blocks.CONFIGS["paper"]
    assert (paper.network.epochs, paper.epochs) == (400, {"last block": 200, "second block": 180})


def test_transformers_normative_channels_are_those_of_the_paper():
    from linfb.engine.architectures import vit

    ranks = ranks_of(transformer.rule_of("normative r=16", 87), vit((32, 32, 3), 10))
    assert list(ranks.values()) == [48, 16, 16, 16] * 8 + [10]
    assert transformer.rule_of("normative r=16", 87).mirror.restart_every == 87
    assert ranks_of(transformer.rule_of("Oja r=4", 87), vit((32, 32, 3), 10))[33] == 4
    with pytest.raises(ValueError, match="sweep must be one of"):
        transformer.rule_of("Adam r=16", 87)


def test_rank_matters_in_the_transformer_and_is_compared_with_the_papers(results):
    found, config = results["transformer"], TINY["transformer"]
    test = found.test_accuracy.mean("seed")
    assert float(test.sel(cell="normative r=4")) > float(test.sel(cell="normative r=1")) + 0.1
    checks = transformer.checks(found, replace(config, data="cifar10"))
    kept = (test.sel(cell="normative r=4") - test.sel(cell="zero feedback")) / (
        test.sel(cell="backpropagation") - test.sel(cell="zero feedback")
    )
    assert checks["share of the gain that is kept, normative r=4"] == pytest.approx(float(kept), rel=1e-12)
    ours = float(test.sel(cell="backpropagation"))
    assert checks["the same minus the paper's, backpropagation"] == pytest.approx(ours - 0.9134, abs=1e-12)
    assert "the same minus the paper's, normative r=4" not in checks  # it has none


RULES = {"wide": rules.backpropagation(), "none": rules.zero_feedback()}


def made_training(losses, asked, diverge=lambda member: False):
    """Return a training whose runs have one epoch with given losses, and tell in their test losses who they are."""

    def train(members):
        asked.append(list(members))
        bad = np.array([diverge(member) for member in members])
        own = np.array([losses(member) for member in members])
        who = np.array([10 * member.optimizer.learning_rate + member.seed for member in members])
        epochs, steps = (0, 1) if bad.all() else (1, 2)
        return xr.Dataset(
            {
                "validation_loss": (("run", "epoch"), np.where(bad, np.nan, own)[:, None][:, :epochs]),
                "test_loss": (("run", "weights"), np.where(bad, np.nan, [who, 0 * who]).T),
                "step_loss": (("run", "step"), np.where(bad[:, None] & (np.arange(steps) > 0), np.nan, 0.5)),
                "error": ("run", np.where(bad, "loss is nan", "")),
            },
            {"epoch": np.arange(epochs), "weights": ["chosen", "last"], "seed": ("run", [one.seed for one in members])},
        )

    return train


def chosen(train, rates, seeds, choosing_seeds, choosing=None):
    return _training.trained(
        train, RULES, sgd, lambda runs: runs.validation_loss.isel(epoch=0), rates=rates, seeds=seeds,
        choosing_seeds=choosing_seeds, keep=("test_loss", "step_loss"),
        choosing=choosing,
    )  # fmt: skip


def test_every_rule_takes_the_rate_with_its_best_mean_score():
    scores = {
        (1.0, 0): 0.5, (2.0, 0): 0.7, (3.0, 0): 0.8, (1.0, 1): 0.5, (2.0, 1): 0.6, (3.0, 1): 0.1, (2.0, 2): 0.0,
        (3.0, 2): 0.0,
    }  # fmt: skip

    def loss(member):
        number = scores[member.optimizer.learning_rate, member.seed]
        return number if member.rule == RULES["wide"] else -number

    found = chosen(made_training(loss, asked := []), (3.0, 2.0, 1.0), (0, 1, 2), 2)
    assert found.chosen_rate.sel(cell=["wide", "none"]).values.tolist() == [2.0, 3.0]
    assert found.test_loss.sel(cell="wide").values.tolist() == [20.0, 21.0, 22.0]  # not 3.0, the best of the first seed
    assert found.test_loss.sel(cell="none").values.tolist() == [30.0, 31.0, 32.0]
    table = found.score.sel(cell="wide").transpose("learning_rate", "seed")
    np.testing.assert_array_equal(table, [[0.8, 0.1, np.nan], [0.7, 0.6, 0.0], [0.5, 0.5, np.nan]])
    assert found.learning_rate.values.tolist() == [3.0, 2.0, 1.0]
    assert [len(members) for members in asked] == [2 * 3 * 2, 2]  # two ensembles, and no run twice
    found = chosen(made_training(loss, asked := []), (1.0, 2.0, 3.0), (0,), 2)
    assert found.chosen_rate.sel(cell="wide") == 3.0
    assert len(asked) == 1


def test_rates_may_be_chosen_by_shorter_trainings():
    short = made_training(lambda member: member.optimizer.learning_rate, tried := [])
    whole = made_training(lambda member: -member.optimizer.learning_rate, asked := [])
    found = chosen(whole, (1.0, 2.0), (0, 1), 1, short)
    assert np.all(found.chosen_rate == 2.0)
    assert np.all(chosen(whole, (1.0, 2.0), (0, 1), 1).chosen_rate == 1.0)  # control
    table = found.score.transpose("cell", "learning_rate", "seed")
    np.testing.assert_array_equal(table, [[[1.0, np.nan], [2.0, np.nan]]] * 2)  # of the shorter ones
    assert found.test_loss.sel(cell="wide").values.tolist() == [20.0, 21.0]
    assert [len(members) for members in (*tried, asked[0])] == [4, 4]  # every seed is trained whole


def test_what_is_kept_may_be_that_of_the_last_weights():
    train = made_training(lambda member: 1.0, [])
    settings = {"rates": (1.0,), "seeds": (3,), "choosing_seeds": 1, "keep": ["test_loss"]}
    scored = partial(_training.trained, train, RULES, sgd, lambda runs: runs.validation_loss.isel(epoch=0), **settings)
    assert scored(weights="last").test_loss.values.tolist() == [[0.0]] * 2
    assert scored().test_loss.values.tolist() == [[13.0]] * 2  # control


@pytest.mark.parametrize(("bad", "rate"), [({3.0}, 2.0), ({2.0}, 3.0), ({1.0, 2.0, 3.0}, 1.0), (set(), 3.0)])
def test_rates_that_diverge_are_avoided(bad, rate):
    def diverges(member):
        return member.optimizer.learning_rate in bad and member.seed == 5

    train = made_training(lambda member: member.optimizer.learning_rate, [], diverges)
    found = chosen(train, (1.0, 2.0, 3.0), (5,), 1)
    assert np.all(found.chosen_rate == rate)
    table = found.diverged.transpose("cell", "learning_rate", "seed").values[..., 0]
    assert table.tolist() == [[float(one in bad) for one in (1.0, 2.0, 3.0)]] * 2
    assert np.all(np.isnan(found.test_loss) == (rate in bad))
    assert np.isfinite(found.step_loss).sum("step").values.tolist() == [[1 if rate in bad else 2]] * 2  # what there was


def test_what_is_kept_is_that_of_the_run_and_of_no_other(results):
    """Train one of the runs of a figure anew, by itself."""
    from linfb.datasets import RandomFlip, load_dataset
    from linfb.engine import architectures, rmsprop, schedules

    config, found = TINY["networks"], results["networks"].sel(cell="vgg / low-rank")
    splits = load_dataset("digits").splits(train=config.train, validation=config.validation, layout="image")
    member = Member(networks.rule_of("vgg / low-rank", config), rmsprop(1e-2), 1)
    model = architectures.vgg_like(splits.shape, splits.n_classes, **config.vgg.sizes)
    run = train_ensemble(
        splits, model, [member], epochs=1, batch_size=50, schedule=schedules.Exponential(0.9), augment=(RandomFlip(),),
        progress=False,
    ).isel(run=0)  # fmt: skip
    losses = found.step_loss.dropna("step", how="all")
    assert losses.step.values.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert np.allclose(losses.sel(seed=1), run.step_loss, rtol=1e-3)  # single precision, over eight steps
    assert not np.allclose(losses.sel(seed=0), run.step_loss, rtol=1e-2)
    assert found.test_accuracy.sel(seed=1) == pytest.approx(float(run.test_accuracy.sel(weights="chosen")), abs=0.01)


# What learning costs


@pytest.mark.parametrize(
    ("target", "epochs"),
    [(0.6, [1.5, np.inf, np.inf, 0.625]), (0.25, [0.5, 1.5, np.inf, 0.1875]), (0.1, [0.0, 0.0, 0.0, 0.0])],
)
def test_epochs_to_an_accuracy_by_hand(target, epochs):
    accuracies = np.array([[0.4, 0.8, 0.2], [0.2, 0.3, np.nan], [0.1, 0.2, 0.2], [0.9, 0.1, 0.9]])
    assert compute.epochs_to(accuracies, target, 0.1).tolist() == pytest.approx(epochs, rel=1e-12)


def test_backpropagation_and_channels_are_charged_alike(results):
    found, step = results["compute"], {"batch_size": 20, "optimizer": sgd(0.1)}
    model = _training.image_model("mlp", (8, 8, 1), 10, {"widths": (16, 16)})
    one, bp = (found.sel(cell=f"mlp / {rule}") for rule in ("low-rank r=10", "backpropagation"))
    rule = rules.low_rank(10, reader=_training.adaptive_reader())
    assert float(one.step_flops) == engine_cost(model, rule, **step).total.flops
    assert float(bp.step_flops) == engine_cost(model, rules.backpropagation(), **step).total.flops
    assert (int(one.steps_per_epoch), float(one.chance)) == (25, 0.1)
    paid = compute.paid(found.sel(cell=[cell for cell in TINY["compute"].cells if cell.startswith("mlp")]), "mlp", 0.85)
    assert float(paid["flops"].sel(cell="mlp / backpropagation").median()) == pytest.approx(1, rel=1e-12)
    flops, free = (paid[name].sel(cell="mlp / low-rank r=10") for name in ("flops", "free_flops"))
    share = 1 - float(one.learning_flops / one.step_flops)
    np.testing.assert_allclose(free, share * flops, rtol=1e-12)
    assert share < 0.9  # control: what Q and P learn from is not nothing
    xr.testing.assert_identical(*(paid[name].sel(cell="mlp / backpropagation") for name in ("flops", "free_flops")))


def test_an_accuracy_that_is_not_reached_has_no_price(results):
    found, config = results["compute"], TINY["compute"]
    told = compute.checks(found, config)
    assert told["runs that do not reach 0.85, mlp / low-rank r=1"] == 2
    assert told["runs that do not reach 0.85, mlp / backpropagation"] == 0
    assert told["FLOPs to 0.85, mlp / low-rank r=10"] > 0
    assert "FLOPs to 0.85, mlp / low-rank r=1" not in told
    assert told["runs that do not reach 0.999, mlp / backpropagation"] == 2
    assert not any(key.startswith("FLOPs to 0.999") for key in told)  # nor is there one relative to it
    ticks = [text.get_text() for text in compute.plot(found, config).axes[2].get_yticklabels()]
    assert "never" in ticks


def made_timing(seconds, now):
    """Return a training that takes so long for a step under each rule, 10 to begin and 1 between epochs."""

    def train(rule, *, epochs, schedule):
        now[0] += 10
        for epoch in range(epochs):
            for step in range(5):
                schedule(epoch + step / 5)
                now[0] += seconds[rule] * (100 if epoch == 0 else 1)  # the first steps are slow
            now[0] += 1
            schedule(epoch + 1 - 1 / 5)
        return xr.Dataset({"step_loss": ("step", np.zeros(5 * epochs))})

    return train


def test_steps_are_timed_in_turns_after_a_warm_up(monkeypatch):
    now, asked = [0.0], []
    train = made_timing({"a": 2.0, "b": 3.0}, now)
    monkeypatch.setattr(_measured.time, "perf_counter", lambda: now[0])
    found = _measured.step_seconds(
        lambda rule, **more: asked.append(rule) or train(rule, **more), {"A": "a", "B": "b"}, 3
    )
    assert found.dims == ("cell", "round")
    assert found.sel(cell="A").values.tolist() == [2.2] * 3  # one second between epochs is a fifth of one a step
    assert found.sel(cell="B").values.tolist() == [3.2] * 3
    assert asked == ["a", "b", "b", "a", "a", "b"]


def test_the_clock_and_the_peak_are_those_of_the_training():
    network = cost.Network("mlp", {"widths": (256, 256)}, 32, image=16)
    model, way = (
        cost.model_of(network),
        partial(train, batch_size=32, optimizer=amsgrad(1e-6), threads=1, progress=False),
    )
    way = partial(way, cost.noise(network, 4, 0), model)
    bp, low = rules.backpropagation(), _training.low_rank(64, model)
    way(low, epochs=1)
    start = perf_counter()
    seconds = float(_measured.step_seconds(way, {"": bp}, 1).item())
    whole = perf_counter() - start
    assert 0 < 4 * seconds < whole  # one epoch of three
    step = {"batch_size": 32, "optimizer": amsgrad(1e-6)}
    needed, with_channels = (engine_cost(model, rule, **step).memory.total for rule in (bp, low))
    peak, higher = (_measured.peak_bytes(way, rule) for rule in (bp, low))
    assert needed < peak < 1.5 * needed  # a copy of the weights, and outputs and errors on their way
    more = with_channels - needed  # Q and P, their gradients, what the optimiser keeps of them
    largest = 4 * (256 * 256 + 32 * 256) + 4096 * len(model.layers)  # of a kernel and an error, as in test_memory.py
    assert 0.8 * more < higher - peak < more + largest


def relative_counts(network, config):
    """Return the operations of a step under every rule over those of backpropagation."""
    flops = cost.counted(network, config).flops.sum("part")
    return flops / flops.sel(rule=cost.REFERENCE)


def test_savings_of_the_papers_perceptron():
    config = cost.Config()
    found = relative_counts(config.mlp_128.counted, config)
    assert 1 - float(found.sel(rule="low-rank r=64")) == pytest.approx(0.047, abs=5e-4)
    assert 1 - float(found.sel(rule="zero feedback")) == pytest.approx(0.112, abs=5e-4)  # gross: all of the transport


@pytest.mark.parametrize("cell", ["mlp_32", "mlp_128"])
def test_channels_save_operations_up_to_the_break_even_rank(cell):
    config = cost.Config()
    network = getattr(config, cell).counted
    rank = cost.break_even(network, config)
    found = relative_counts(network, replace(config, ranks=(rank, rank + 1), measured_ranks=()))
    assert float(found.sel(rule=f"low-rank r={rank}")) < 1 <= float(found.sel(rule=f"low-rank r={rank + 1}"))


@pytest.mark.parametrize("preset", ["quick", "cpu", "paper"])
def test_what_costs_are_measured_of_can_be_built(preset):
    config = cost.CONFIGS[preset]
    for cell in config.cells:
        case = getattr(config, cell)
        assert len(cost.model_of(case.measured).layers) <= len(cost.model_of(case.counted).layers)
        assert preset != "paper" or case.counted == case.measured
    config = compute.CONFIGS[preset]
    for network, cells in compute.by_network(config.cells).items():
        model = _training.image_model(network, (32, 32, 3), 10, getattr(config, network).sizes)
        for cell in cells:
            rule, (_, _, rank) = compute.rule_of(cell, model), cell.partition(" r=")
            assert not rank or max(rule.rank.values()) == int(rank)


def test_costs_are_counted_at_two_sizes_and_measured_at_one(results):
    found = results["cost"]
    assert np.isfinite(found.flops).all()
    measured = np.isfinite(found.seconds).all("round")
    assert measured.sel(cell="vit").values.tolist() == [True, True, False, True, False, False]
    assert found.rule.values.tolist()[2:] == [f"low-rank r={rank}" for rank in (1, 2, 4, 16)]
    mlp = found.sel(cell="mlp_32")
    xr.testing.assert_identical(mlp.flops.sel(size="counted", drop=True), mlp.flops.sel(size="measured", drop=True))
    assert float(found.flops.sel(cell="vit", size="counted").sum()) > float(
        found.flops.sel(cell="vit", size="measured").sum()
    )
    told = cost.checks(found, TINY["cost"])
    rule = "mlp_32, low-rank r=16"
    assert told[f"net saving of FLOPs, {rule}"] < told[f"the same if Q and P learnt for free, {rule}"]


def test_ranks_of_one_rule_are_one_part():
    found = {part.label: part.config.cells for part in _run.parts_of("language", TINY["language"], HERE)}
    assert found["low-rank"] == ("low-rank r=1", "low-rank r=4")
    assert found["direct low-rank"] == ("direct low-rank r=4",)
    assert found["DFA"] == ("DFA",)
    assert len(found) == 6
    config = mlp.Config(cells=("Oja r=2", "DFA", "Oja r=1"))
    parts = _run.parts_of("mlp", config, HERE)
    made = [replace(part, dataset=xr.Dataset(coords={"cell": list(part.config.cells)})) for part in parts]
    assert _run.joined("mlp", config, made).cell.values.tolist() == ["Oja r=2", "Oja r=1", "DFA"]


def test_running_mean_by_hand():
    assert networks.smoothed([[1.0, 2.0, 6.0, np.nan]], 2)[0, :2].tolist() == [1.5, 4.0]
    assert np.isnan(networks.smoothed([[1.0, 2.0, 6.0, np.nan]], 2)[0, 2])
    assert networks.smoothed([[1.0, 2.0]], 1).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("preset", networks.CONFIGS)
def test_every_rule_of_networks_fits_its_network(preset):
    from linfb.engine import optimisers, schedules

    config = networks.CONFIGS[preset]
    for cell in config.cells:
        architecture, name = cell.split(" / ")
        setting = getattr(config, architecture)
        shape = (8, 8, 1) if config.data == "digits" else (32, 32, 1 if architecture == "retina" else 3)
        model, rule = networks.model_of(architecture, shape, 10, config), networks.rule_of(cell, config)
        widths = [model.layers[i].kernel_shape[0] for i in model.kernels]
        below = model.shapes[model.kernels[2]][-1]
        if name == "low-rank" and not isinstance(rule.rank, int):
            assert set(rule.rank) == set(range(1, len(widths)))
            assert all(rank <= widths[layer] for layer, rank in rule.rank.items())
        assert rule.layers == ((2,) if name == "narrow optic nerve" else None)
        assert below == setting.sizes.get("bottleneck", 32) or name != "narrow optic nerve"  # into the retina's output
        assert rule.reader.compresses == (name in ("low-rank", "narrow optic nerve"))
        assert rule.mirror.name == {
            "backpropagation": "exact", "feedback alignment": "fixed", "zero feedback": "zero"
        }.get(name, "kolen_pollack")  # fmt: skip
        if rule.reader.compresses:
            assert (rule.reader.on, rule.reader.covariance) == ("labels", "normalised")
        assert getattr(optimisers, setting.optimizer)(1e-3, weight_decay=setting.weight_decay).learning_rate == 1e-3
        assert 0 < getattr(schedules, setting.schedule[0])(*setting.schedule[1:])(setting.epochs - 1) <= 1
        assert len(_training.augmentations(setting.augment)) == len(setting.augment)


def test_networks_on_other_images():
    assert networks.on_data(networks.CONFIGS["quick"], "digits") == networks.CONFIGS["quick"]
    quick = networks.on_data(networks.CONFIGS["quick"], "mnist")
    assert (quick.data, quick.train, quick.validation) == ("mnist", 2000, 500)
    paper = networks.on_data(networks.CONFIGS["paper"], "mnist")
    assert (paper.data, paper.train) == ("mnist", None)


@pytest.mark.parametrize("preset", receptive_fields.CONFIGS)
def test_only_the_way_into_the_retina_is_narrow(preset):
    config = receptive_fields.CONFIGS[preset]
    for cell in config.cells:
        kind, _, number = cell.partition(" of ")
        model, rule = receptive_fields.model_of(cell, (32, 32, 1), 10, config), receptive_fields.rule_of(cell)
        into = model.layers[model.kernels[2]].kernel_shape
        if kind == "nerve":
            assert into[-1] == int(number) <= config.width
            assert rule.name == "backpropagation"
        else:
            assert into[-1] == config.width == into[0] >= int(number)
            assert (rule.rank, rule.layers, rule.mirror.name) == (int(number), (2,), "kolen_pollack")
        sides = [receptive_fields.side_of(k, model, config) for k in (1, 2)]
        assert sides == {5: [9, 13], 9: [17, 25]}[config.size]


def test_receptive_fields_are_those_of_the_chosen_weights(results):
    from linfb.engine import rmsprop, train
    from linfb.engine.schedules import Exponential
    from linfb.observables import centre_surround, orientedness

    config, found = TINY["receptive_fields"], results["receptive_fields"]
    splits = receptive_fields.images(config, HERE)
    model = receptive_fields.model_of("nerve of 2", splits.shape, splits.n_classes, config)
    rule = receptive_fields.rule_of("nerve of 2")
    weights, accuracy = receptive_fields.learned(splits, model, rule, 1, config, HERE)
    run = train(
        splits, model, rule, epochs=1, batch_size=20, optimizer=rmsprop(5e-3, weight_decay=1e-4),
        schedule=Exponential(0.975), seed=1, progress=False,
    )  # fmt: skip
    assert accuracy == float(run.test_accuracy.sel(weights="chosen"))
    nerve = found.sel(cell="nerve of 2", seed=1)
    assert float(nerve.test_accuracy) == accuracy
    for k, layer in enumerate(receptive_fields.LAYERS, start=1):
        fields = receptive_fields.fields_of(weights, k, model, config)
        side = 2 * k + 3
        assert fields.shape == ((2, 4)[k - 1], side, min(side, 7))
        here = nerve.sel(layer=layer)
        for i, field in enumerate(fields):
            if field.any():
                np.testing.assert_allclose(here.ratio[i], orientedness(field).ratio, rtol=1e-6)
                np.testing.assert_allclose(here.explained[i], centre_surround(field).explained, rtol=1e-6)
            else:
                assert np.isnan(here.ratio[i])
        assert int(here.empty) + int(np.isfinite(here.ratio).sum()) == len(fields)
    assert np.isfinite(found.noise_ratio).all()
    assert (np.abs(found.field).max(("row", "column")) <= 1).all()


def test_receptive_fields_of_runs_that_diverge_are_missing():
    config = replace(TINY["receptive_fields"], cells=("feedback of 1",), learning_rate=1e30)
    found = receptive_fields.simulate(config, HERE)
    assert np.isnan(found.test_accuracy).all()
    assert np.isnan(found.ratio).all()
    checks = receptive_fields.checks(found, config)
    assert checks == {f"{layer}: units without a field": 8.0 for layer in receptive_fields.LAYERS}
    receptive_fields.plot(found, config)


def test_receptive_fields_on_other_images():
    quick = receptive_fields.CONFIGS["quick"]
    assert receptive_fields.on_data(quick, "digits") == quick
    other = receptive_fields.on_data(quick, "mnist")
    assert (other.data, other.zoom, other.train) == ("mnist", 1, 2000)
    paper = receptive_fields.on_data(receptive_fields.CONFIGS["paper"], "mnist")
    assert (paper.data, paper.train) == ("mnist", None)
    assert receptive_fields.images(replace(quick, train=50, validation=50), HERE).shape == (16, 16, 1)


def test_language_learns_more_than_single_characters(results):
    found, config = results["language"], TINY["language"]
    checks = language.checks(found, config)
    assert checks["test loss, backpropagation"] < checks["entropy of single characters"]
    assert checks["test loss, backpropagation"] < checks["test loss, zero feedback"]
    assert 0 < checks["components that hold 90% of the error"] < checks["size of the vocabulary"]
    assert 1 < checks["participation ratio of the error"] < checks["size of the vocabulary"]
    assert checks["size of the vocabulary"] == language.text_of(config).n_classes
    others = found.participation_ratio.sel(cell=[cell for cell in config.cells if cell != "backpropagation"])
    assert np.all(np.isnan(others))  # the exact error's dimension is asked for under backpropagation


def test_language_score_is_the_validation_loss_of_the_chosen_epoch(results):
    for cell in TINY["language"].cells:
        one = results["language"].sel(cell=cell, seed=0)
        epoch = int(one.validation_accuracy.argmax("epoch"))
        assert int(one.chosen_epoch) == epoch
        assert one.score.values.item() == -float(one.validation_loss[epoch])


@pytest.mark.parametrize("preset", language.CONFIGS)
def test_every_rule_of_language_is_the_one_it_is_called(preset):
    for cell in language.CONFIGS[preset].cells:
        rule, (name, _, rank) = language.rule_of(cell), cell.partition(" r=")
        assert rule.source == ("network" if name in ("DFA", "direct low-rank") else "above")
        assert rule.rank == (int(rank) if rank else None)
        if rank:
            assert (rule.mirror.name, rule.reader.on) == ("kolen_pollack", "labels")
        else:
            assert rule.mirror.name == {"backpropagation": "exact", "zero feedback": "zero"}.get(name, "fixed")


def test_entropy_of_single_characters_by_hand():
    assert language.unigram_entropy([3, 3, 3, 3]) == 0.0
    assert language.unigram_entropy([0, 1, 5, 9]) == pytest.approx(math.log(4), rel=1e-12)
    by_hand = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert language.unigram_entropy([[0, 0], [1, 2]]) == pytest.approx(by_hand, rel=1e-12)
    assert by_hand < math.log(3) - 0.05  # uneven frequencies: less than the vocabulary alone would give


def test_entropy_is_of_the_training_part_alone(monkeypatch):
    from linfb.datasets import Text

    text = Text.from_string("ab" * 40 + "a" * 20, length=4, validation=0.1, test=0.1)
    config = replace(TINY["language"], cells=("zero feedback",), length=4, epochs=1)
    monkeypatch.setattr(language, "text_of", lambda config: text)
    entropy = float(language.simulate(config, HERE).unigram_entropy[0])
    assert entropy == pytest.approx(math.log(2), rel=1e-12)
    assert abs(language.unigram_entropy(text.tokens) - entropy) > 1e-3


@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_dimensions_of_made_rows(shift):
    isotropic = np.zeros((8, 6))
    isotropic[np.arange(8), np.repeat(np.arange(4), 2)] = np.tile([1.0, -1.0], 4)
    assert language.dimensions(isotropic + shift) == pytest.approx((4.0, 4.0), rel=1e-12)
    uneven = isotropic * np.sqrt([85.0, 10.0, 4.0, 1.0, 0.0, 0.0])
    assert language.dimensions(uneven + shift) == pytest.approx((1e4 / (85**2 + 100 + 16 + 1), 2.0), rel=1e-12)
    assert np.all(np.isnan(language.dimensions(np.full((8, 6), shift))))


# What the cache depends on


def few(splits, rows):
    """Return splits with fewer training rows."""
    return replace(splits, train=type(splits.train)(*(array[:rows] for array in splits.train)))


def test_watched_runs_are_those_of_training():
    """What is looked at after an epoch is what training has then; a step leads from one look to the next."""
    splits = few(readers.CONFIGS["quick"].splits(HERE), 100)
    model, members = mlp_network(64, (8,), 10), [Member(rules.low_rank(k), sgd(0.1), s) for k in (1, 3) for s in (0, 1)]
    looks = list(_watched.watched(splits, model, members, (0, 1, 5, 6), batch_size=20))
    runs = train_ensemble(splits, model, members, epochs=1, batch_size=20, progress=False)
    trained = runs.test_accuracy.sel(weights="last").values
    assert [look.accuracy for look in looks[2]] == pytest.approx(list(trained), abs=1e-12)  # five steps are an epoch
    assert [look.accuracy for look in looks[0]] != pytest.approx(list(trained), abs=1e-2)
    for before, after in ((looks[0], looks[1]), (looks[2], looks[3])):
        for then, now in zip(before, after, strict=True):
            for W, update, gradient, later in zip(then.kernels, then.updates, then.gradients, now.kernels,
                                                  strict=True):  # fmt: skip
                np.testing.assert_allclose(W + update, later, rtol=0, atol=1e-12)
                np.testing.assert_allclose(update, -0.1 * gradient, rtol=0, atol=1e-7 * np.abs(W).max())  # float32
                assert np.abs(update).max() > 1e-5


def test_a_run_that_is_not_finite_is_missing_and_the_others_go_on():
    splits, model = few(readers.CONFIGS["quick"].splits(HERE), 100), mlp_network(64, (8,), 10, norm=None)
    members = [Member(rules.low_rank(1), sgd(rate), 0) for rate in (0.01, 1e30)]
    last = list(_watched.watched(splits, model, members, (0, 3), batch_size=20))[-1]
    assert last[0] is not None
    assert last[1] is None


def test_looks_are_spread_over_all_steps():
    assert _watched.spread(100, 5) == (0, 1, 5, 22, 100)
    assert _watched.spread(3, 12) == (0, 1, 2, 3)


def test_adaptive_readers_find_the_errors_and_fixed_ones_do_not(results):
    found = results["readers"]
    np.testing.assert_allclose(found.overlap, found.overlap.clip(0, 1 + 1e-9), rtol=0, atol=0)
    close = readers.checks(found, TINY["readers"])
    for name, cell in (("Oja", "Oja r=2"), ("similarity matching", "similarity matching r=2")):
        assert close[f"{cell}: frozen errors, overlap at the end"] > 0.9, name
    # Oja's small steps follow the flow to their order, 0.05; the lateral connections have a flow of their own
    assert close["Oja r=2: frozen errors, largest deviation from the flow"] < 0.05
    last = found.isel(step=-1).sel(layer=1)
    gain = last.captured.sel(cell="Oja r=2") - last.captured.sel(cell="fixed P r=2")
    assert (gain > 0.1).all()


def test_what_readers_have_found_by_hand():
    rows = np.diag([3.0, 2.0, 1.0])
    assert np.abs(readers.principal(rows, 2)).tolist() == [[1, 0], [0, 1], [0, 0]]
    reader = rules.readers.Oja(start=[[1.0, 0.0, 0.0]])
    still = readers._followed(reader, np.array([[0.0, 1.0, 0.0]]), rows, np.eye(3)[:, :1], np.array([1.0]))
    assert still == [0.0]  # an eigenvector without anything of the leading one is left alone


def test_every_way_of_moving_P_is_the_one_it_is_called():
    config = readers.CONFIGS["quick"]
    for cell in config.cells:
        member = readers.member_of(cell, 3, config)
        reader, own = member.rule.reader, member.optimizer.P
        name, _, rank = cell.partition(" r=")
        assert member.rule.rank == int(rank)
        assert reader.learns == (name != "fixed P")
        assert (own is not None) == name.endswith("SGD")
        if reader.learns:
            assert reader.covariance == ("second_moment" if name.startswith("plain") else "normalised")
            assert (reader.name == "similarity_matching") == name.startswith("similarity")
        if own is not None:
            assert own.learning_rate == pytest.approx(0.01 * {"Oja": 1, "fast": 10, "plain": 30}[name.split()[0]])


def test_updates_have_rank_r_in_linear_networks_under_gradient_descent_alone(results):
    checks = update_rank.checks(results["update_rank"], TINY["update_rank"])
    assert checks["SGD / linear / low-rank r=2: update, beyond"] < 1e-6  # single precision: of squares
    assert checks["linear: largest share of a gradient beyond rank r"] < 1e-6
    for cell in ("SGD / ReLU / low-rank r=2", "Adam / batch norm / low-rank r=2", "Muon / linear / low-rank r=2"):
        assert checks[f"{cell}: update, beyond"] > 0.01
    assert (
        checks["SGD / linear / low-rank r=2: update, rank"]
        <= 2
        < checks["SGD / linear / backpropagation: update, rank"]
    )


def test_share_beyond_a_rank_by_hand():
    assert update_rank.beyond(np.diag([2.0, 1.0, 0.0]), 1) == pytest.approx(0.2)
    assert update_rank.beyond(np.diag([2.0, 1.0, 0.0])[:2], 2) == 0.0
    assert np.isnan(update_rank.beyond(np.eye(2), 0))
    assert np.isnan(update_rank.beyond(np.zeros((2, 2)), 1))


def test_random_channels_capture_what_theory_says(results):
    found, cells = results["alignment"], ["fixed P r=1", "fixed P r=4"]
    off = alignment.deviations(found, cells)
    assert len(off) == 2 * 2 * 2
    assert np.abs(off).max() < 4
    assert np.abs(alignment.deviations(found, ["fixed P r=4"], power=2)).max() > 2  # as if cosines were r/m
    np.testing.assert_allclose(found.captured.sel(cell="fixed P r=12"), 1.0, atol=1e-9)
    assert alignment.expected(found, 4) == pytest.approx([4 / 12 * 4 / 10, 4 / 10])
    np.testing.assert_allclose(found.gradient.sel(cell="fixed P r=12", step=0), 1.0, atol=1e-6)  # no channel at all


def test_errors_get_through_networks_as_theory_says(results):
    found, config = results["carried"], TINY["carried"]
    checks = carried.checks(found, config)
    deviation = "random channels: root mean square deviation from theory in standard errors"
    for title in carried.TITLES.values():
        assert checks[f"{title}, {deviation}"] < 2
        assert checks[f"{title}: the same if cosines, not their squares, were as theory says"] > 4
    assert checks["vision transformer: the same without skip connections"] > 4
    for network in carried.TITLES:
        full = found.squared_cosine.sel(cell=f"{network} / random r=24", layer=slice(1, 3))
        np.testing.assert_allclose(full, 1.0, rtol=0, atol=1e-12)  # no channel at all
    assert checks["network like VGG, unrelated feedback: largest squared cosine of a layer"] < 0.1


def test_closed_form_for_residual_branches_in_a_transformer(results):
    """It is theory up to the correlation of branch and skip connection; in a chain r/m multiply."""
    config, found = TINY["carried"], results["carried"]
    vit, vgg = (found.sel(cell=[f"{network} / random r=3"]) for network in ("vit", "vgg"))
    stream = {"layer": carried.shown_of("vit", config)}
    theory, chain = (
        one.sel(stream).transpose("layer", "cell", "seed").values for one in (vit.theory, carried.without_skips(vit))
    )
    off, wrong = (np.abs(one / theory - 1) for one in (carried.on_stream(vit, config), chain))
    assert off[0].max() < 1e-12  # behind the readout there is no branch yet
    assert off[1:].max() < 0.5 * wrong[1:].min()
    np.testing.assert_allclose(carried.without_skips(vgg)[..., :3], vgg.theory[..., :3], rtol=1e-10)


def test_other_layers_than_perceptrons_are_named_from_the_input_on():
    config = TINY["carried"]
    for network, names in (
        ("vgg", "conv 1, conv 2, dense"),
        ("vit", "patches, QKV 1, attention out 1, MLP in 1, MLP out 1"),
    ):
        assert carried.layers_of(network, config) == names.split(", ")
        splits = config.splits(HERE)
        assert len(carried.model_of(f"{network} / Oja r=3", splits, config).kernels) == names.count(",") + 2
    assert carried.on_data(carried.CONFIGS["quick"], "mnist").train == 4000


@pytest.fixture
def copied(tmp_path):
    """Return a copy of the figures' source that a test may edit."""
    folder = tmp_path / "figures"
    shutil.copytree(_source.PACKAGE, folder, ignore=shutil.ignore_patterns("output", "__pycache__"))
    return folder


def edited(folder: Path, name: str, old: str, new: str) -> str:
    """Return the source that simulation depends on after an edit of one module."""
    path = folder / f"{name}.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return _source.source_of("rank", ["simulate"], folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [("rank r of the channel", "r"), ("How wide the", "How broad the"), ("FLOOR = 1e-4", "FLOOR = 1e-3")],
)
def test_a_change_of_drawing_or_words_leaves_the_key(copied, old, new):
    before = _source.source_of("rank", ["simulate"], copied)
    assert edited(copied, "rank", old, new) == before
    assert edited(copied, "_style", "#0072B2", "#000000") == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Balanced(config.start_scale)", "Balanced(2 * config.start_scale)"),
        ("readers.Fixed()", "readers.Fixed('gaussian')"),
        ("weight_decay=0.0, n_hidden", "weight_decay=0.1, n_hidden"),
    ],
)
def test_a_change_of_simulation_changes_the_key(copied, old, new):
    before = _source.source_of("rank", ["simulate"], copied)
    assert edited(copied, "rank", old, new) != before


def test_library_hash_follows_any_source_file(tmp_path, monkeypatch):
    import linfb

    package = tmp_path / "linfb"
    (package / "rules").mkdir(parents=True)
    for place in ("__init__.py", "rules/base.py"):
        (package / place).write_text("x = 1\n")
    monkeypatch.setattr(linfb, "__file__", str(package / "__init__.py"))
    unwrapped = _source.library_hash.__wrapped__
    before = unwrapped()
    assert unwrapped() == before
    (package / "rules" / "base.py").write_text("x = 2\n")
    assert unwrapped() != before


def test_key_depends_on_config_device_and_library(monkeypatch):
    config = TINY["rank"]
    key = _cache.key_of("rank", config, "cpu")
    assert _cache.key_of("rank", replace(config), "cpu") == key
    others = [_cache.key_of("rank", replace(config, t_max=5.0), "cpu"), _cache.key_of("rank", config, "gpu")]
    monkeypatch.setattr(_cache, "library_hash", lambda: "another")
    others.append(_cache.key_of("rank", config, "cpu"))
    assert len({key, *others}) == 4


# The command


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out the drawing, which takes longer than what is tested."""
    monkeypatch.setattr(command, "draw", lambda *arguments: None)


ONE = replace(TINY["threshold"], decays=(0.3, 0.7), ranks=(2, 4), n_out=6, n_modes=2, t_max=50.0)


@pytest.fixture(scope="module")
def simulated_once() -> xr.Dataset:
    """Return the tiny figure's simulation at all decays that the tests ask for."""
    return threshold.simulate(replace(ONE, decays=(0.3, 0.5, 0.7)), HERE)


@pytest.fixture
def call(tmp_path, monkeypatch, simulated_once):
    """Return a function that runs the command on a tiny figure and returns the decays that it had to simulate."""
    monkeypatch.setitem(threshold.CONFIGS, "quick", ONE)
    simulated = []

    def counting(config, resources):
        simulated.extend(config.decays)
        return simulated_once.sel(decay=list(config.decays))

    monkeypatch.setattr(threshold, "simulate", counting)

    def run(*arguments, names=("threshold",)):
        simulated.clear()
        options = [*names, "--out", str(tmp_path), "--results", str(tmp_path / "results"), "--jobs", "1", *arguments]
        return CliRunner().invoke(command.main, options, catch_exceptions=False), list(simulated)

    return run


def test_second_run_comes_from_the_cache_and_force_does_not(call, tmp_path):
    first, simulated = call()
    assert (first.exit_code, simulated) == (0, [0.3, 0.7])
    picture = (tmp_path / "threshold-quick.png").read_bytes()
    again, simulated = call()
    assert (again.exit_code, simulated) == (0, [])
    assert (tmp_path / "threshold-quick.png").read_bytes() == picture
    assert call("--force")[1] == [0.3, 0.7]


def test_only_what_changed_is_drawn_again(call, tmp_path, monkeypatch, written):
    def drawn() -> int:
        written.clear()
        assert call()[1] == []
        return len(written)

    call()
    for suffix in ("pdf", "png"):
        (tmp_path / f"threshold-quick.{suffix}").write_bytes(b"a picture")  # which `written` does not make
    assert drawn() == 0
    (tmp_path / "threshold-quick.pdf").unlink()
    assert drawn() == 1
    (tmp_path / "threshold-quick.pdf").write_bytes(b"a picture")
    told = (tmp_path / "threshold-quick.json").read_text()
    assert drawn() == 0
    assert json.loads((tmp_path / "threshold-quick.json").read_text()) == json.loads(told)
    (tmp_path / "threshold-quick.json").write_text("{")
    assert drawn() == 1
    source_of = _source.source_of
    label = {True: "a label", False: ""}
    monkeypatch.setattr(_source, "source_of", lambda name, some: source_of(name, some) + label["plot" in some])
    assert (drawn(), drawn()) == (1, 0)
    assert call("--force")[1] == [0.3, 0.7]
    assert len(written) == 1


def test_cells_find_the_numbers_of_the_paper():
    assert mlp.paper_of("Oja r=10") == constrained.paper_of("all layers r=10") == 0.6184
    assert mlp.paper_of("backpropagation") == 0.6275
    assert transformer.paper_of("normative r=48") == 0.9126
    for cell in ("DFA", "fixed P r=10", "Oja r=3"):
        assert mlp.paper_of(cell) is None
    assert constrained.paper_of("all layers") is None


def test_parts_may_become_ready_in_any_order():
    parts = {label: {"key": label, "computed": "now"} for label in ("0.3", "0.7")}
    one = _variants.Variant("threshold", "tiny", ONE)
    assert _run.drawn_from(one, parts) == _run.drawn_from(one, dict(reversed(parts.items())))
    assert _run.drawn_from(one, parts) != _run.drawn_from(one, parts | {"0.3": {"key": "0.3", "computed": "then"}})


def test_ranks_apart_are_parts_of_their_own():
    config = mlp.Config(cells=("Oja r=2", "DFA", "Oja r=1"))
    parts = _run.parts_of("mlp", config, HERE, apart=True)
    assert [(part.label, part.config.cells) for part in parts] == [(cell, (cell,)) for cell in config.cells]
    assert {part.key for part in parts}.isdisjoint(part.key for part in _run.parts_of("mlp", config, HERE)[:1])
    made = [replace(part, dataset=xr.Dataset(coords={"cell": list(part.config.cells)})) for part in reversed(parts)]
    assert _run.joined("mlp", config, made).cell.values.tolist() == list(config.cells)
    whole = _variants.Variant("mlp", "tiny", config)
    assert _record.without(whole, ["Oja r=2"]).config.cells == ("DFA", "Oja r=1")
    assert _record.without(whole, ["Oja"]).config.cells == ("DFA",)


def test_one_more_part_is_simulated_alone(call, monkeypatch, undrawn):
    call()
    monkeypatch.setitem(threshold.CONFIGS, "quick", replace(ONE, decays=(0.3, 0.5, 0.7)))
    assert call()[1] == [0.5]


@pytest.mark.parametrize("damage", ["cut", "flipped", "record", "empty"])
def test_damaged_cache_is_computed_anew(call, tmp_path, damage, undrawn):
    call()
    key = _cache.key_of("threshold", replace(ONE, decays=(0.7,)), "cpu")
    data = tmp_path / "cache" / f"{key}.nc"
    content = data.read_bytes()
    if damage == "cut":
        data.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = len(content) // 2
        data.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "record":
        data.write_bytes(content.replace(b"threshold", b"thresholD"))
    else:
        data.write_bytes(b"")
    result, simulated = call()
    assert (result.exit_code, simulated) == (0, [0.7])
    assert "damaged" in result.output
    assert call()[1] == []


def test_failing_figure_does_not_stop_others(call, tmp_path, monkeypatch):
    monkeypatch.setitem(rank.CONFIGS, "quick", TINY["rank"])

    def failing(config, resources):
        raise RuntimeError("deliberate")

    monkeypatch.setattr(rank, "simulate", failing)
    result, simulated = call(names=("rank", "threshold"))
    assert (result.exit_code, simulated) == (1, [0.3, 0.7])
    assert "deliberate" in result.stderr
    assert "failed: rank" in result.stderr
    assert (tmp_path / "threshold-quick.pdf").exists()
    assert not (tmp_path / "rank-quick.pdf").exists()


def test_interruption_keeps_what_was_simulated(call, monkeypatch, undrawn):
    original = threshold.simulate

    def interrupted(config, resources):
        if config.decays == (0.7,):
            raise KeyboardInterrupt
        return original(config, resources)

    with monkeypatch.context() as patched:
        patched.setattr(threshold, "simulate", interrupted)
        result, simulated = call()
    assert (result.exit_code, simulated) == (1, [0.3])
    assert call()[1] == [0.7]


def test_provenance_is_complete(call, tmp_path):
    gallery = tmp_path / "gallery"
    call("--gallery", str(gallery))
    record = json.loads((tmp_path / "threshold-quick.json").read_text())
    assert record["config"] == json.loads(json.dumps(asdict(ONE)))
    assert (record["changes"], record["missing"]) == ({}, [])
    assert (record["preset"], record["device"], record["seeds"]) == ("quick", "cpu", list(ONE.seeds))
    assert {"linfb", "python", "numpy", "scipy", "xarray", "matplotlib"} <= set(record["versions"])
    assert record["library_sha256"] == _source.library_hash()
    assert set(record["git"]) == {"commit", "dirty"}
    assert set(record["parts"]) == {"0.3", "0.7"}
    for part in record["parts"].values():
        assert len(part["key"]) == 64
        assert part["seconds"] >= 0
        assert part["from_cache"] is False
        assert part["device"] == platform.machine()
    assert record["paper"] is None
    assert record["checks"]["share of runs whose count is as theory says"] > 0.5
    assert str(tmp_path) not in json.dumps(record)
    assert str(ROOT) not in json.dumps(record)
    assert sorted(path.name for path in gallery.iterdir()) == ["threshold-quick.json", "threshold-quick.png"]


def test_no_checkout_is_told_and_not_an_error(monkeypatch):
    def absent(*arguments, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    assert _run.git_state() == {"commit": None, "dirty": None}


def test_a_checkout_is_clean_but_for_what_figures_make(tmp_path):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x", *words], cwd=tmp_path, check=True)

    (tmp_path / "code").mkdir()
    code, made = tmp_path / "code" / "module.py", tmp_path / "figures" / "results" / "x.nc"
    code.write_text("x = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    made.parent.mkdir(parents=True)
    made.write_text("made")
    assert _run.git_state(code, besides=_run.MADE)["dirty"] is False
    assert _run.git_state(code)["dirty"] is True
    code.write_text("x = 2\n")
    assert _run.git_state(code, besides=_run.MADE)["dirty"] is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "'nonsense' is not a figure; there are modes, rank"),
        (["modes", "--data", "mnist"], "none of modes uses images"),
        (["language", "--data", "mnist"], "none of language uses images"),
        (["modes", "--preset", "huge"], "'huge' is not one of 'quick', 'cpu', 'paper'"),
        (["modes", "--device", "abacus"], "'abacus' is not one of 'cpu', 'gpu'"),
        (["mlp", "--data", "letters"], "'letters' is not one of"),
        (["mlp", "--data-root", "/no/such/folder"], "does not exist"),
        (["modes", "--jobs", "0"], "--jobs"),
        (["modes", "--preset", "cpu"], "modes has no preset 'cpu'; it has quick, paper"),
        (["mlp", "--set", "epoch=3"], "mlp has no field 'epoch'; its fields are 'seeds'"),
        (["mlp", "modes", "--set", "epochs=3"], "modes has no field 'epochs'"),
        (["mlp", "--set", "epochs=three"], "epochs must be a whole number, got 'three'"),
        (["mlp", "--set", "seeds=0,one"], "seeds[1] must be a whole number, got 'one'"),
        (["mlp", "--set", "cells=[]"], "cells of mlp must be at least one"),
        (["learning_times", "--set", "cases=[[16,1]]"], "cases[0] must be a list of 3, got (16, 1)"),
        (["mlp", "--set", "epochs"], "'epochs' is no field and value"),
        (["mlp", "--set", "epochs.more=3"], "mlp has no field 'epochs.more'"),
        (["networks", "--set", "vgg.epoch=2"], "vgg of networks has no field 'epoch'; its fields are 'sizes'"),
        (["modes", "--redraw", "--record"], "does not go with --record"),
        (["modes", "--force", "--available"], "exclude each other"),
        (["modes", "--redraw", "--results", "/no/such/folder"], "holds no record of modes"),
    ],
)
def test_bad_command_lines_name_what_is_wrong(arguments, words):
    result = CliRunner().invoke(command.main, arguments)
    assert result.exit_code == 2
    assert words in result.output


def test_absent_images_fail_with_advice(tmp_path):
    config = replace(mlp.CONFIGS["paper"], cells=("backpropagation",))
    with pytest.raises(FileNotFoundError, match="--data-root"):
        mlp.simulate(config, _run.Resources(data_root=str(tmp_path)))


def test_list_names_every_figure():
    result = CliRunner().invoke(command.main, ["--list"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == list(figures.NAMES)


def test_unknown_figure_is_refused():
    with pytest.raises(ValueError, match="figure must be one of 'modes'"):
        figures.load("nonsense")


def test_processes_give_the_same_numbers(tmp_path):
    parts = _run.parts_of("threshold", ONE, HERE)
    alone = {part.label: threshold.simulate(part.config, HERE) for part in parts}
    options = {"jobs": 2, "force": True, "say": print}
    for part in _run.fill(parts, HERE, tmp_path, **options):
        xr.testing.assert_identical(part.dataset, alone[part.label])
        assert Store(tmp_path).read(part.key)[0].equals(part.dataset)


# Other settings than the preset's


def test_settings_are_read_as_the_fields_are():
    found = _variants.variant("networks", "quick", None, {
        "seeds": "0..2", "cells": "vgg / low-rank, vit / zero feedback", "vgg.epochs": "2", "vgg.sizes.dense": "8",
        "vgg.learning_rates": "1", "train": "0.5", "vgg.augment": "flip",
    })  # fmt: skip
    quick = networks.CONFIGS["quick"]
    vgg = replace(quick.vgg, sizes=quick.vgg.sizes | {"dense": 8}, epochs=2, learning_rates=(1.0,), augment=("flip",))
    cells = ("vgg / low-rank", "vit / zero feedback")
    assert found.config == replace(quick, seeds=(0, 1, 2), cells=cells, train=0.5, vgg=vgg)
    assert isinstance(found.config.vgg.learning_rates[0], float)
    assert found.words.startswith("preset quick, seeds=0,1,2, cells=vgg / low-rank,vit / zero feedback, vgg.epochs=2")
    assert _variants.variant("rank", "quick", None, {"rules": '"fixed P, Q learned"'}).config.rules == (rank.KNOWN,)
    assert _variants.variant("mlp", "quick", None, {}).config == mlp.CONFIGS["quick"]


def test_files_of_other_settings_have_other_names():
    def key(preset="quick", data=None, **settings):
        return _variants.variant("mlp", preset, data, settings).key

    assert (key(), key("cpu")) == ("mlp-quick", "mlp-cpu")
    assert key(epochs="3", seeds="0") == key(seeds="[0]", epochs="3")
    others = [key(epochs="3"), key(epochs="4"), key(data="mnist"), key("cpu", epochs="3")]
    assert len({*others, key()}) == 5
    assert all(name.startswith(("mlp-quick-", "mlp-cpu-")) for name in others)


@pytest.fixture
def written(monkeypatch):
    """Leave out the drawing, and return what would stand on the figures that were to be drawn."""
    words = []
    monkeypatch.setattr(command, "draw", lambda one, *others: words.append(one.words))
    return words


def test_changed_settings_are_simulated_and_told(call, tmp_path, written):
    call()
    assert call("--set", "decays=0.5", "--set", "seeds=0,1")[1] == [0.5]
    assert written == ["preset quick", "preset quick, decays=0.5, seeds=0,1"]
    (path,) = tmp_path.glob("threshold-quick-*.json")
    told = json.loads(path.read_text())
    assert told["changes"] == {"decays": [0.5], "seeds": [0, 1]}
    assert told["config"]["decays"] == [0.5]
    assert list(told["parts"]) == ["0.5"]
    assert call("--set", "decays=0.3,0.5", "--set", "seeds=0,1")[1] == []  # every decay is cached by itself


# The results record


@pytest.fixture
def refusing(monkeypatch):
    """Return a function after which nothing can be simulated."""

    def refuse():
        def simulate(config, resources):
            raise AssertionError("simulated")

        monkeypatch.setattr(threshold, "simulate", simulate)

    return refuse


def test_a_record_is_drawn_without_simulation(call, tmp_path, refusing, monkeypatch):
    call("--record")
    files = [tmp_path / f"threshold-quick.{suffix}" for suffix in ("png", "json")]
    picture, told = files[0].read_bytes(), json.loads(files[1].read_text())
    shutil.rmtree(tmp_path / "cache")
    for file in files:
        file.unlink()
    refusing()
    assert call()[0].exit_code == 1  # control: without the record it would have to be simulated
    assert call("--redraw", "--gallery", str(tmp_path / "gallery"))[0].exit_code == 0
    assert files[0].read_bytes() == (tmp_path / "gallery" / "threshold-quick.png").read_bytes() == picture
    assert told | {"drawn": ""} == json.loads(files[1].read_text()) | {"drawn": ""}
    words, stamp = [], _run.stamp
    monkeypatch.setattr(_run, "stamp", lambda figure, text: words.append(text) or stamp(figure, text))
    monkeypatch.setattr(threshold, "LEVELS", (0.2, 0.8))
    assert call("--redraw", names=())[0].exit_code == 0  # everything that is recorded
    assert files[0].read_bytes() != picture  # control: it is drawn anew
    assert words == ["preset quick"]


def test_a_record_of_other_settings_is_refused(call, tmp_path, monkeypatch, undrawn):
    call("--record")
    assert call("--redraw")[0].exit_code == 0
    monkeypatch.setitem(threshold.CONFIGS, "quick", replace(ONE, t_max=60.0, decays=(0.3,)))
    result, simulated = call("--redraw")
    assert (result.exit_code, simulated) == (1, [])
    assert "was made with other settings (decays: [0.3, 0.7], now [0.3]; t_max: 50.0, now 60.0)" in result.stderr
    result, _ = call("--redraw", "--set", "t_max=50.0")
    assert "there is no threshold-quick-" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_damaged_record_is_refused(call, tmp_path, undrawn):
    call("--record")
    path = tmp_path / "results" / "threshold-quick.nc"
    path.write_bytes(path.read_bytes()[:-1])
    result, _ = call("--redraw")
    assert result.exit_code == 1
    assert "threshold-quick.nc in" in result.stderr
    assert "is damaged" in result.stderr


def test_changed_settings_have_their_own_record(call, tmp_path, refusing, written):
    call("--record")
    call("--record", "--set", "seeds=0,1")
    assert len(list((tmp_path / "results").iterdir())) == 2
    refusing()
    call("--redraw")
    call("--redraw", "--set", "seeds=0,1")
    assert written == ["preset quick", "preset quick, seeds=0,1"] * 2


def test_parts_that_are_not_there_are_named(call, tmp_path, refusing, written):
    result, simulated = call("--available")
    assert (result.exit_code, simulated) == (1, [])
    assert "no part of threshold-quick is there" in result.stderr
    call("--set", "decays=0.7")
    refusing()
    written.clear()
    call("--available", "--record")
    call("--redraw")
    assert written == ["preset quick, without 0.3"] * 2
    told = json.loads((tmp_path / "threshold-quick.json").read_text())
    assert (told["missing"], told["config"]["decays"]) == (["0.3"], [0.7])
    assert list(told["parts"]) == ["0.7"]


def test_a_record_is_not_replaced_by_one_with_fewer_parts(call, tmp_path, undrawn):
    call("--set", "decays=0.7")
    assert call("--available", "--record")[0].exit_code == 0
    assert call("--available", "--record")[0].exit_code == 0  # as many
    call("--record")
    whole = (tmp_path / "results" / "threshold-quick.nc").read_bytes()
    shutil.rmtree(tmp_path / "cache")
    call("--set", "decays=0.7")
    result, _ = call("--available", "--record")
    assert result.exit_code == 1
    assert "has more parts: remove it" in result.stderr
    assert (tmp_path / "results" / "threshold-quick.nc").read_bytes() == whole


@pytest.mark.parametrize("name", figures.NAMES)
def test_a_record_is_small_and_draws(name, results, tmp_path):
    tiny = _variants.Variant(name, "tiny", TINY[name])
    _record.write(tmp_path, tiny, results[name], {"config": tiny.described, "missing": []})
    again, found, _ = _record.read(tmp_path, tiny)
    assert again == tiny
    for kept, variable in results[name].data_vars.items():
        np.testing.assert_allclose(found[kept], variable, rtol=1e-7)  # half a unit in the last place is 6e-8
    assert found.indexes.keys() == results[name].indexes.keys()
    with _style.style():
        figures.load(name).plot(found, TINY[name])
    numbers = sum(variable.size for variable in results[name].data_vars.values())
    assert (tmp_path / f"{name}-tiny.nc").stat().st_size < 40_000 + 5 * numbers


RECORDS = sorted((ROOT / _record.RESULTS).glob("*.nc"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_what_is_recorded_fits_its_preset_and_is_in_the_gallery(path):
    name, preset = path.stem.split("-")
    _, _, told = _record.read(path.parent, _variants.variant(name, preset))
    shown = json.loads((ROOT / "docs" / "_static" / "gallery" / f"{path.stem}.json").read_text())
    assert {key: value for key, value in shown.items() if key not in ("drawn", "drawn_from")} == told
    assert len(told["git"]["commit"]) == 40
    assert path.stat().st_size < 500_000


def test_unbalanced_modes_follow_their_curves_and_bend_as_theory_says(results):
    checks = unbalanced.checks(results["unbalanced"], TINY["unbalanced"])
    assert checks["largest deviation of a run from its curve, over s"] < 1e-7  # the solver's tolerance
    assert checks["the same from the curve of backpropagation"] > 0.1
    found = unbalanced.bends_up(results["unbalanced"])
    assert found.sel(imbalance=0.0).all()
    assert not found.sel(imbalance=1.5).any()


def test_deep_follows_theory_and_its_exponents(results):
    checks = deep.checks(results["deep"], TINY["deep"])
    assert checks["largest relative deviation of a run from its own time"] < 0.02  # times between records interpolated
    assert checks["the same if every channel counted as that of a two-layer network"] > 0.1
    assert checks["largest relative deviation behind a channel that sees nothing"] < 1e-3


def test_noise_follows_theory(results):
    checks = noise.checks(results["noise"], TINY["noise"])
    assert checks["largest relative deviation of the excess loss at the smallest rate"] < 0.3  # of a few samples
    assert checks["share of gradient descents that are stable or not as theory says"] == 1.0
    assert checks["the same from the limit of backpropagation"] < 1.0
