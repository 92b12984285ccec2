"""The right-hand side of learning against equations typed independently, gradients and population moments."""

import numpy as np
import pytest

from linfb import rules
from linfb.linear.flow import State, backward, dynamic, flow, replace_dynamic
from linfb.rules import Channel, mirrors, readers
from linfb.tasks import Task
from tests.linear_cases import CELLS, agree, correlated_task, paper_flow, random_state, rule_of

WIDTHS = {2: (5, 6, 4), 3: (5, 6, 7, 4), 4: (4, 3, 6, 5, 3)}


def pairs(found: State, expected, run: int):
    """Yield what the flow returned beside what the equations say, array by array."""
    yield from zip([v[run] for v in found.weights], expected.W, strict=True)
    for channel, dP, dQ in zip(found.channels, expected.P, expected.Q, strict=True):
        for array, reference in ((channel.P, dP), (channel.Q, dQ)):
            assert (array is None) == (reference is None)
            if array is not None:
                yield array[run], reference


def compare(found, expected, run):
    for array, reference in pairs(found, expected, run):
        agree(array, reference)


@pytest.mark.parametrize("depth", WIDTHS)
@pytest.mark.parametrize("cell", CELLS, ids=" - ".join)
def test_every_cell_of_the_table_follows_its_equations(cell, depth):
    rng = np.random.default_rng(depth)
    rule, widths = rule_of(*cell), WIDTHS[depth]
    task = correlated_task(widths[0], widths[-1], rng)
    state = random_state(rule, widths, rng)
    found = flow(rule, 0.07, state, *task.moment_set())
    for run in (0, 1):
        compare(found, paper_flow(rule, state, run, task, 0.07), run)
    with pytest.raises(AssertionError):  # another run's state
        compare(found, paper_flow(rule, state, 0, task, 0.07), 1)
    with pytest.raises(AssertionError):  # no weight decay
        compare(found, paper_flow(rule, state, 0, task, 0.0), 0)
    for array, reference in pairs(found, paper_flow(rule, state, 0, task, 0.07), 0):
        mutants = [-reference, 2 * reference, (1 + 1e-9) * reference] if np.any(reference) else [reference + 1e-9]
        for mutant in (*mutants, np.full_like(reference, np.nan)):
            with pytest.raises(AssertionError):
                agree(array, mutant)


@pytest.mark.parametrize("reader", ["oja errors", "oja labels"])
def test_oja_sees_the_noise_of_the_labels(reader):
    rng = np.random.default_rng(0)
    rule, task = rule_of("above", reader, "kolen_pollack"), correlated_task(5, 4, rng)
    state = random_state(rule, (5, 6, 4), rng)
    found = flow(rule, 0.0, state, *task.moment_set())
    noiseless = Task(task.teacher, task.input_covariance)
    agree(found.channels[0].P[0], paper_flow(rule, state, 0, task, 0.0).P[0])
    with pytest.raises(AssertionError):
        agree(found.channels[0].P[0], paper_flow(rule, state, 0, noiseless, 0.0).P[0])
    for W, expected in zip(found.weights, paper_flow(rule, state, 0, noiseless, 0.0).W, strict=True):
        agree(W[0], expected)  # while no weight does


def test_gain_multiplies_the_carried_error_only():
    rng = np.random.default_rng(1)
    widths, task = (5, 6, 7, 4), correlated_task(5, 4, rng)
    rule = rule_of("above", "fixed", "kolen_pollack", gain="full_rank")
    state = random_state(rule, widths, rng)
    compare(flow(rule, 0.1, state, *task.moment_set()), paper_flow(rule, state, 0, task, 0.1), 0)
    without = State(state.weights, tuple(channel._replace(gain=1.0) for channel in state.channels))
    with pytest.raises(AssertionError):
        compare(flow(rule, 0.1, without, *task.moment_set()), paper_flow(rule, state, 0, task, 0.1), 0)


