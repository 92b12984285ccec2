"""Optimizers: compiled steps against the plain ones, Muon's iteration, clipping, what each part of a rule gets."""

import inspect

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb import rules
from linfb._threads import threads
from linfb.engine.optimisers import (
    Optimizers,
    adam,
    adamw,
    amsgrad,
    clipped,
    global_norm,
    muon,
    rmsprop,
    sgd,
)
from linfb.engine.schedules import Constant, Cosine, Exponential, Step, Warmup
from linfb.kernels import cpu_optimisers, reference_optimisers, suited
from linfb.rules import readers

OPTIMISERS = {
    "sgd": sgd(0.1),
    "momentum": sgd(0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": sgd(0.1, momentum=0.8, nesterov=True, weight_decay=0.01, decay="decoupled"),
    "rmsprop": rmsprop(0.01, weight_decay=0.1),
    "rmsprop momentum": rmsprop(0.01, alpha=0.9, momentum=0.8, weight_decay=0.1, decay="decoupled"),
    "rmsprop centred": rmsprop(0.01, alpha=0.8, centred=True),
    "rmsprop both": rmsprop(0.01, alpha=0.8, centred=True, momentum=0.5),
    "adam": adam(0.01, weight_decay=0.1),
    "amsgrad": amsgrad(0.01, beta1=0.8, beta2=0.9),
    "amsgrad decoupled": amsgrad(0.01, beta2=0.9, weight_decay=0.1, decay="decoupled"),
    "adamw": adamw(0.01, weight_decay=0.1, epsilon=1e-3),
    "muon": muon(0.1, weight_decay=0.1),
    "muon plain": muon(0.1, momentum=0.5, nesterov=False, weight_decay=0.1, decay="coupled", other=sgd(0.3)),
}
SHAPES = [(7,), (3, 5), (1, 2), (17, 33), (33, 17), (4, 3, 3, 2)]


def run(optimiser, gradients, start, kernels, factor=0.7):
    value = start.copy() if isinstance(start, np.ndarray) else start
    slots = optimiser.init(value)
    for number, gradient in enumerate(gradients, start=1):
        value, slots = optimiser.update(value, gradient, slots, step=number, factor=factor, kernels=kernels)
    return value, *slots


def problem(shape, dtype="float64", steps=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype(dtype), rng.standard_normal((steps, *shape)).astype(dtype)


def test_compiled_and_plain_steps_have_the_same_names_and_signatures():
    assert cpu_optimisers.__all__ == reference_optimisers.__all__
    for name in cpu_optimisers.__all__:
        fast, plain = getattr(cpu_optimisers, name), getattr(reference_optimisers, name)
        assert inspect.signature(fast) == inspect.signature(plain)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES))
