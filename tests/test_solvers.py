"""Solvers: measured order, tolerance, step grids, online learning against its oracle and against the flow."""

import numpy as np
import pytest

from linfb import rules, simulate
from linfb.linear import SGD, Dop853, Euler, RungeKutta4, online
from linfb.linear.flow import dynamic, flow, replace_dynamic
from linfb.linear.simulation import initial_state
from linfb.linear.solvers import named
from linfb.networks import Given, LinearNetwork, SmallRandom
from linfb.rules import mirrors, readers
from linfb.tasks import Task, low_rank_teacher
from tests.linear_cases import CELLS, agree, as_users_call, convergence_order, correlated_task, rule_of


@pytest.fixture(autouse=True, scope="module")
def fast():
    """Integrations take many steps; shapes are checked on the same functions in test_flow."""
    with as_users_call():
        yield


TASK = low_rank_teacher(5, 4, [1.5, 1.0, 0.5])
NETWORK = LinearNetwork((5, 6, 4), SmallRandom(0.5))
RULES = {
    "backpropagation": rules.backpropagation(),
    "oja": rules.low_rank(2),
    "local": rules.local(2),
    "weight mirror": rules.weight_mirror(),
}


def maps(rule, times, method, *, task=TASK, network=NETWORK, **choices):
    return simulate(task, network, rule, times, method=method, observe="network_map", **choices).network_map.values


@pytest.fixture(scope="module")
def exact():
    return {name: maps(rule, [1.0], Dop853(1e-13, 1e-15), weight_decay=0.05) for name, rule in RULES.items()}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    ("solver", "order", "steps"), [(RungeKutta4, 4, (0.05, 0.025, 0.0125)), (Euler, 1, (0.02, 0.01, 0.005))]
)
def test_order_of_convergence(name, solver, order, steps, exact):
    errors = [np.abs(maps(RULES[name], [1.0], solver(h), weight_decay=0.05) - exact[name]).max() for h in steps]
    measured = convergence_order(steps, errors)
    assert abs(measured - order) < 0.1
    assert not abs(measured - (order + 1)) < 0.1
    without_decay = maps(RULES[name], [1.0], solver(steps[-1]))
    assert np.abs(without_decay - exact[name]).max() > 10 * errors[-1]


@pytest.mark.parametrize("name", RULES)
def test_adaptive_steps_keep_their_tolerance(name, exact):
    fine = maps(RULES[name], [1.0], RungeKutta4(5e-3), weight_decay=0.05)
    agree(fine, exact[name], 3e-11)  # the reference itself, by another method
    errors = {
        rtol: np.abs(maps(RULES[name], [1.0], Dop853(rtol, rtol), weight_decay=0.05) - exact[name]).max()
        for rtol in (1e-3, 1e-5, 1e-7, 1e-9)
    }
    for rtol, error in errors.items():
        assert error < 10 * rtol
    assert errors[1e-3] > 1e3 * errors[1e-9]  # the tolerance decides, not chance


def test_every_recorded_time_is_accurate(exact):
    times = np.linspace(0.0, 1.0, 50)
    coarse = maps(RULES["oja"], times, Dop853(1e-7, 1e-9), weight_decay=0.05)
    fine = maps(RULES["oja"], times, RungeKutta4(5e-3), weight_decay=0.05)
    assert np.abs(coarse - fine).max() < 1e-6
    assert np.abs(coarse[:, 1:] - fine[:, :-1]).max() > 1e-3