def complex_step_gradient(task, weights, weight_decay):
    """Return the gradient of Task.loss plus weight decay by complex steps, exact to rounding."""

    def objective(matrices):
        product = matrices[0]
        for matrix in matrices[1:]:
            product = matrix @ product
        return task.loss(product) + 0.5 * weight_decay * sum(np.sum(matrix**2) for matrix in matrices)

    gradients = [np.zeros(W.shape) for W in weights]
    for layer, W in enumerate(weights):
        for index in np.ndindex(W.shape):
            moved = [V.astype(complex) for V in weights]
            moved[layer][index] += 1e-30j
            gradients[layer][index] = objective(moved).imag / 1e-30
    return gradients


@pytest.mark.parametrize("depth", WIDTHS)
def test_backpropagation_descends_the_loss_with_weight_decay(depth):
    rng = np.random.default_rng(depth)
    widths = WIDTHS[depth]
    task = correlated_task(widths[0], widths[-1], rng)
    rule = rules.backpropagation()
    state = random_state(rule, widths, rng, runs=1)
    expected = complex_step_gradient(task, [W[0] for W in state.weights], 0.2)
    found = flow(rule, 0.2, state, *task.moment_set()).weights
    for velocity, gradient in zip(found, expected, strict=True):
        agree(velocity[0], -gradient)
        with pytest.raises(AssertionError):
            agree(velocity[0], gradient)
    aligned = rule_of("above", "identity", "fixed")
    other = flow(aligned, 0.2, random_state(aligned, widths, rng, runs=1), *task.moment_set()).weights[0]
    with pytest.raises(AssertionError):
        agree(other[0], -expected[0])


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_a_finite_data_set_with_the_population_moments_is_the_population(noise):
    """Samples of any number and any higher moments give the same flow, as long as their moments are the task's."""
    rng = np.random.default_rng(3)
    inputs = rng.standard_normal((50, 5))
    teacher = rng.standard_normal((4, 5))
    centred = inputs - inputs.mean(axis=0)
    residual = noise * rng.standard_normal((50, 4))
    basis = np.linalg.qr(np.column_stack([np.ones(50), inputs]))[0]
    residual = residual - basis @ (basis.T @ residual)  # uncorrelated with the inputs in this sample
    labels = centred @ teacher.T + residual
    task = Task(teacher, centred.T @ centred / 50, residual.T @ residual / 50 if noise else 0.0)
    for cell in CELLS:
        rule = rule_of(*cell)
        state = random_state(rule, (5, 6, 4), rng)
        exact, sampled = flow(rule, 0.1, state, *task.moment_set()), flow(rule, 0.1, state, centred, labels)
        for one, other in zip(dynamic(rule, exact), dynamic(rule, sampled), strict=True):
            agree(one, other)
    with pytest.raises(AssertionError):
        agree(flow(rule, 0.1, state, centred[:25], labels[:25]).weights[1], exact.weights[1])


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell[1] != "identity"], ids=" - ".join)
def test_padded_ranks_carry_nothing_and_stay_zero(cell):
    rng = np.random.default_rng(4)
    rule, task = rule_of(*cell), correlated_task(5, 4, rng)
    state = random_state(rule, (5, 6, 7, 4), rng)

    def pad(array):
        return None if array is None else np.pad(array, ((0, 0), (0, 2), (0, 0)))

    padded = State(state.weights, tuple(Channel(pad(c.P), pad(c.Q), c.gain) for c in state.channels))
    plain, wide = (flow(rule, 0.1, s, *task.moment_set()) for s in (state, padded))
    for one, other in zip(plain.weights, wide.weights, strict=True):
        agree(one, other, 1e-14)
    for narrow, channel in zip(plain.channels, wide.channels, strict=True):
        for one, other in ((narrow.P, channel.P), (narrow.Q, channel.Q)):
            if one is not None:
                agree(one, other[:, :2], 1e-14)
                assert not np.any(other[:, 2:])


