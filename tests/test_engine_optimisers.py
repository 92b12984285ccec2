"""Optimizers: compiled steps against the plain ones, what each part of a rule gets, schedules."""

import inspect

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb import rules
from linfb.engine import Constant, Cosine, Exponential, Optimizers, adam, adamw, amsgrad, sgd
from linfb.engine.optimisers import overwriting
from linfb.kernels import cpu_optimisers, reference_optimisers
from linfb.rules import readers

OPTIMISERS = {
    "sgd": sgd(0.1),
    "momentum": sgd(0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": sgd(0.1, momentum=0.8, nesterov=True, weight_decay=0.01, decay="decoupled"),
    "adam": adam(0.01, weight_decay=0.1),
    "amsgrad": amsgrad(0.01, beta1=0.8, beta2=0.9),
    "amsgrad decoupled": amsgrad(0.01, beta2=0.9, weight_decay=0.1, decay="decoupled"),
    "adamw": adamw(0.01, weight_decay=0.1, epsilon=1e-3),
}


def run(optimiser, gradients, start, kernels, factor=0.7):
    value, slots = start.copy(), optimiser.init(start)
    for number, gradient in enumerate(gradients, start=1):
        value, slots = optimiser.update(value, gradient, slots, step=number, factor=factor, kernels=kernels)
    return value, *slots


def test_compiled_and_plain_steps_have_the_same_names_and_signatures():
    assert cpu_optimisers.__all__ == reference_optimisers.__all__
    for name in cpu_optimisers.__all__:
        fast, plain = getattr(cpu_optimisers, name), getattr(reference_optimisers, name)
        assert inspect.signature(fast) == inspect.signature(plain)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(7,), (3, 5), (1, 1), (17, 33)]))
def test_compiled_steps_agree_with_plain_ones(name, dtype, tolerance, seed, shape):
    rng = np.random.default_rng(seed)
    start = rng.standard_normal(shape).astype(dtype)
    gradients = rng.standard_normal((6, *shape)).astype(dtype)
    fast = run(OPTIMISERS[name], gradients, start, cpu_optimisers)
    plain = run(OPTIMISERS[name], gradients, start, reference_optimisers)
    for a, b in zip(fast, plain, strict=True):
        assert a.dtype == b.dtype == dtype
        assert np.allclose(a, b, rtol=tolerance, atol=tolerance)
    other = run(OPTIMISERS[name], gradients, start, reference_optimisers, factor=0.6)  # negative control
    assert not np.allclose(fast[0], other[0], rtol=tolerance, atol=tolerance)


def test_plain_steps_leave_their_arguments_alone_and_compiled_ones_overwrite_them():
    start, gradient = np.ones((2, 3)), np.full((2, 3), 0.5)
    for kernels, overwrites in ((reference_optimisers, False), (cpu_optimisers, True)):
        value, optimiser = start.copy(), amsgrad(0.1)
        slots = optimiser.init(value)
        new, new_slots = optimiser.update(value, gradient, slots, step=1, kernels=kernels)
        assert (new is value) == overwrites
        assert np.array_equal(value, start) != overwrites
        assert all((a is b) == overwrites for a, b in zip(slots, new_slots, strict=True))
    assert np.array_equal(gradient, np.full((2, 3), 0.5))


def test_the_kernels_follow_the_array_library():
    assert overwriting(np.ones(1)) is cpu_optimisers
    assert overwriting(array_api_strict.ones(1)) is reference_optimisers


def test_compiled_steps_refuse_arrays_they_cannot_overwrite():
    good = np.ones((4, 6))
    cases = [
        (good[:, ::2], np.ones((4, 3)), np.zeros((4, 3)), "C-contiguous"),
        (good.T, np.ones((6, 4)), np.zeros((6, 4)), "C-contiguous"),
        (good, np.ones((4, 5)), np.zeros((4, 6)), "must agree"),
        (good, np.ones((4, 6), dtype=np.float32), np.zeros((4, 6)), "must agree"),
    ]
    for value, gradient, velocity, message in cases:
        with pytest.raises(ValueError, match=message):
            sgd(0.1).update(value, gradient, (velocity,), step=1, kernels=cpu_optimisers)
    assert np.array_equal(good, np.ones((4, 6)))
    transposed = np.arange(24.0).reshape(6, 4).T  # a gradient may have any layout
    value, _ = sgd(1.0).update(good, transposed, (np.zeros((4, 6)),), step=1, kernels=cpu_optimisers)
    assert np.array_equal(value, 1 - transposed)