@pytest.mark.parametrize(
    "method", [Dop853(), RungeKutta4(0.05), Euler(0.05), SGD(0.05), SGD(0.05, 3, "float32"), SGD(0.05, 8)], ids=repr
)
def test_recording_more_times_changes_nothing(method):
    rule = rules.low_rank(2)
    few, many = [0.5, 2.0], np.arange(0, 41) * 0.05
    one, other = (
        simulate(TASK, NETWORK, rule, times, method=method, weight_decay=0.1, observe="network_map")
        for times in (few, many)
    )
    common = other.sel(time=one.time, method="nearest").network_map.values
    if isinstance(method, Dop853 | RungeKutta4):  # whose steps end on recorded times
        agree(common, one.network_map.values, 1e-7)
    else:
        assert np.array_equal(common, one.network_map.values)
    assert np.abs(common[:, 0] - one.network_map.values[:, 1]).max() > 1e-3


@pytest.mark.parametrize("method", [Euler(0.1), SGD(0.1)])
def test_times_must_lie_on_the_step_grid(method):
    with pytest.raises(ValueError, match=r"times must be multiples of the step size 0\.1 .*0\.25 is not"):
        maps(RULES["oja"], [0.1, 0.25], method)
    maps(RULES["oja"], [0.3, 0.7, 1.1], method)  # which binary fractions miss by rounding only


def test_euler_is_gradient_descent_on_the_moment_set():
    rule = rules.low_rank(2)
    state, _ = initial_state(TASK, NETWORK, rule, seed=0)
    for _ in range(7):
        velocity = flow(rule, 0.1, state, *TASK.moment_set())
        moved = [a + 0.03 * v for a, v in zip(dynamic(rule, state), dynamic(rule, velocity), strict=True)]
        state = replace_dynamic(rule, state, moved)
    found = maps(rule, [0.21], Euler(0.03), weight_decay=0.1)[0, 0]
    agree(found, state.weights[1] @ state.weights[0], 1e-14)
    with pytest.raises(AssertionError):
        agree(found, maps(rule, [0.18], Euler(0.03), weight_decay=0.1)[0, 0], 1e-14)


@pytest.mark.parametrize("cell", [("above", "oja normalised", "kolen_pollack"), *CELLS[::3]], ids=" - ".join)
@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_online_steps_are_the_flow_on_the_drawn_samples(cell, batch_size):
    """Also holds the compiled kernels, which serve small batches, to the general path."""
    rng = np.random.default_rng(0)
    rule, network = rule_of(*cell, gain="full_rank"), LinearNetwork((5, 6, 7, 4), SmallRandom(0.8))
    task = correlated_task(5, 4, rng)
    drawn = []

    class Spy(Task):
        def sample(self, n, rng):
            drawn.append(super().sample(n, rng))
            return drawn[-1]

    spied = Spy(task.teacher, task.input_covariance, task.label_noise)
    found = maps(rule, [0.05], SGD(0.01, batch_size), task=spied, network=network, weight_decay=0.1)[0, 0]
    state, _ = initial_state(task, network, rule, seed=0)
    assert len(drawn) == 1
    for step in range(5):
        batch = slice(step * batch_size, (step + 1) * batch_size)
        velocity = flow(rule, 0.1, state, drawn[0][0][batch], drawn[0][1][batch])
        moved = [a + 0.01 * v for a, v in zip(dynamic(rule, state), dynamic(rule, velocity), strict=True)]
        state = replace_dynamic(rule, state, moved)
    W1, W2, W3 = state.weights
    agree(found, W3 @ W2 @ W1)
    other = maps(rule, [0.05], SGD(0.01, batch_size), task=task, network=network, weight_decay=0.1, seeds=1)[0, 0]
    with pytest.raises(AssertionError):
        agree(other, W3 @ W2 @ W1)


def test_the_compiled_kernels_serve_the_common_rules():
    assert online.compiled(rules.backpropagation())
    assert online.compiled(rules.low_rank(2))
    assert not online.compiled(rules.local(2))
    assert not online.compiled(rules.weight_mirror())