def test_one_run_needs_no_run_axis():
    rng = np.random.default_rng(5)
    rule, task = rule_of("above", "oja errors", "weight_mirror"), correlated_task(5, 4, rng)
    state = random_state(rule, (5, 6, 4), rng)
    single = State(tuple(W[1] for W in state.weights), tuple(Channel(c.P[1], c.Q[1], c.gain) for c in state.channels))
    whole, alone = (dynamic(rule, flow(rule, 0.1, s, *task.moment_set())) for s in (state, single))
    for batched, array in zip(whole, alone, strict=True):
        agree(batched[1], array, 1e-14)


def test_moving_arrays_are_taken_out_and_put_back():
    rng = np.random.default_rng(6)
    for cell in CELLS:
        rule = rule_of(*cell)
        state = random_state(rule, (5, 6, 7, 4), rng)
        arrays = dynamic(rule, state)
        moved = replace_dynamic(rule, state, [a + 1 for a in arrays])
        assert all(np.array_equal(a + 1, b) for a, b in zip(arrays, dynamic(rule, moved), strict=True))
        for before, after in zip(state.channels, moved.channels, strict=True):
            assert rule.reader.learns or before.P is after.P
            assert rule.mirror.learns or before.Q is after.Q


def test_errors_reach_hidden_layers_along_the_rule_s_own_path():
    rng = np.random.default_rng(7)
    task = correlated_task(5, 4, rng)
    direct = rule_of("network", "fixed", "fixed")
    run = backward(direct, random_state(direct, (5, 6, 7, 4), rng), *task.moment_set())
    assert run.reads[0] is run.deltas[-1]
    assert run.reads[1] is run.deltas[-1]
    above = rule_of("above", "fixed", "fixed")
    run = backward(above, random_state(above, (5, 6, 7, 4), rng), *task.moment_set())
    assert run.reads[0] is run.deltas[1]
    zero = rules.zero_feedback()
    run = backward(zero, random_state(zero, (5, 6, 7, 4), rng), *task.moment_set())
    assert not any(np.any(delta) for delta in run.deltas[:-1])
    assert np.any(run.deltas[-1])


def test_arrays_of_different_libraries_are_refused_with_advice():
    import array_api_strict as strict

    rng = np.random.default_rng(8)
    rule = rules.backpropagation()
    state = random_state(rule, (5, 6, 4), rng)
    elsewhere = State(tuple(strict.asarray(W) for W in state.weights), state.channels)
    x, y = rng.standard_normal((3, 5)), rng.standard_normal((3, 4))
    with pytest.raises(TypeError, match=r"different libraries .*move them to one device"):
        flow(rule, 0.0, elsewhere, x, y)
    with pytest.raises(TypeError, match="different libraries"):
        flow(rule, 0.0, state, strict.asarray(x), strict.asarray(y))
    agree(np.asarray(flow(rule, 0.0, elsewhere, strict.asarray(x), strict.asarray(y)).weights[0]),
          flow(rule, 0.0, state, x, y).weights[0])  # fmt: skip


def test_local_reader_and_its_mirror_conserve_the_difference_of_their_gram_matrices():
    rng = np.random.default_rng(9)
    rule = rules.local(2)
    task, state = correlated_task(5, 4, rng), random_state(rule, (5, 6, 4), rng, runs=1)
    P, Q = state.channels[0].P[0], state.channels[0].Q[0]
    moved = flow(rule, 0.0, state, *task.moment_set()).channels[0]
    rate = moved.Q[0] @ Q.T + Q @ moved.Q[0].T - moved.P[0] @ P.T - P @ moved.P[0].T
    agree(rate, np.zeros((2, 2)), 1e-11)
    lopsided = rules.Rule("lopsided", "above", readers.Local(2.0), mirrors.KolenPollack(1.0), 2)
    moved = flow(lopsided, 0.0, state, *task.moment_set()).channels[0]
    rate = moved.Q[0] @ Q.T + Q @ moved.Q[0].T - moved.P[0] @ P.T - P @ moved.P[0].T
    assert np.abs(rate).max() > 0.1
