"""`predict` beside `simulate`: one set of arguments, the same variables, and refusals that name the assumption."""

import numpy as np
import pytest

import linfb
from linfb import rules
from linfb.linear import Dop853, Euler
from linfb.rules import mirrors, readers

TASK = linfb.low_rank_teacher(9, 6, [3.0, 2.0, 1.0])
NETWORK = linfb.LinearNetwork((9, 5, 6), linfb.Balanced(0.1))
TIMES = np.linspace(0.0, 30.0, 16)
OBSERVED = ("loss", "mode_strength", "singular_values", "network_map")
ALIGNED = mirrors.KolenPollack(start="aligned")
TIGHT = Dop853(rtol=1e-13, atol=1e-16)

KNOWN = {
    "backpropagation": (rules.backpropagation(), None),
    "Kolen-Pollack": (rules.kolen_pollack(mirror=ALIGNED), None),
    "fixed channel": (rules.low_rank(2, reader=readers.Fixed(), mirror=ALIGNED), [1, 2, 4, 6]),
    "fixed Gaussian channel": (rules.low_rank(2, reader=readers.Fixed("gaussian"), mirror=mirrors.Exact()), [2, 6]),
    "rescaled channel": (rules.low_rank(2, reader=readers.Fixed(), mirror=ALIGNED, gain="full_rank"), [1, 3]),
    "zero feedback": (rules.zero_feedback(), None),
}


def both(rule, ranks, weight_decay, network=NETWORK, theory_rule=None, theory_decay=None):
    arguments = {"seeds": range(3), "ranks": ranks, "observe": OBSERVED}
    simulated = linfb.simulate(TASK, network, rule, TIMES, weight_decay=weight_decay, method=TIGHT, **arguments)
    decay = weight_decay if theory_decay is None else theory_decay
    predicted = linfb.theory.predict(TASK, network, theory_rule or rule, TIMES, weight_decay=decay, **arguments)
    return simulated, predicted


def assert_same(simulated, predicted, tolerance=1e-9):
    for name in OBSERVED:
        assert simulated[name].dims == predicted[name].dims
        assert simulated[name].shape == predicted[name].shape
        difference = np.abs(simulated[name].values - predicted[name].values)
        assert np.all(difference < tolerance), f"{name} differs by {difference.max():.3g}"  # NaN fails


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("name", KNOWN)
def test_prediction_is_the_simulation(name, weight_decay):
    rule, ranks = KNOWN[name]
    simulated, predicted = both(rule, ranks, weight_decay)
    assert_same(simulated, predicted)
    assert np.array_equal(simulated["channel_rank"], predicted["channel_rank"])
    assert float(np.abs(predicted["network_map"][..., -1, :, :] - predicted["network_map"][..., 0, :, :]).max()) > 0.01


@pytest.mark.parametrize("name", ["backpropagation", "fixed channel", "rescaled channel"])
def test_another_weight_decay_is_refuted(name):
    rule, ranks = KNOWN[name]
    with pytest.raises(AssertionError, match="differs"):
        assert_same(*both(rule, ranks, 0.05, theory_decay=0.06))


def test_ignoring_the_channel_or_its_gain_is_refuted():
    rule, ranks = KNOWN["rescaled channel"]
    plain = rules.low_rank(2, reader=readers.Fixed(), mirror=ALIGNED)
    with pytest.raises(AssertionError, match="differs"):
        assert_same(*both(rule, ranks, 0.0, theory_rule=plain))


def test_feedback_alignment_along_modes():
    network = linfb.LinearNetwork((9, 5, 6), linfb.Aligned(0.3))
    rule = rules.feedback_alignment(mirror=mirrors.Fixed(start="weights"))
    assert_same(*both(rule, None, 0.0, network))
    with pytest.raises(AssertionError, match="differs"):
        assert_same(*both(rule, None, 0.0, network, theory_rule=rules.backpropagation()))


def test_zero_feedback_of_a_deep_network():
    assert_same(*both(rules.zero_feedback(), None, 0.0, linfb.LinearNetwork((9, 5, 7, 6), linfb.SmallRandom(0.5))))


