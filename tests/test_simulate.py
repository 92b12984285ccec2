"""`simulate`: ensembles, devices, reproducibility, failures, ranks and bad input."""

import json
import logging

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import linfb
from linfb import rules, simulate
from linfb.linear import SGD, Dop853, Euler, RungeKutta4
from linfb.networks import Balanced, Given, LinearNetwork, SmallRandom
from linfb.observables import NAMED
from linfb.rules import mirrors, readers
from linfb.tasks import Task, low_rank_teacher
from tests.linear_cases import CELLS, agree, as_users_call, rule_of

TASK = low_rank_teacher(5, 4, [2.0, 1.0], label_noise=0.1)
DEEP = LinearNetwork((5, 6, 7, 4), SmallRandom(0.5))
WIDE = LinearNetwork((5, 6, 4), SmallRandom(0.5))
FIXED_STEP = [RungeKutta4(0.1), Euler(0.1), SGD(0.05), SGD(0.05, 8)]
METHODS = [Dop853(1e-7, 1e-9), *FIXED_STEP]
NAMED_RULES = {name: rules.by_name(name, **({"rank": 2} if "low" in name or name in ("local", "normative") else {}))
               for name in rules.names}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def as_users():
    """Call the library as its users do; the shapes are checked on the same functions in test_flow."""
    with as_users_call():
        yield


def same(one, other, tolerance=0.0):
    """Assert that two results have the same variables, exactly or to a tolerance, holes included."""
    assert set(one.variables) == set(other.variables)
    for name in one.data_vars:
        a, b = one[name].values, other[name].values
        assert np.array_equal(np.isnan(a), np.isnan(b)), name
        agree(np.nan_to_num(a), np.nan_to_num(b), tolerance)


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("name", NAMED_RULES)
def test_any_array_library_that_follows_the_standard(name, method):
    arguments = {"seeds": [0, 4], "weight_decay": 0.1, "method": method, "observe": tuple(NAMED)}
    here, there = (
        simulate(TASK, DEEP, NAMED_RULES[name], [0.0, 0.2, 0.5], device=device, **arguments)
        for device in ("cpu", array_api_strict)
    )
    rounding = {"invariant_drift"}  # differences of equal numbers, zero but for rounding
    same(here.drop_vars(rounding), there.drop_vars(rounding), 1e-12)
    agree(np.nan_to_num(here.invariant_drift), np.nan_to_num(there.invariant_drift), 1e-12)
    assert there.attrs["device"] == "array_api_strict"
    with pytest.raises(AssertionError):
        same(here.isel(time=[0]), there.isel(time=[1]), 1e-12)


def test_arrays_of_users_observables_must_stay_in_the_library():
    def mixed(snap):
        return snap.map @ np.ones((4, 1))

    with pytest.raises(TypeError):
        simulate(TASK, WIDE, rules.backpropagation(), [0.0], device=array_api_strict, observe={"mixed": mixed})


RANKED = [cell for cell in CELLS if cell[1] != "identity"]


@pytest.mark.parametrize(
    ("cell", "method"),
    [(cell, method) for method in FIXED_STEP for cell in RANKED[::2]]
    + [(cell, Dop853(1e-7, 1e-9)) for cell in RANKED[::5]],
    ids=lambda value: " - ".join(value) if isinstance(value, tuple) else repr(value),
)
def test_a_run_in_an_ensemble_is_its_single_run(cell, method):
    rule = rule_of(*cell)
    arguments = {"method": method, "weight_decay": 0.1, "observe": ("loss", "network_map", "captured_energy")}
    whole = simulate(TASK, DEEP, rule, [0.0, 0.5], seeds=[0, 7], ranks=[1, 3], **arguments)
    tolerance = 100 * method.rtol if isinstance(method, Dop853) else 1e-12  # shares are ratios of small numbers
    for rank in (1, 3):
        for seed in (0, 7):
            alone = simulate(TASK, DEEP, rule_of(*cell, rank=rank), [0.0, 0.5], seeds=seed, **arguments)
            same(whole.sel(rank=rank, seed=[seed]).drop_vars("rank"), alone, tolerance)
    other = simulate(TASK, DEEP, rule_of(*cell, rank=3), [0.0, 0.5], seeds=8, **arguments)
    with pytest.raises(AssertionError):
        agree(other.network_map.values[0], whole.network_map.sel(rank=3, seed=7).values, tolerance)


