"""Ensembles over rates: every member is its own single run, theory goes along, and bad rates are named."""

import itertools

import array_api_strict
import numpy as np
import pytest

import linfb
import linfb.linear.simulation
from linfb import rules, simulate
from linfb.linear import SGD, Dop853, Euler, RungeKutta4
from linfb.networks import Balanced, LinearNetwork, SmallRandom
from linfb.rules import Rule, mirrors, readers
from linfb.tasks import low_rank_teacher
from linfb.theory import learned_modes, predict
from tests.linear_cases import agree, as_users_call

TASK = low_rank_teacher(12, 4, [2.0, 1.0], label_noise=0.1)
NETWORK = LinearNetwork((12, 6, 5, 4), SmallRandom(0.7))
OBSERVED = ("network_map", "mirror_alignment", "captured_energy")
TIMES = [0.4, 1.2]
DECAYS, READERS, MIRRORS = (0.0, 0.3), (0.0, 2.0), (0.7, 1.5)


def low_rank(reader=None, mirror=None):
    """Return a function from rank and rates to the rule, the rates being those of the parts that have one."""
    reader, mirror = reader or readers.Oja, mirror or mirrors.KolenPollack

    def rule(rank=2, reader_rate=None, mirror_rate=None):
        pace = ({} if rate is None else {"rate": rate} for rate in (reader_rate, mirror_rate))
        return Rule("swept", "above", reader(**next(pace)), mirror(**next(pace)), rank)

    return rule


BOTH = {"reader_rate": READERS, "mirror_rate": MIRRORS}
CASES = {
    "Oja on errors": (low_rank(), BOTH),
    "Oja on labels": (low_rank(lambda **own: readers.Oja(on="labels", **own)), BOTH),
    "similarity matching": (low_rank(readers.SimilarityMatching, mirrors.WeightMirror), BOTH),
    "perfect mirror": (low_rank(mirror=mirrors.Exact), {"reader_rate": READERS}),
    "fixed reader": (low_rank(readers.Fixed), {"mirror_rate": MIRRORS}),
    "weight mirror": (low_rank(readers.Fixed, mirrors.WeightMirror), {"mirror_rate": MIRRORS}),
    "local": (low_rank(readers.Local), BOTH),
    "normative": (low_rank(readers.Normative, mirrors.Normative), BOTH),
    "nothing learns": (low_rank(readers.Fixed, mirrors.Fixed), {}),
}


@pytest.fixture(autouse=True, scope="module")
def as_users():
    """Call the library as its users do."""
    with as_users_call():
        yield


def members(whole, build, rates, **arguments):
    """Yield every member of a sweep, how it was set, and its single run."""
    swept = {"weight_decay": DECAYS} | rates
    ranks = whole.coords["rank"].values.tolist() if "rank" in whole.dims else [None]
    for rank, seed, *values in itertools.product(ranks, whole.seed.values.tolist(), *swept.values()):
        own = dict(zip(swept, values, strict=True))
        chosen = {} if rank is None else {"rank": rank}
        rule = build(**chosen, **{name: value for name, value in own.items() if name != "weight_decay"})
        alone = simulate(TASK, NETWORK, rule, TIMES, seeds=seed, weight_decay=own["weight_decay"], **arguments)
        yield whole.sel(seed=[seed], **chosen, **own), alone


def distance(one, other):
    """Return the largest difference of two results, relative to the largest entry of each variable (at least 1)."""
    assert set(one.data_vars) == set(other.data_vars)
    return max(
        float(np.abs(one[name].values - other[name].values).max()) / max(1.0, float(np.abs(other[name]).max()))
        for name in OBSERVED
    )


@pytest.mark.parametrize("method", [Euler(0.1), SGD(0.05), SGD(0.05, dtype="float32"), SGD(0.05, 8)], ids=repr)
@pytest.mark.parametrize("name", CASES)
def test_rates_and_seeds_in_an_ensemble_keep_every_bit(name, method):
    build, rates = CASES[name]
    arguments = {"method": method, "observe": ("network_map", "update_rank")}
    whole = simulate(TASK, NETWORK, build(), TIMES, seeds=[0, 7], rates={"weight_decay": DECAYS} | rates, **arguments)
    assert whole.network_map.dims == ("weight_decay", *rates, "seed", "time", "out", "in")
    for member, alone in members(whole, build, rates, **arguments):
        for variable in alone.data_vars:
            assert np.array_equal(member[variable], alone[variable]), variable