def test_gradient_descent_approaches_the_prediction_with_order_one():
    rule = KNOWN["fixed channel"][0]
    exact = linfb.theory.predict(TASK, NETWORK, rule, [4.0], observe="network_map")["network_map"].values

    def error(step_size):
        run = linfb.simulate(TASK, NETWORK, rule, [4.0], method=Euler(step_size), observe="network_map")
        return np.abs(run["network_map"].values - exact).max()

    assert abs(np.log2(error(2e-3) / error(1e-3)) - 1.0) < 0.1


ADAPTIVE = rules.low_rank(2, mirror=ALIGNED)
DEEP = linfb.LinearNetwork((9, 5, 5, 6), linfb.Balanced(0.1))
COLOURED = linfb.Task(TASK.teacher, input_covariance=np.diag(np.linspace(1.0, 2.0, 9)))
REFUSED = {
    "whitened": (COLOURED, NETWORK, rules.backpropagation(), {}),
    "depth": (TASK, DEEP, rules.backpropagation(), {}),
    "adaptive": (TASK, NETWORK, ADAPTIVE, {}),
    "not aligned at the start": (TASK, NETWORK, rules.kolen_pollack(), {}),
    "not aligned all along": (TASK, NETWORK, rules.weight_mirror(), {}),
    "direct": (TASK, NETWORK, rules.direct_feedback_alignment(), {}),
    "layer 1 is not under the rule": (TASK, NETWORK, rules.zero_feedback(layers=()), {}),
    "M-balanced": (TASK, linfb.LinearNetwork((9, 5, 6), linfb.SmallRandom(0.1)), rules.backpropagation(), {}),
    "along single modes": (TASK, NETWORK, rules.feedback_alignment(), {}),
    "network's map": (TASK, NETWORK, rules.backpropagation(), {"observe": "captured_energy"}),
    "'task_overlap'": (TASK, NETWORK, rules.backpropagation(), {"observe": "task_overlap"}),
    r"weight decay.*\(depth\)": (TASK, DEEP, rules.zero_feedback(), {"weight_decay": 0.1}),
}


@pytest.mark.parametrize("assumption", REFUSED)
def test_refusals_name_the_assumption(assumption):
    task, network, rule, options = REFUSED[assumption]
    with pytest.raises(linfb.NoClosedFormError, match=assumption):
        linfb.theory.predict(task, network, rule, TIMES, **options)


def test_user_functions_of_the_map_are_predicted():
    observe = {"trace": lambda snap: np.einsum("roi,oi->r", snap.map, TASK.teacher)}
    call = {"task": TASK, "network": NETWORK, "rule": rules.backpropagation(), "times": [0.0, 20.0], "observe": observe}
    assert abs(linfb.theory.predict(**call).trace.values[0, -1] - np.sum(TASK.singular_values**2)) < 1e-6
    assert np.allclose(linfb.theory.predict(**call).trace, linfb.simulate(**call).trace, atol=1e-5)


def test_user_functions_of_more_than_the_map_are_told_so():
    observe = {"first layer": lambda snap: snap.weights[0]}
    with pytest.raises(AttributeError, match=r"'weights' needs linfb\.simulate"):
        linfb.theory.predict(TASK, NETWORK, rules.backpropagation(), [0.0, 1.0], observe=observe)


def test_what_is_derived_from_a_mirror_is_not_taken_for_it():
    class Half(mirrors.Exact):
        def carry(self, view):
            return 0.5 * super().carry(view)

    call = {"task": TASK, "network": NETWORK, "times": [0.0, 1.0]}
    rule = rules.Rule("half", "above", readers.Identity(), Half())
    with pytest.raises(linfb.NoClosedFormError, match="not aligned all along"):
        linfb.theory.predict(rule=rule, **call)
    exact, half = linfb.simulate(rule=rules.backpropagation(), **call), linfb.simulate(rule=rule, **call)
    assert abs(exact.loss[0, -1] - half.loss[0, -1]) > 1e-6  # it does learn otherwise