@pytest.mark.parametrize("method", FIXED_STEP, ids=repr)
@pytest.mark.parametrize("name", NAMED_RULES)
def test_seeds_in_an_ensemble_keep_every_bit(name, method):
    arguments = {"method": method, "weight_decay": 0.1, "observe": ("loss", "network_map")}
    whole = simulate(TASK, DEEP, NAMED_RULES[name], [0.0, 0.5], seeds=[0, 7, 3], **arguments)
    for seed in (0, 7):
        same(whole.sel(seed=[seed]), simulate(TASK, DEEP, NAMED_RULES[name], [0.0, 0.5], seeds=seed, **arguments))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_same_call_gives_the_same_bits(method):
    first, again = (
        simulate(TASK, DEEP, rules.low_rank(2), [0.0, 0.5], seeds=[5, 2], method=method, observe=tuple(NAMED))
        for _ in range(2)
    )
    same(first, again)
    assert first.attrs == again.attrs
    assert np.abs(first.network_map[0] - first.network_map[1]).max() > 1e-3


def test_runs_of_one_seed_share_weights_samples_and_channels():
    ranks = [1, 2, 4]
    own = {"weights": lambda snap: snap.weights[0], "P": lambda snap: snap.channels[0].P}
    result = simulate(TASK, WIDE, rules.low_rank(1, mirror=mirrors.Zero()), [0.0, 0.2], ranks=ranks, method=SGD(0.1),
                      observe=own | {"readout": lambda snap: snap.weights[1]})  # fmt: skip
    for rank in ranks:
        assert np.array_equal(result.weights.sel(rank=rank), result.weights.sel(rank=1))
        at_start = result.P.sel(rank=rank).values[0, 0]
        agree(at_start[:rank], result.P.sel(rank=4).values[0, 0][:rank], 1e-14)
        assert not np.any(at_start[rank:])
        same_samples = result.readout.sel(rank=rank).values
        agree(same_samples, result.readout.sel(rank=1).values, 1e-14)


def test_ranks_beyond_a_width_are_capped_and_reported(caplog):
    with caplog.at_level(logging.WARNING, logger="linfb"):
        result = simulate(TASK, DEEP, rules.low_rank(6), [0.0])
    assert result.channel_rank.values.tolist() == [[6, 4]]
    assert result.attrs["capped"] == "[2]"
    assert "capped" in caplog.text
    caplog.clear()
    result = simulate(TASK, DEEP, rules.low_rank(1), [0.0], ranks=[2, 9], seeds=[0, 1])
    assert result.channel_rank.values.tolist() == [[[2, 2]] * 2, [[7, 4]] * 2]
    assert result.channel_rank.dims == ("rank", "seed", "channel")
    assert json.loads(result.attrs["capped"]) == [1, 2]
    fits = simulate(TASK, DEEP, rules.low_rank(0.5), [0.0])
    assert fits.channel_rank.values.tolist() == [[4, 2]]
    assert fits.attrs["capped"] == "[]"
    by_layer = simulate(TASK, DEEP, rules.low_rank({1: 7, 2: 1}), [0.0])
    assert by_layer.channel_rank.values.tolist() == [[7, 1]]
    for rank, message in (({1: 7, 2: 5}, "rank of layer 2 is 5"), ({1: 2}, "no entry for layer 2")):
        with pytest.raises(ValueError, match=message):
            simulate(TASK, DEEP, rules.low_rank(rank), [0.0])


def test_capped_ranks_learn_as_the_full_channel():
    arguments = {"method": Euler(0.1), "observe": "network_map"}
    capped, full = (simulate(TASK, WIDE, rules.low_rank(r), [1.0], **arguments) for r in (9, 4))
    same(capped, full)