def test_coupled_and_decoupled_decay_differ_under_adam_and_agree_under_plain_gradient_descent():
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(5), rng.standard_normal((5, 5))
    for make, agree in ((lambda **kw: sgd(0.1, **kw), True), (lambda **kw: adam(0.1, **kw), False)):
        coupled, decoupled = (
            run(make(weight_decay=0.3, decay=decay), gradients, start, reference_optimisers)[0]
            for decay in ("coupled", "decoupled")
        )
        assert np.allclose(coupled, decoupled, rtol=0, atol=1e-14) == agree


def test_amsgrad_never_takes_a_longer_step_because_gradients_shrank():
    gradients = np.array([[1.0], *[[0.01]] * 60])
    lengths = {}
    for name, optimiser in (("amsgrad", amsgrad(1.0, beta2=0.9)), ("adam", adam(1.0, beta2=0.9))):
        path = [run(optimiser, gradients[:n], np.zeros(1), reference_optimisers)[0][0] for n in (60, 61)]
        lengths[name] = abs(path[1] - path[0])
    assert lengths["adam"] > 5 * lengths["amsgrad"]


def test_feedback_arrays_inherit_settings_and_decay_only_where_the_rule_says():
    W = adam(1e-3, weight_decay=0.1)
    oja = Optimizers(W).parts(rules.low_rank(2, reader=readers.Oja(rate=5.0)))
    assert (oja["Q"].optimiser.weight_decay, oja["P"].optimiser.weight_decay) == (0.1, 0.0)
    assert (oja["W"].rate, oja["Q"].rate, oja["P"].rate) == (1.0, 1.0, 5.0)
    local = Optimizers(W).parts(rules.local(2, rate=3.0))
    assert (local["P"].optimiser.weight_decay, local["P"].rate, local["Q"].rate) == (0.1, 3.0, 3.0)
    own = Optimizers(W, Q=sgd(0.5), P=adam(2e-3, weight_decay=0.2)).parts(rules.low_rank(2))
    assert own["Q"].optimiser == sgd(0.5)
    assert own["P"].optimiser.weight_decay == 0.2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sgd(-1.0), "learning_rate"),
        (lambda: sgd(float("nan")), "learning_rate"),
        (lambda: sgd("fast"), "learning_rate"),
        (lambda: sgd(0.1, momentum=1.0), "momentum"),
        (lambda: adam(0.1, beta2=1.0), "beta2"),
        (lambda: adam(0.1, epsilon=0.0), "epsilon"),
        (lambda: adam(0.1, weight_decay=-1.0), "weight_decay"),
        (lambda: adam(0.1, decay="both"), "decay"),
        (lambda: Optimizers("adam"), "optimizer for W"),
        (lambda: Optimizers(sgd(0.1), P=3), "optimizer for P"),
        (lambda: Exponential(0.0), "gamma"),
        (lambda: Cosine(0), "epochs"),
        (lambda: Cosine(5, warmup=5), "warmup"),
    ],
)
def test_bad_settings_are_refused_by_name(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@given(epochs=st.integers(1, 300), data=st.data())
def test_schedules_stay_in_the_unit_interval_and_peak_after_the_warm_up(epochs, data):
    warmup = data.draw(st.integers(0, epochs - 1))
    factors = np.array([Cosine(epochs, warmup=warmup)(epoch) for epoch in range(epochs)])
    assert np.all((factors > 0) & (factors <= 1))
    assert np.argmax(factors) == warmup
    assert np.all(np.diff(factors[:warmup]) > 0)
    assert np.all(np.diff(factors[warmup:]) < 0)
    assert Constant()(epochs) == 1.0
    assert Exponential(0.975)(epochs) == pytest.approx(0.975**epochs)