@pytest.mark.parametrize("name", ["oja", "local"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_single_precision_stays_within_its_rounding(name, batch_size):
    """200 steps, compiled and general: the same samples, every number rounded by 6e-8; nothing falls back to double."""
    arguments = {
        "seeds": [0, 2],
        "weight_decay": 0.1,
        "observe": {"map": lambda s: s.map, "Q": lambda s: s.channels[0].Q},
    }
    single, double = (
        simulate(TASK, NETWORK, RULES[name], [0.04, 2.0], method=SGD(0.01, batch_size, dtype), **arguments)
        for dtype in ("float32", "float64")
    )
    for one in ("map", "Q"):
        assert single[one].dtype == np.float32
        assert double[one].dtype == np.float64
        agree(single[one].values, double[one].values, 2e-5)
        with pytest.raises(AssertionError):
            agree(single[one].values[:, 0], double[one].values[:, 1], 2e-5)
    assert "float32" in single.attrs["method"]


LINE = Task([[1.5, -0.5]])
SMALL = LinearNetwork((2, 2, 1), Given([[[0.6, -0.2], [0.1, 0.5]], [[0.4, 0.7]]]))
ONE_START = rules.low_rank(
    1, reader=readers.Fixed([[0.8]]), mirror=mirrors.KolenPollack(start=[[0.3, 0.9]])
)  # every seed starts at the same point, so that only the samples differ
STEPS = (0.08, 0.04, 0.02)


def online_maps(step_size, batch_size, n_seeds):
    method = SGD(step_size, batch_size)
    return maps(ONE_START, [1.6], method, task=LINE, network=SMALL, seeds=range(n_seeds))[:, 0]


def test_online_learning_converges_to_the_flow_in_the_mean():
    limit = maps(ONE_START, [1.6], "dop853", task=LINE, network=SMALL)[0, 0]
    means = [online_maps(h, 1024, 150).mean(axis=0) for h in STEPS]
    errors = [np.linalg.norm(mean - limit) for mean in means]
    assert abs(convergence_order(STEPS, errors) - 1.0) < 0.1
    elsewhere = [np.linalg.norm(mean - 1.05 * limit) for mean in means]
    assert abs(convergence_order(STEPS, elsewhere) - 1.0) > 0.1


def test_fluctuations_fall_as_the_root_of_step_over_batch():
    by_step = [online_maps(h, 8, 400).std(axis=0) for h in STEPS]
    by_batch = [online_maps(0.04, b, 400).std(axis=0) for b in (4, 16, 64)]
    assert abs(convergence_order(STEPS, [np.linalg.norm(s) for s in by_step]) - 0.5) < 0.1
    assert abs(convergence_order((4, 16, 64), [np.linalg.norm(s) for s in by_batch]) + 0.5) < 0.1


def test_solvers_by_name():
    for name, kind in (("dop853", Dop853), ("rk4", RungeKutta4), ("euler", Euler), ("sgd", SGD)):
        assert isinstance(named(name), kind)
    mine = Euler(0.5)
    assert named(mine) is mine


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: named("adam"), ValueError, "method must be one of 'dop853'"),
        (lambda: named(Euler), TypeError, "method must be a name or a solver"),
        (lambda: named(None), TypeError, "method"),
        (lambda: named(0.1), TypeError, "method"),
        (lambda: Euler(0.0), ValueError, "step_size"),
        (lambda: Euler("small"), TypeError, "step_size"),
        (lambda: RungeKutta4(-1.0), ValueError, "step_size"),
        (lambda: RungeKutta4(np.nan), ValueError, "step_size"),
        (lambda: SGD(0.1, 0), ValueError, "batch_size"),
        (lambda: SGD(0.1, 2.0), TypeError, "batch_size"),
        (lambda: SGD(0.1, True), TypeError, "batch_size"),
        (lambda: SGD(0.1, dtype="float16"), ValueError, "dtype"),
        (lambda: SGD(0.1, dtype=np.float32), ValueError, "dtype"),
        (lambda: Dop853(rtol=1e-16), ValueError, "rtol"),
        (lambda: Dop853(atol=0.0), ValueError, "atol"),
    ],
)
def test_bad_solvers_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