def test_results_say_where_they_come_from():
    result = simulate(TASK, WIDE, rules.low_rank(2), [0.0], weight_decay=0.25, method="euler")
    for key in ("task", "network", "rule", "weight_decay", "method", "device", "capped", "versions", "machine"):
        assert result.attrs[key]
        assert isinstance(result.attrs[key], str)
    assert result.attrs["weight_decay"] == "0.25"
    assert "Euler" in result.attrs["method"]
    assert "low-rank" in result.attrs["rule"]
    assert json.loads(result.attrs["versions"])["linfb"] == linfb.__version__


def test_results_survive_a_file(tmp_path):
    result = simulate(TASK, WIDE, rules.low_rank(2), [0.0, 1.0], ranks=[1, 2], seeds=[0, 1])
    result.to_netcdf(tmp_path / "runs.nc", engine="h5netcdf")
    import xarray as xr

    with xr.open_dataset(tmp_path / "runs.nc", engine="h5netcdf") as loaded:
        same(result, loaded.load())
        assert loaded.attrs == result.attrs


UNSTABLE = [(Euler(1.0), 1.0), (RungeKutta4(2.0), 2.0), (SGD(1.0), 1.0), (SGD(1.0, 16), 1.0)]
BIG = LinearNetwork((5, 6, 7, 4), SmallRandom(0.9))


@pytest.mark.parametrize("observe", [tuple(NAMED), ("loss",), ()], ids=["all", "loss", "none"])
@pytest.mark.parametrize(("method", "step"), UNSTABLE, ids=repr)
def test_divergence_is_an_error_that_keeps_what_was_computed(method, step, observe):
    times = step * np.arange(60)
    with pytest.raises(linfb.DivergenceError) as caught:  # warnings are errors here: none may leak
        simulate(TASK, BIG, rules.backpropagation(), times, method=method, observe=observe)
    message, partial = str(caught.value), caught.value.partial
    assert "backpropagation" in message
    assert type(method).__name__ in message
    done = partial.sizes["time"]
    assert 1 < done < 60
    assert f"t = {times[done]:g}" in message
    assert f"step size {step:g}" in message
    assert f"{done} of 60 times are in .partial" in message
    assert np.array_equal(partial.time, times[:done])
    assert set(partial.data_vars) == {*observe, "channel_rank"}
    stable = simulate(TASK, BIG, rules.backpropagation(), times[:done], method=method, observe=observe)
    same(partial, stable)
    if "loss" in observe:
        assert np.isfinite(partial.loss).all()
        assert partial.loss[0, -1] > 1e3 * partial.loss[0, 0]


class Explosive(readers.Local):
    """A reader with dP/dt = P^2, entry by entry: infinite at t = 1 from P = 1."""

    def gradient(self, view):
        return -(view.channel.P**2)


def test_a_blow_up_in_finite_time_stops_adaptive_steps():
    reader = Explosive(start=np.ones((1, 4)))
    rule = rules.Rule("explosive", "above", reader, mirrors.KolenPollack(rate=0.0), 1)
    still = LinearNetwork((5, 6, 4), Given([np.zeros((6, 5)), np.zeros((4, 6))]))
    times = np.linspace(0, 2, 10)
    own = {"P": lambda snap: snap.channels[0].P}
    quiet = Task(np.zeros((4, 5)))
    with pytest.raises(linfb.DivergenceError, match=r"explosive .* Dop853 at t = .*step size") as caught:
        simulate(quiet, still, rule, times, observe=own, method=Dop853(1e-4, 1e-4))
    partial = caught.value.partial
    assert partial.sizes["time"] == 5  # 0 to 0.89; 1.11 is never reached
    agree(partial.P[0, :, 0, 0], 1 / (1 - times[:5]), 1e-3)


def test_an_ensemble_stops_with_its_first_divergence():
    with pytest.raises(linfb.DivergenceError) as caught:
        simulate(TASK, BIG, rules.low_rank(2), np.arange(60.0), method=Euler(1.0), seeds=[0, 1, 2])
    assert caught.value.partial.sizes["seed"] == 3