def test_compiled_steps_are_plain_ones_bit_for_bit(name, dtype, seed, shape):
    start, gradients = problem(shape, dtype, seed=seed)
    fast = run(OPTIMISERS[name], gradients, start, cpu_optimisers)
    plain = run(OPTIMISERS[name], gradients, start, reference_optimisers)
    for a, b in zip(fast, plain, strict=True):
        assert a.dtype == b.dtype == dtype
        assert np.array_equal(a, b)
    other = run(OPTIMISERS[name], gradients, start, reference_optimisers, factor=0.6)  # negative control
    assert not np.allclose(fast[0], other[0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("shape", [(7,), (4, 3, 3, 2)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_plain_steps_need_the_array_standard_only(name, shape, dtype):
    start, gradients = problem(shape, dtype)
    strict = [array_api_strict.asarray(gradient) for gradient in gradients]
    theirs = run(OPTIMISERS[name], strict, array_api_strict.asarray(start), reference_optimisers)
    ours = run(OPTIMISERS[name], gradients, start, reference_optimisers)
    tolerance = {"float64": 1e-12, "float32": 1e-5}[dtype]  # of a matrix product in another order
    for a, b in zip(ours, theirs, strict=True):
        assert str(b.dtype).endswith(dtype)
        assert np.allclose(a, np.asarray(b), rtol=tolerance, atol=tolerance)
    assert not np.allclose(ours[0], start, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_slices_and_threads_do_not_change_bits(name, monkeypatch):
    start, gradients = problem((70, 130), "float32")
    monkeypatch.setattr(cpu_optimisers, "SLICE", 1000)
    lengths, for_slices = [], cpu_optimisers.for_slices
    for module in ("linfb.kernels.cpu_optimisers", "linfb._threads"):
        monkeypatch.setattr(
            f"{module}.for_slices", lambda f, n, size: lengths.append((n, size)) or for_slices(f, n, size)
        )
    results = []
    for n in (1, 2, 3):
        with threads(n):
            results.append(run(OPTIMISERS[name], gradients, start, cpu_optimisers))
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert (9100, 1000) in lengths
    if not name.startswith("muon"):  # its matrix products differ between fixed blocks and one call
        whole = run(OPTIMISERS[name], gradients, start, reference_optimisers)
        assert all(np.array_equal(a, b) for a, b in zip(results[0], whole, strict=True))


@pytest.mark.parametrize("kernels", [cpu_optimisers, reference_optimisers])
@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradients_that_are_not_finite_give_weights_that_are_not(kernels, name, bad, dtype):
    start, gradients = problem((5, 37), dtype)
    gradients[0, 2, 20] = bad
    with np.errstate(invalid="ignore", over="ignore"):
        value = run(OPTIMISERS[name], gradients[:2], start, kernels)[0]
    spoilt = ~np.isfinite(value)
    assert spoilt[2, 20]
    assert np.isnan(value[2, 20]) or not np.isnan(bad)
    assert spoilt.all() if name.startswith("muon") else spoilt.sum() == 1
    gradients[0, 2, 20] = 0  # negative control
    assert np.isfinite(run(OPTIMISERS[name], gradients[:2], start, kernels)[0]).all()


def test_plain_steps_leave_their_arguments_alone_and_compiled_ones_overwrite_them():
    start, gradient = np.ones((2, 3)), np.full((2, 3), 0.5)
    for kernels, overwrites in ((reference_optimisers, False), (cpu_optimisers, True)):
        for optimiser in (amsgrad(0.1), rmsprop(0.1, centred=True, momentum=0.5), muon(0.1), sgd(0.1, momentum=0.5)):
            value = start.copy()
            slots = optimiser.init(value)
            new, new_slots = optimiser.update(value, gradient, slots, step=1, kernels=kernels)
            assert (new is value) == overwrites
            assert np.array_equal(value, start) != overwrites
            assert all((a is b) == overwrites for a, b in zip(slots, new_slots, strict=True))
    assert np.array_equal(gradient, np.full((2, 3), 0.5))


def test_slots_are_only_those_needed():
    count = {name: len(optimiser.init(np.ones((2, 2)))) for name, optimiser in OPTIMISERS.items()}
    assert count == {
        "sgd": 0, "momentum": 1, "nesterov": 1, "rmsprop": 1, "rmsprop momentum": 2, "rmsprop centred": 2,
        "rmsprop both": 3, "adam": 2, "amsgrad": 3, "amsgrad decoupled": 3, "adamw": 2, "muon": 1, "muon plain": 1,
    }  # fmt: skip


def test_the_kernels_follow_the_array_library_and_precision():
    assert suited("optimisers", np.ones(1, np.float32)) is cpu_optimisers
    assert suited("optimisers", np.ones(1, np.float16)) is reference_optimisers
    assert suited("optimisers", array_api_strict.ones(1)) is reference_optimisers


def test_compiled_steps_refuse_arrays_they_cannot_overwrite():
    good = np.ones((4, 6))
    cases = [
        (good[:, ::2], np.ones((4, 3)), np.zeros((4, 3)), "C-contiguous"),
        (good.T, np.ones((6, 4)), np.zeros((6, 4)), "C-contiguous"),
        (good, np.ones((4, 5)), np.zeros((4, 6)), "must agree"),
        (good, np.ones((4, 6), dtype=np.float32), np.zeros((4, 6)), "must agree"),
    ]
    for optimiser in (sgd(0.1, momentum=0.5), rmsprop(0.1), muon(0.1)):
        for value, gradient, slot, message in cases:
            with pytest.raises(ValueError, match=message):
                optimiser.update(value, gradient, (slot,), step=1, kernels=cpu_optimisers)
    assert np.array_equal(good, np.ones((4, 6)))
    transposed = np.arange(24.0).reshape(6, 4).T  # a gradient may have any layout
    value, _ = sgd(1.0).update(good, transposed, (), step=1, kernels=cpu_optimisers)
    assert np.array_equal(value, 1 - transposed)


def test_coupled_and_decoupled_decay_differ_under_adam_and_agree_under_plain_gradient_descent():
    start, gradients = problem((5,), steps=5)
    for make, agree in ((sgd, True), (adam, False), (rmsprop, False)):
        coupled, decoupled = (
            run(make(0.1, weight_decay=0.3, decay=decay), gradients, start, reference_optimisers)[0]
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


def matrix_with(singular, shape, seed=0):
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((n, len(singular))))[0] for n in shape)
    return left, right, (left * singular) @ right.T


def quintic(s):
    return 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5


@pytest.mark.parametrize("shape", [(6, 6), (6, 20), (20, 6), (8, 9)])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_the_iteration_acts_on_singular_values_alone(shape, steps):
    singular = np.array([3.0, 2.0, 1.0, 0.5, 0.1, 0.03])
    left, right, matrix = matrix_with(singular, shape)
    expected = singular / np.linalg.norm(singular)
    for _ in range(steps):
        expected = quintic(expected)
    result = reference_optimisers.orthogonalised(matrix, steps)
    assert np.allclose(result, (left * expected) @ right.T, rtol=0, atol=1e-12)
    assert not np.allclose(result, (left * expected * 1.001) @ right.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(30, 30), (30, 70), (70, 30)])
def test_singular_values_come_into_the_band_and_low_rank_stays_low(shape):
    singular = np.logspace(0, -2.3, 12)
    left, right, matrix = matrix_with(singular, shape)
    found = np.linalg.svd(reference_optimisers.orthogonalised(matrix, 5), compute_uv=False)
    assert np.all((found[:12] > 0.67) & (found[:12] < 1.21))
    assert np.all(found[12:] < 1e-11)  # directions that the gradient lacks stay without
    polar = reference_optimisers.orthogonalised(matrix, 5) - left @ right.T
    assert np.linalg.norm(polar, 2) < 0.33
    once = np.linalg.svd(reference_optimisers.orthogonalised(matrix, 1), compute_uv=False)  # negative control
    assert once[11] < 0.1
    assert singular[11] / np.linalg.norm(singular) < 0.01


def test_the_band_is_where_the_scalar_iteration_ends():
    s = np.concatenate([np.linspace(0.0015, 1, 200_001), np.geomspace(1e-9, 1e-7, 50)])
    mapped = s
    for _ in range(5):
        mapped = quintic(mapped)
    assert 0.67 < mapped[:200_001].min() < 0.69
    assert 1.2 < mapped[:200_001].max() < 1.21
    assert np.allclose(mapped[200_001:] / s[200_001:], 484.876, rtol=1e-5)


def test_muon_spreads_an_update_that_gradient_descent_leaves_on_one_direction():
    _, _, gradient = matrix_with(np.array([1.0, 0.02, 0.02]), (10, 10))

    def effective_rank(optimiser):
        moved = run(optimiser, [gradient] * 3, np.zeros((10, 10)), cpu_optimisers)[0]
        s = np.linalg.svd(moved, compute_uv=False)
        return s.sum() ** 2 / (s**2).sum()

    assert effective_rank(muon(0.1)) > 2.8
    assert effective_rank(sgd(0.1, momentum=0.9)) < 1.1


@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_muon_does_not_see_the_size_of_gradients_but_adds_decay_to_them_if_coupled(scale):
    start, gradients = problem((5, 8))
    for optimiser, invariant in ((muon(0.1, weight_decay=0.1), True), (sgd(0.1), False)):
        one, other = (run(optimiser, k * gradients, start, reference_optimisers)[0] for k in (1, scale))
        assert np.allclose(one, other, rtol=1e-12, atol=1e-12) == invariant
    assert not np.array_equal(*(run(muon(0.1, weight_decay=0.1, decay="coupled"), k * gradients, start,
                                    reference_optimisers)[0] for k in (1, scale)))  # fmt: skip


def test_muon_takes_kernels_as_matrices_and_scales_by_their_shape():
    start, gradients = problem((12, 1, 2, 2))
    kernel = run(muon(0.1), gradients, start, reference_optimisers)[0]
    flat = run(muon(0.1), gradients.reshape(-1, 12, 4), start.reshape(12, 4), reference_optimisers)[0]
    assert np.array_equal(kernel.reshape(12, 4), flat)
    for shape, scale in (((12, 4), np.sqrt(3)), ((4, 12), 1.0), ((4, 4), 1.0)):
        _, _, gradient = matrix_with(np.ones(4), shape)
        moved = run(muon(0.5), [gradient], np.zeros(shape), reference_optimisers, factor=1.0)[0]
        s = np.full(4, 0.5)
        for _ in range(5):
            s = quintic(s)
        assert np.allclose(np.linalg.svd(moved, compute_uv=False), 0.5 * scale * s, rtol=1e-12)


def test_muon_gives_vectors_to_another_optimiser():
    start, gradients = problem((6,))
    default = run(muon(0.1, weight_decay=0.2), gradients, start, reference_optimisers)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(default, run(adamw(0.1, weight_decay=0.2), gradients, start, reference_optimisers), strict=True)
    )
    own = run(muon(0.1, other=sgd(0.3)), gradients, start, reference_optimisers)
    assert np.array_equal(own[0], run(sgd(0.3), gradients, start, reference_optimisers)[0])
    assert not np.array_equal(own[0], default[0])
    # the default's size: a matrix of one column moves by about as much per entry
    column = run(muon(0.1), gradients[:1, :, None], start[:, None], reference_optimisers, factor=1.0)[0][:, 0] - start
    vector = run(muon(0.1), gradients[:1], start, reference_optimisers, factor=1.0)[0] - start
    assert np.sqrt(np.mean(vector**2)) == pytest.approx(0.1)
    assert 0.067 < np.sqrt(np.mean(column**2)) < 0.121


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
    for optimiser in (muon(0.1, weight_decay=0.1), rmsprop(0.1, weight_decay=0.1)):
        parts = Optimizers(optimiser).parts(rules.low_rank(2))
        assert (parts["Q"].optimiser, parts["P"].optimiser.weight_decay) == (optimiser, 0.0)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("library", [np, array_api_strict])
def test_clipping_scales_all_arrays_down_together(dtype, library):
    rng = np.random.default_rng(0)
    host = {"0": rng.standard_normal((4, 3)).astype(dtype), "2/gain": rng.standard_normal(5).astype(dtype)}
    gradients = {path: library.asarray(array) for path, array in host.items()}
    norm = np.sqrt(sum((array.astype("float64") ** 2).sum() for array in host.values()))
    assert float(global_norm(gradients)) == pytest.approx(norm, rel=1e-6 if dtype == "float32" else 1e-14)
    short = clipped(gradients, 0.5)
    assert float(global_norm(short)) == pytest.approx(0.5, rel=1e-6)
    for path, array in host.items():
        assert str(short[path].dtype).endswith(dtype)
        assert np.allclose(np.asarray(short[path]), array * (0.5 / norm), rtol=2e-6, atol=0)
        assert np.array_equal(np.asarray(gradients[path]), array)
        assert np.array_equal(np.asarray(clipped(gradients, 2 * norm)[path]), array)  # short enough as it is
        assert not np.array_equal(np.asarray(short[path]), array)
    assert clipped(gradients, None) is gradients
    assert clipped({}, 1.0) == {}


def test_clipping_hides_no_gradient_that_is_not_finite():
    good = np.ones(3)
    assert np.isnan(clipped({"a": good, "b": np.array([np.nan, 1.0])}, 10.0)["a"]).all()
    with np.errstate(invalid="ignore"):
        assert np.isnan(clipped({"a": good, "b": np.array([np.inf, 1.0])}, 10.0)["b"][0])
    assert np.isfinite(clipped({"a": good}, 10.0)["a"]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sgd(-1.0), "learning_rate"),
        (lambda: sgd(float("nan")), "learning_rate"),
        (lambda: sgd("fast"), "learning_rate"),
        (lambda: sgd(0.1, momentum=1.0), "momentum"),
        (lambda: rmsprop(0.1, alpha=1.0), "alpha"),
        (lambda: rmsprop(0.1, momentum=-0.1), "momentum"),
        (lambda: rmsprop(0.1, epsilon=0.0), "epsilon"),
        (lambda: rmsprop(0.1, centred=1), "centred"),
        (lambda: adam(0.1, beta2=1.0), "beta2"),
        (lambda: adam(0.1, epsilon=0.0), "epsilon"),
        (lambda: adam(0.1, weight_decay=-1.0), "weight_decay"),
        (lambda: adam(0.1, decay="both"), "decay"),
        (lambda: muon(0.1, momentum=1.0), "momentum"),
        (lambda: muon(0.1, steps=0), "steps"),
        (lambda: muon(0.1, nesterov="yes"), "nesterov"),
        (lambda: muon(0.1, other="adam"), "other"),
        (lambda: Optimizers("adam"), "optimizer for W"),
        (lambda: Optimizers(sgd(0.1), P=3), "optimizer for P"),
        (lambda: Optimizers(sgd(0.1), clip_norm=0.0), "clip_norm"),
        (lambda: Optimizers(sgd(0.1), clip_norm=float("inf")), "clip_norm"),
        (lambda: Exponential(0.0), "gamma"),
        (lambda: Exponential(0.5)(-1), "epoch"),
        (lambda: Exponential(0.5)(float("nan")), "epoch"),
        (lambda: Constant()("first"), "epoch"),
        (lambda: Step(0.5), "every and milestones"),
        (lambda: Step(0.5, every=2, milestones=(1,)), "every and milestones"),
        (lambda: Step(0.5, every=0), "every"),
        (lambda: Step(0.5, milestones=()), "milestones"),
        (lambda: Step(0.5, milestones=(3, 3)), "milestones"),
        (lambda: Step(0.5, milestones=(0, 3)), "milestones"),
        (lambda: Step(1.5, every=1), "gamma"),
        (lambda: Cosine(0), "epochs"),
        (lambda: Cosine(5, warmup=5), "warmup"),
        (lambda: Warmup(-1), "epochs"),
        (lambda: Warmup(1, then=0.5), "then"),
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


@given(epoch=st.floats(0, 30), warmup=st.integers(0, 6))
def test_warm_up_goes_in_front_of_any_schedule(epoch, warmup):
    assert Warmup(warmup, Cosine(8))(epoch) == pytest.approx(Cosine(8 + warmup, warmup=warmup)(epoch), abs=1e-14)
    assert Warmup(warmup)(epoch) == min(1.0, (epoch + 1) / (warmup + 1))
    if epoch >= warmup:
        assert Warmup(warmup, Step(0.5, every=2))(epoch) == Step(0.5, every=2)(epoch - warmup)
    twice = Warmup(2, Warmup(3))
    assert [twice(e) for e in (0, 1, 2, 5)] == pytest.approx([1 / 12, 1 / 6, 1 / 4, 1.0])
    assert Warmup(4, Constant())(3) != Constant()(3)


@given(epoch=st.floats(0, 50))
def test_schedules_within_an_epoch(epoch):
    whole = int(epoch)
    for schedule in (Exponential(0.9), Step(0.5, every=3), Step(0.5, milestones=(2, 7, 8))):
        assert schedule(epoch) == schedule(whole)  # they wait for the end of the epoch
    near = 1e-6
    for schedule in (Cosine(40), Cosine(40, warmup=5), Warmup(7, Cosine(20))):
        assert abs(schedule(epoch + near) - schedule(epoch)) < 1e-6  # continuous
    assert Step(0.5, every=0.25)(1.5) == 0.5**6


def test_schedules_are_known_by_their_repr():
    assert Step(0.5, milestones=[2, 3]) == Step(0.5, milestones=(2, 3))
    assert repr(Step(0.5, milestones=[2, 3])) == "Step(gamma=0.5, every=None, milestones=(2, 3))"
    assert repr(Warmup(2, Cosine(5))) == "Warmup(epochs=2, then=Cosine(epochs=5, warmup=0))"
    assert repr(Optimizers(sgd(0.1), clip_norm=1.0)) != repr(Optimizers(sgd(0.1)))
