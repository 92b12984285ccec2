"""The compiled online step against its plain twin, and through `simulate` against the general path."""

import inspect
import itertools

import numpy as np
import pytest

import linfb
import linfb.linear.simulation
from linfb import rules
from linfb.kernels import cpu_online as cpu
from linfb.kernels import reference_online as reference
from linfb.linear import SGD
from linfb.rules import mirrors, readers

CASES = [
    pytest.param(
        widths,
        full,
        way,
        q_rate,
        p_rate,
        labels,
        direct,
        id=f"{len(widths) - 1}-{full}-{way}-{q_rate}-{p_rate}-{labels}-{direct}",
    )
    for widths in [(8, 6, 4), (8, 6, 5, 4)]
    for full, way, q_rate, p_rate, labels, direct in [
        (True, 0, 0.0, 0.0, False, False),
        (True, 1, 0.0, 0.0, False, False),
        (True, 1, 0.7, 0.0, False, True),
        (True, 2, 0.0, 0.0, False, False),
        (False, 1, 0.0, 0.0, False, False),
        (False, 1, 1.0, 0.5, False, False),
        (False, 1, 1.0, 0.5, True, False),
        (False, 1, 1.0, 0.5, True, True),
        (False, 2, 0.0, 0.5, False, False),
    ]
]


def network(widths, full, direct, rng, rank=2):
    W = [rng.standard_normal((o, i)) / np.sqrt(i) for i, o in itertools.pairwise(widths)]
    P, Q = [np.zeros((0, widths[1]))], [np.zeros((0, widths[0]))]
    for l in range(1, len(W)):
        read = widths[-1] if direct else widths[l + 1]
        rows = read if full else rank
        P.append(np.zeros((0, read)) if full else np.linalg.qr(rng.standard_normal((read, rank)))[0].T.copy())
        Q.append(rng.standard_normal((rows, widths[l])) / 3)
    return W, P, Q


@pytest.mark.parametrize(("widths", "full", "way", "q_rate", "p_rate", "labels", "direct"), CASES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_compiled_step_equals_its_twin(widths, full, way, q_rate, p_rate, labels, direct, batch, dtype, tolerance):
    """In single precision: 43 steps that round weights of order one by 6e-8, adding up at worst."""
    rng = np.random.default_rng(1)
    start = network(widths, full, direct, rng)
    x, y = rng.standard_normal((43, batch, 8)), rng.standard_normal((43, batch, 4))  # five whole blocks and three steps
    gains = np.array([1.0, 1.3, 0.7])[: len(widths) - 1]

    def advance(kernel, decay, dtype=np.float64, cuts=()):
        arrays = [tuple(array.astype(dtype) for array in group) for group in start]
        for inputs, targets in zip(np.split(x, cuts), np.split(y, cuts), strict=True):
            data = inputs.astype(dtype), targets.astype(dtype)
            kernel.online_sgd(*arrays, gains, *data, 0.01, decay, way, q_rate, p_rate, labels, direct)
        return [array for group in arrays for array in group if array.size]

    def distance(a, b):
        return max(float(np.abs(one - two).max()) for one, two in zip(a, b, strict=True))

    expected, found = advance(reference, 0.1), advance(cpu, 0.1, dtype)
    assert all(array.dtype == dtype for array in found)
    assert distance(found, expected) < tolerance
    assert distance(advance(cpu, 0.2, dtype), expected) > 100 * tolerance  # another decay is another trajectory
    assert distance(advance(cpu, 0.1, dtype, cuts=[8, 24]), found) == 0.0  # where SGD cuts, no bit changes
    assert distance(advance(cpu, 0.1, dtype, cuts=[5]), expected) < tolerance


RULES = {
    "bp": rules.backpropagation(),
    "zero": rules.zero_feedback(),
    "fa": rules.feedback_alignment(rank=3),
    "dfa": rules.direct_feedback_alignment(),
    "kp": rules.kolen_pollack(),
    "low-rank": rules.low_rank(2, gain="full_rank"),
    "perfect": rules.low_rank(2, mirror=mirrors.Exact()),
    "direct": rules.direct_low_rank(2, reader=readers.Oja(on="labels", rate=3.0)),
}


@pytest.mark.parametrize("name", RULES)
def test_compiled_path_of_simulate_equals_the_general_one(name, monkeypatch):
    task = linfb.low_rank_teacher(12, 6, [3.0, 2.0, 1.0], label_noise=0.1)
    rule = RULES[name]
    ranks = [1, 2, 4] if rule.reader.compresses else None

    def run(step_size=1e-2):
        return linfb.simulate(
            task, linfb.LinearNetwork((12, 7, 5, 6), linfb.Balanced(0.3)), rule, [0.0, 0.3, 1.0], seeds=range(2),
            ranks=ranks, weight_decay=0.1, method=SGD(step_size), observe="network_map",
        )["network_map"].values  # fmt: skip

    fast = run()
    monkeypatch.setattr(linfb.linear.simulation, "compiled", lambda rule: False)
    assert np.abs(fast - run()).max() < 1e-12
    assert np.abs(fast - run(0.5e-2)).max() > 1e-5


def test_rules_outside_the_kernel_take_the_general_path():
    from linfb.linear.online import compiled

    outside = [rules.local(2), rules.normative(2), rules.weight_mirror()]
    assert not any(compiled(rule) for rule in outside)
    assert not compiled(rules.low_rank(2, reader=readers.Oja(covariance="normalised")))


def test_a_reader_derived_from_a_compiled_one_keeps_its_own_update():
    class Resting(readers.Oja):
        def gradient(self, view):
            return 0 * view.channel.P

    task, network = linfb.low_rank_teacher(6, 4, [2.0, 1.0]), linfb.LinearNetwork((6, 5, 4), linfb.Balanced(0.3))
    runs = [
        linfb.simulate(task, network, rules.low_rank(2, reader=reader), [0.0, 0.5], method=SGD(0.01))
        for reader in (Resting(), readers.Fixed(), readers.Oja())
    ]
    resting, fixed, oja = (run.mode_strength.values for run in runs)
    assert np.allclose(resting, fixed, rtol=0, atol=1e-12)
    assert np.abs(oja - fixed).max() > 1e-6


def test_compiled_and_plain_steps_have_the_same_names_and_signatures():
    assert cpu.__all__ == reference.__all__
    for name in cpu.__all__:
        fast, plain = getattr(cpu, name).py_func, getattr(reference, name)
        assert list(inspect.signature(fast).parameters) == list(inspect.signature(plain).parameters)