def test_progress_goes_to_stderr_only_when_asked(capsys):
    simulate(TASK, WIDE, rules.backpropagation(), [0.0, 0.1], method=Euler(0.1))
    assert capsys.readouterr() == ("", "")
    simulate(TASK, WIDE, rules.backpropagation(), [0.0, 0.1], method=Euler(0.1), progress=True)
    assert "backpropagation" in capsys.readouterr().err


def test_time_zero_is_the_start():
    for method in METHODS:
        result = simulate(TASK, WIDE, rules.low_rank(2), [0.0], method=method, observe="network_map")
        product = WIDE.draw(TASK, (None,), seed=0)
        agree(result.network_map[0, 0], product[1] @ product[0], 1e-15)


def test_noise_on_labels_moves_no_mean_flow_but_that_of_a_reader_when_it_is_anisotropic():
    quiet, loud = Task(TASK.teacher), Task(TASK.teacher, label_noise=0.7)
    skewed = Task(TASK.teacher, label_noise=np.diag([2.0, 0.0, 0.0, 0.0]))
    for rule, task, moves in (
        (rules.backpropagation(), skewed, False),
        (rules.low_rank(2), loud, False),  # P C (I - P^T P) is blind to isotropic noise while P is orthonormal
        (rules.low_rank(2), skewed, True),
    ):
        one, other = (simulate(t, WIDE, rule, [2.0], observe="network_map") for t in (task, quiet))
        difference = np.abs(one.network_map - other.network_map).max()
        assert difference > 1e-3 if moves else difference < 1e-6


GOOD = {"task": TASK, "network": WIDE, "rule": rules.low_rank(2), "times": [0.0, 0.1], "method": Euler(0.1)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"task": 5}, TypeError, "task must be a Task"),
        ({"task": TASK.teacher}, TypeError, r"task must be a Task such as linfb\.low_rank_teacher\("),
        ({"network": (5, 6, 4)}, TypeError, "network must be a LinearNetwork"),
        ({"network": LinearNetwork((5, 6, 3))}, ValueError, "network widths"),
        ({"rule": "bp"}, TypeError, r"rule must be a Rule such as .*by_name\('fa'\), got 'bp'"),
        ({"rule": rules.low_rank}, TypeError, "rule must be a Rule"),
        ({"times": 1.0}, ValueError, "times has shape"),
        ({"times": []}, ValueError, "times has shape"),
        ({"times": [0.0, np.nan]}, ValueError, "times"),
        ({"times": [-0.1, 0.0]}, ValueError, "times must be non-negative"),
        ({"times": [0.1, 0.0]}, ValueError, "times must increase"),
        ({"times": [0.1, 0.1]}, ValueError, "times must increase"),
        ({"times": "now"}, TypeError, "times"),
        ({"seeds": 1.5}, TypeError, "seeds"),
        ({"seeds": None}, TypeError, "seeds"),
        ({"seeds": True}, TypeError, "seeds"),
        ({"seeds": [0, True]}, TypeError, r"seeds\[1\]"),
        ({"seeds": "01"}, TypeError, "seeds"),
        ({"seeds": []}, ValueError, "seeds must be at least one"),
        ({"seeds": [1, 1]}, ValueError, "seeds must be at least one and all different"),
        ({"seeds": -1}, ValueError, "seeds"),
        ({"seeds": [0, -1]}, ValueError, r"seeds\[1\]"),
        ({"ranks": 3}, TypeError, "ranks"),
        ({"ranks": []}, ValueError, "ranks"),
        ({"ranks": [0]}, ValueError, r"ranks\[0\]"),
        ({"ranks": [1, 1]}, ValueError, "ranks must be"),
        ({"ranks": [0.5]}, TypeError, r"ranks\[0\]"),
        ({"ranks": [1], "rule": rules.backpropagation()}, ValueError, "ranks cannot vary"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay"),
        ({"weight_decay": np.nan}, ValueError, "weight_decay"),
        ({"weight_decay": True}, TypeError, "weight_decay"),
        ({"weight_decay": [0.1]}, TypeError, "weight_decay"),
        ({"method": "adam"}, ValueError, "method must be one of"),
        ({"method": Euler}, TypeError, "method"),
        ({"device": "tpu"}, ValueError, "device"),
        ({"device": json}, ValueError, "device"),
        ({"observe": "lss"}, ValueError, "observe"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        simulate(**(GOOD | change))


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=3).filter(lambda text: text not in ("cpu", "gpu", "rk4", "sgd")),
    st.floats(max_value=-1e-3),
    st.just(np.nan),
    st.complex_numbers(),
    st.lists(st.one_of(st.none(), st.booleans(), st.text(max_size=2)), min_size=1, max_size=3),
    st.dictionaries(st.integers(), st.none(), min_size=1, max_size=2),
    st.binary(min_size=1, max_size=2),
)
REQUIRED = ("task", "network", "rule", "times", "seeds", "weight_decay", "method", "observe", "device")


