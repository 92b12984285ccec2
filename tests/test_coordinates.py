"""Flows in reduced input coordinates against those in all inputs: every observable, every rule, every flow solver."""

import numpy as np
import pytest

from linfb import rules, simulate
from linfb.linear import SGD, Dop853, Euler, RungeKutta4
from linfb.linear.coordinates import coordinates_of
from linfb.networks import Balanced, LinearNetwork, SmallRandom
from linfb.observables import NAMED
from linfb.rules import mirrors, readers
from linfb.tasks import Task, low_rank_teacher
from tests.linear_cases import CELLS, agree, as_users_call, rule_of

TASK = low_rank_teacher(20, 4, [2.0, 1.0], label_noise=np.diag([0.4, 0.1, 0.0, 0.2]))
NETWORK = LinearNetwork((20, 6, 5, 4), SmallRandom(0.5))  # 2 + 6 of 20 inputs


@pytest.fixture(autouse=True, scope="module")
def as_users():
    """Call the library as its users do; the shapes are checked on the same functions in test_flow."""
    with as_users_call():
        yield


def both(rule, method, *, task=TASK, network=NETWORK, **arguments):
    arguments = {"seeds": [0, 3], "weight_decay": 0.1, "observe": tuple(NAMED)} | arguments
    return [
        simulate(task, network, rule, [0.0, 0.4, 2.0], method=method, coordinates=choice, **arguments)
        for choice in ("reduced", "full")
    ]


def same(one, other, tolerance):
    assert set(one.data_vars) == set(other.data_vars)
    for name in one.data_vars:
        assert np.array_equal(np.isnan(one[name]), np.isnan(other[name])), name
        agree(np.nan_to_num(one[name].values), np.nan_to_num(other[name].values), tolerance)


@pytest.mark.parametrize("cell", CELLS, ids=" - ".join)
def test_fixed_steps_commute_with_coordinates(cell):
    """The step is linear in the first layer's rows: only rounding differs, in every observable of every rule."""
    reduced, full = both(rule_of(*cell, gain="full_rank"), RungeKutta4(0.1))
    assert reduced.attrs["input_coordinates"] == "reduced to 8 of 20 inputs"
    assert full.attrs["input_coordinates"] == "full"
    same(reduced, full, 1e-10)
    with pytest.raises(AssertionError):
        same(reduced.isel(time=[1]), full.isel(time=[2]), 1e-10)


@pytest.mark.parametrize("method", [Euler(0.1), Dop853(1e-12, 1e-14)], ids=repr)
def test_other_solvers_in_reduced_coordinates(method):
    same(*both(rules.low_rank(2), method, ranks=[1, 3]), 1e-10)


def test_functions_of_users_see_full_arrays():
    own = {
        "W1": lambda snap: snap.weights[0],
        "inputs": lambda snap: np.stack(2 * [snap.backward.activities[0]]),
        "velocity": lambda snap: snap.velocities()[0],
        "start": lambda snap: snap.start.weights[0] if snap.start else snap.weights[0],
    }
    same(*both(rules.low_rank(2), RungeKutta4(0.1), observe=own), 1e-12)


def test_directions_left_out_would_be_missed():
    """Negative control: without the directions that W1 starts in, the flow is another one."""
    rule, network = rules.backpropagation(), NETWORK
    start = np.stack([network.draw(TASK, (None, None), seed=0)[0]])
    basis = coordinates_of(TASK, start, "reduced", Euler()).basis
    agree(start @ basis @ basis.swapaxes(1, 2), start, 1e-13)
    agree(TASK.teacher @ basis[0] @ basis[0].T, TASK.teacher, 1e-13)
    fewer = coordinates_of(TASK, 0 * start, "reduced", Euler()).basis
    assert fewer.shape == (1, 20, 2)
    assert np.abs(start @ fewer @ fewer.swapaxes(1, 2) - start).max() > 1e-2
    full = both(rule, RungeKutta4(0.1), seeds=0, observe="network_map")[1].network_map.values
    assert np.abs(full[0, -1] @ fewer[0] @ fewer[0].T - full[0, -1]).max() > 1e-4


def test_a_narrow_balanced_start_needs_its_rank_only():
    rule = rules.low_rank(2, reader=readers.Fixed(), mirror=mirrors.KolenPollack(start="aligned"))
    reduced, full = both(rule, RungeKutta4(0.1), network=LinearNetwork((20, 6, 4), Balanced(0.3)))
    assert reduced.attrs["input_coordinates"] == "reduced to 4 of 20 inputs"
    same(reduced, full, 1e-10)


def test_reduced_where_that_is_exact_and_fewer():
    def chosen(task, method, widths=(20, 6, 4)):
        network = LinearNetwork(widths, SmallRandom(0.5))
        return simulate(task, network, rules.backpropagation(), [0.0], method=method).attrs["input_coordinates"]

    assert chosen(TASK, "dop853") == "reduced to 8 of 20 inputs"
    assert chosen(TASK, "dop853", (20, 14, 4)) == "full"  # 16 of 20 inputs are not worth it
    assert chosen(TASK, "sgd") == "full"
    mixed = Task(TASK.teacher, np.eye(20) + 0.1 * np.ones((20, 20)))
    assert chosen(mixed, "dop853") == "full"
    for task, method, message in ((mixed, "rk4", "these are correlated"), (TASK, SGD(), "SGD does not follow")):
        with pytest.raises(ValueError, match=f"coordinates can be 'reduced' for flows .*{message}"):
            simulate(task, LinearNetwork((20, 6, 4)), rules.backpropagation(), [0.0], method=method,
                     coordinates="reduced")  # fmt: skip
    with pytest.raises(ValueError, match="coordinates must be one of"):
        simulate(TASK, LinearNetwork((20, 6, 4)), rules.backpropagation(), [0.0], coordinates="svd")


def test_a_task_and_a_start_of_nothing_keep_one_direction():
    nothing = Task(np.zeros((4, 20)))
    start = coordinates_of(nothing, np.zeros((2, 6, 20)), "auto", Euler())
    assert start.basis.shape == (2, 20, 1)