@pytest.mark.parametrize(
    ("method", "coordinates", "tolerance"),
    [
        (RungeKutta4(0.1), "reduced", 1e-10),
        (RungeKutta4(0.1), "full", 1e-10),
        (SGD(0.05), "full", 1e-10),
        (Dop853(1e-10, 1e-13), "auto", 1e-8),  # errors add up over the steps and are carried along
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["Oja on errors", "local", "fixed reader"])
def test_a_run_in_a_sweep_of_ranks_and_rates_is_its_single_run(name, method, coordinates, tolerance):
    build, rates = CASES[name]
    arguments = {"method": method, "coordinates": coordinates, "observe": OBSERVED}
    whole = simulate(
        TASK, NETWORK, build(), TIMES, seeds=[0, 7], ranks=[1, 3], rates={"weight_decay": DECAYS} | rates, **arguments
    )
    assert whole.network_map.dims[: len(rates) + 3] == ("weight_decay", *rates, "rank", "seed")
    pairs = list(members(whole, build, rates, **arguments))
    assert max(distance(member, alone) for member, alone in pairs) < tolerance
    for rate, values in ({"weight_decay": DECAYS} | rates).items():  # a neighbour in any rate is somebody else
        here, there = (whole.sel({rate: value}) for value in values[-2:])
        assert distance(here, there) > 1e5 * tolerance


def test_order_of_rates_is_that_of_the_mapping():
    build, rates = CASES["Oja on errors"]
    arguments = {"method": Euler(0.1), "observe": OBSERVED}
    one = simulate(TASK, NETWORK, build(), TIMES, rates=rates, **arguments)
    other = simulate(TASK, NETWORK, build(), TIMES, rates=dict(reversed(rates.items())), **arguments)
    assert one.network_map.dims[:3] == ("reader_rate", "mirror_rate", "seed")
    assert other.network_map.dims[:3] == ("mirror_rate", "reader_rate", "seed")
    assert distance(one, other.transpose(*one.dims)) == 0.0
    assert one.coords["reader_rate"].values.tolist() == list(READERS)


@pytest.mark.parametrize("method", [Euler(0.1), SGD(0.05)], ids=repr)
def test_rates_on_any_array_library(method):
    build, rates = CASES["local"]
    here, there = (
        simulate(TASK, NETWORK, build(), TIMES, rates={"weight_decay": DECAYS} | rates, method=method,
                 observe=OBSERVED, device=device)
        for device in ("cpu", array_api_strict)
    )  # fmt: skip
    assert distance(here, there) < 1e-12


def test_compiled_online_steps_take_the_rates_of_every_run(monkeypatch):
    build, rates = CASES["Oja on labels"]

    def run(rates):
        return simulate(TASK, NETWORK, build(), TIMES, seeds=range(2), ranks=[1, 3], rates=rates, method=SGD(0.05),
                        observe=OBSERVED)  # fmt: skip

    fast, other = run({"weight_decay": DECAYS} | rates), run({"weight_decay": (0.0, 0.31)} | rates)
    monkeypatch.setattr(linfb.linear.simulation, "compiled", lambda rule: False)
    plain = run({"weight_decay": DECAYS} | rates)
    assert distance(fast, plain) < 1e-12
    assert distance(other, plain) > 1e-5


ALIGNED = mirrors.KolenPollack(start="aligned")


def test_weight_decay_across_the_threshold_of_a_fixed_channel():
    """Modes with sigma_i(PA) = s sqrt(kappa_i) above the decay are learned: one call each, simulation and theory."""
    task = low_rank_teacher(6, 8, np.ones(6))
    network, rule = LinearNetwork((6, 6, 8), Balanced(0.1)), rules.low_rank(4, reader=readers.Fixed(), mirror=ALIGNED)
    decays = np.linspace(0.1, 1.1, 11)
    arguments = {"seeds": range(3), "ranks": [2, 4], "rates": {"weight_decay": decays}, "observe": "singular_values"}
    times = [0.0, 3.0, 300.0]
    found, exact = (call(task, network, rule, times, **arguments) for call in (simulate, predict))
    assert found.singular_values.dims == exact.singular_values.dims
    assert float(np.abs(found.singular_values - exact.singular_values).max()) < 1e-6
    last = found.singular_values.isel(time=-1)
    agreed = set()
    for decay, rank, seed in itertools.product(decays, (2, 4), range(3)):
        P = linfb.linear.simulation.initial_state(task, network, rule, seed=seed)[0].channels[0].P[:rank]
        sigma = np.linalg.svd(P @ task.Sigma_yx, compute_uv=False)
        if np.abs(sigma - decay).min() * times[-1] < 8.0:  # undecided: exp(2 * 8) is what a mode needs
            continue
        expected = learned_modes(task.Sigma_yx, P, weight_decay=decay)
        assert int((last.sel(weight_decay=decay, rank=rank, seed=seed) > 5e-3).sum()) == expected
        agreed.add(expected)
    assert agreed == {0, 1, 2, 3, 4}
    early = exact.isel(weight_decay=slice(0, -1)).singular_values.values
    with pytest.raises(AssertionError):  # the decay next to it
        agree(found.isel(weight_decay=slice(1, None)).singular_values.values, early, 1e-2)


def test_prediction_refuses_the_rates_that_have_no_closed_form():
    network, rule = LinearNetwork((12, 5, 4), Balanced(0.1)), rules.low_rank(2, reader=readers.Fixed(), mirror=ALIGNED)
    call = {"task": TASK, "network": network, "rule": rule, "times": [0.0, 2.0]}
    assert predict(rates={"mirror_rate": [1.0]}, **call).loss.sizes["mirror_rate"] == 1
    with pytest.raises(linfb.NoClosedFormError, match="at rate 1"):
        predict(rates={"mirror_rate": [1.0, 0.5]}, **call)


def test_results_say_which_rates_were_swept():
    swept = simulate(TASK, NETWORK, rules.low_rank(2), [0.0], rates={"weight_decay": [0.0, 0.5], "reader_rate": (1, 2)})
    assert swept.attrs["rates"] == "{'weight_decay': (0.0, 0.5), 'reader_rate': (1.0, 2.0)}"
    assert swept.attrs["weight_decay"] == "(0.0, 0.5)"
    assert swept.channel_rank.dims == ("weight_decay", "reader_rate", "seed", "channel")
    single = simulate(TASK, NETWORK, rules.low_rank(2), [0.0], rates={}, weight_decay=0.5)
    assert (single.attrs["rates"], single.attrs["weight_decay"]) == ("None", "0.5")
    assert single.loss.dims == ("seed", "time")


class Stubborn:
    """A mirror of another making, without a rate of its own to set."""

    name, learns, decays, transports_weights, rate, sets_reader = "stubborn", True, False, False, 1.0, False
    initial = gradient = carry = kernel = restarted = lambda self, *a, **k: None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rates": [0.1]}, TypeError, "rates must be a mapping from 'weight_decay', 'reader_rate'"),
        ({"rates": "reader_rate"}, TypeError, "rates must be a mapping"),
        ({"rates": {"learning": [1.0]}}, ValueError, "keys of rates must be one of"),
        ({"rates": {3: [1.0]}}, ValueError, "keys of rates must be one of"),
        ({"rates": {"reader_rate": 1.0}}, TypeError, r"rates\['reader_rate'\] must be a sequence of numbers"),
        ({"rates": {"reader_rate": "12"}}, TypeError, r"rates\['reader_rate'\] must be a sequence of numbers"),
        ({"rates": {"reader_rate": []}}, ValueError, r"rates\['reader_rate'\] must be at least one"),
        ({"rates": {"reader_rate": [1.0, 1]}}, ValueError, "all different"),
        ({"rates": {"reader_rate": [0.0, -0.0]}}, ValueError, "all different"),
        ({"rates": {"mirror_rate": [1.0, -1.0]}}, ValueError, r"rates\['mirror_rate'\]\[1\] must be finite and >= 0"),
        ({"rates": {"weight_decay": [np.nan]}}, ValueError, r"rates\['weight_decay'\]\[0\] must be finite"),
        ({"rates": {"weight_decay": [np.inf]}}, ValueError, r"rates\['weight_decay'\]\[0\] must be finite"),
        ({"rates": {"weight_decay": [True]}}, TypeError, r"rates\['weight_decay'\]\[0\] must be a real number"),
        ({"rates": {"weight_decay": [None]}}, TypeError, r"rates\['weight_decay'\]\[0\] must be a real number"),
        ({"rates": {"weight_decay": np.ones((2, 2))}}, TypeError, r"rates\['weight_decay'\]\[0\]"),
        ({"rates": {"weight_decay": [0.2]}, "weight_decay": 0.1}, ValueError, "weight_decay is 0.1 and varies in"),
        ({"rates": {"reader_rate": [1.0]}, "rule": rules.low_rank(2, reader=readers.Fixed())}, ValueError,
         "rates cannot vary 'reader_rate': the reader 'fixed' does not learn"),
        ({"rates": {"mirror_rate": [1.0]}, "rule": rules.low_rank(2, mirror=mirrors.Exact())}, ValueError,
         "rates cannot vary 'mirror_rate': the mirror 'exact' does not learn"),
        ({"rates": {"mirror_rate": [1.0]}, "rule": rules.low_rank(2, mirror=Stubborn())}, ValueError,
         "rates cannot vary 'mirror_rate': the mirror 'stubborn' does not learn at a rate"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", [simulate, predict])
def test_bad_rates_are_named(call, change, error, message):
    with pytest.raises(error, match=message):
        call(**({"task": TASK, "network": NETWORK, "rule": rules.low_rank(2), "times": [0.0]} | change))


@pytest.mark.parametrize("name", ["weight_decay", "reader_rate", "mirror_rate"])
def test_no_variable_is_called_like_a_rate(name):
    with pytest.raises(ValueError, match="observe names a variable"):
        simulate(TASK, NETWORK, rules.low_rank(2), [0.0], observe={name: lambda snap: snap.map})