@pytest.mark.parametrize("argument", REQUIRED)
@given(junk=JUNK)
def test_generated_nonsense_is_refused_by_name(argument, junk):
    with pytest.raises((TypeError, ValueError), match=argument):
        simulate(**(GOOD | {argument: junk}))


def test_balanced_starts_know_the_channels_of_the_rule():
    rule = rules.low_rank(2, reader=readers.Fixed(), mirror=mirrors.KolenPollack(start="aligned"))
    network = LinearNetwork((5, 6, 4), Balanced(0.5))

    def violation(snap):
        seen = snap.channels[0].P @ snap.weights[1]
        balance = snap.weights[0] @ snap.weights[0].swapaxes(1, 2) - seen.swapaxes(1, 2) @ seen
        return np.abs(balance).max(axis=(1, 2))

    own = {"violation": violation}
    assert simulate(TASK, network, rule, [0.0], seeds=[0, 1], ranks=[1, 2, 4], observe=own).violation.max() < 1e-14
    assert simulate(TASK, WIDE, rule, [0.0], seeds=[0, 1], ranks=[1, 2, 4], observe=own).violation.min() > 1e-3


def test_correlated_inputs_are_learned_too():
    mixed = np.eye(5) + 0.4 * np.ones((5, 5))
    task = Task(np.random.default_rng(0).standard_normal((4, 5)), mixed)
    result = simulate(task, LinearNetwork((5, 6, 4), SmallRandom(1.0)), rules.backpropagation(), [60.0],
                      observe="network_map", method=Dop853(1e-6, 1e-9))  # fmt: skip
    agree(result.network_map[0, 0], task.teacher, 1e-4)
    with pytest.raises(AssertionError):
        agree(result.network_map[0, 0], task.Sigma_yx, 1e-4)


def test_an_interrupt_keeps_what_was_recorded():
    from linfb._errors import InterruptedRun

    def impatient(snap):
        impatient.calls += 1
        if impatient.calls == 3:
            raise KeyboardInterrupt
        return snap.map

    impatient.calls = 0
    task = low_rank_teacher(5, 4, [2.0, 1.0])
    with pytest.raises(InterruptedRun, match="after 2 recorded times") as caught:
        simulate(
            task, LinearNetwork((5, 4, 4)), rules.backpropagation(), [0.0, 1.0, 2.0, 3.0], observe={"seen": impatient}
        )
    assert list(caught.value.partial.time.values) == [0.0, 1.0]


def test_an_interrupt_between_two_observables_keeps_whole_rows():
    from linfb._plan import Recorder, plan

    task = low_rank_teacher(5, 4, [2.0, 1.0])
    runs = plan(
        task, LinearNetwork((5, 4, 4)), rules.backpropagation(), [0.0, 1.0], seeds=0, ranks=None, rates=None,
        weight_decay=0.0, observe={"a": lambda snap: np.ones(1), "b": lambda snap: np.ones(1)},
    )  # fmt: skip
    recorder = Recorder(runs)
    recorder.add(None)
    recorder.records["a"].append(np.full(1, 7.0))  # the second row came no further
    kept = recorder.dataset([[4]])
    assert (kept.sizes["time"], float(kept.a.max()), kept.b.shape) == (1, 1.0, (1, 1))
