"""Every layer: forward, gradient and pull agree with each other, for any kernel; losses with their derivatives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb.engine import BatchNorm, Bias, Dense, Model, ReLU, cross_entropy, mlp, squared_error
from linfb.engine.models import evaluate, forward, initial_buffers, initial_weights
from linfb.engine.trees import flatten, rebuild

LAYERS = [Dense(5, 4), Dense(4, 7), Bias(5), ReLU(), BatchNorm(5), BatchNorm(3, epsilon=0.3)]


def derivative(f, h=1e-3):
    """Central five-point derivative at 0; error O(h^4)."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def random_weights(layer, rng):
    if isinstance(layer, Dense):
        return rng.standard_normal((layer.n_out, layer.n_in))
    start = layer.initial_weights(rng)
    return rebuild(start, {k: v + rng.standard_normal(v.shape) for k, v in flatten(start).items()})


def random_case(layer, seed):
    rng = np.random.default_rng(seed)
    width = layer.n_in if isinstance(layer, Dense) else getattr(layer, "n_features", 6)
    x, w = rng.standard_normal((8, width)), random_weights(layer, rng)
    x += 0.05 * np.sign(x)  # keep away from ReLU's kink
    y, cache = layer.forward(w, x)
    return rng, x, w, rng.standard_normal(y.shape), cache


def along(tree, direction, t):
    moved = {k: v + t * flatten(direction)[k] for k, v in flatten(tree).items()}
    return rebuild(tree, moved)


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@given(seed=st.integers(0, 2**32 - 1))
def test_pull_is_the_adjoint_of_the_jacobian(layer, seed):
    rng, x, w, delta, cache = random_case(layer, seed)
    direction = 0.1 * rng.standard_normal(x.shape)
    forward_mode = derivative(lambda t: np.sum(delta * layer.forward(w, x + t * direction)[0]), 1e-2 * 0.5)
    reverse_mode = np.sum(direction * layer.pull(w, cache, delta))
    scale = np.abs(direction * layer.pull(w, cache, delta)).sum() + 1e-3
    assert abs(forward_mode - reverse_mode) <= 2e-8 * scale
    wrong = np.sum(direction * layer.pull(w, cache, -delta))  # negative control
    if abs(reverse_mode) > 1e-3 * scale:
        assert not abs(forward_mode - wrong) <= 2e-8 * scale


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@given(seed=st.integers(0, 2**32 - 1))
def test_grad_is_the_adjoint_in_the_weights(layer, seed):
    rng, x, w, delta, cache = random_case(layer, seed)
    gradient = layer.grad(w, cache, delta)
    assert flatten(gradient).keys() == flatten(w).keys()
    direction = rebuild(w, {k: rng.standard_normal(v.shape) for k, v in flatten(w).items()})
    slope = derivative(lambda t: np.sum(delta * layer.forward(along(w, direction, t), x)[0]))
    products = [g * flatten(direction)[k] for k, g in flatten(gradient).items()]
    scale = sum(np.abs(p).sum() for p in products) + 1e-3
    assert abs(slope - sum(p.sum() for p in products)) <= 1e-10 * scale


def test_dense_pulls_through_any_kernel_and_maps_features():
    rng = np.random.default_rng(0)
    layer, kernel, P = Dense(4, 3), rng.standard_normal((3, 4)), rng.standard_normal((2, 3))
    h, delta = rng.standard_normal((6, 4)), rng.standard_normal((6, 3))
    composed = layer.compose(P, kernel)
    assert np.allclose(layer.forward(composed, h)[0], layer.forward(kernel, h)[0] @ P.T, rtol=0, atol=1e-14)
    # Kolen-Pollack for free: the gradient seen through P is P times the weights' gradient
    assert np.allclose(layer.grad(composed, h, delta @ P.T), P @ layer.grad(kernel, h, delta), rtol=0, atol=1e-13)
    assert np.allclose(layer.contract(composed, kernel), composed @ kernel.T, rtol=0, atol=1e-14)


def test_batchnorm_normalises_and_evaluates_with_running_moments():
    rng = np.random.default_rng(1)
    layer, x = BatchNorm(4), 3 + 2 * rng.standard_normal((50, 4))
    w = layer.initial_weights(rng)
    y, cache = layer.forward(w, x)
    assert np.allclose(y.mean(axis=0), 0, atol=1e-14)
    assert np.allclose(y.var(axis=0), 1, atol=1e-5)
    exact = {"mean": cache.mean, "variance": cache.variance}
    assert np.allclose(layer.evaluate(w, exact, x), y, rtol=0, atol=1e-13)
    assert not np.allclose(layer.evaluate(w, layer.initial_buffers(), x), y, atol=0.1)
    buffers = layer.initial_buffers()
    for _ in range(300):
        buffers = layer.update_buffers(buffers, cache)
    assert np.allclose(buffers["mean"], x.mean(axis=0), rtol=1e-12)
    assert np.allclose(buffers["variance"], x.var(axis=0, ddof=1), rtol=1e-12)
    with pytest.raises(ValueError, match="at least 2 rows"):
        layer.forward(w, x[:1])


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
def test_losses_and_their_derivatives(loss):
    rng = np.random.default_rng(2)
    outputs, direction = rng.standard_normal((7, 4)), rng.standard_normal((7, 4))
    targets = np.eye(4)[rng.integers(0, 4, 7)]
    value, delta = loss(outputs, targets)
    slope = derivative(lambda t: loss(outputs + t * direction, targets)[0])
    assert abs(slope - np.sum(delta * direction)) < 1e-11
    halves = [loss(outputs[rows], targets[rows])[0] for rows in (slice(0, 3), slice(3, 7))]
    assert np.isclose(value, (3 * halves[0] + 4 * halves[1]) / 7, rtol=1e-14)


def test_cross_entropy_of_huge_outputs_is_finite_and_right():
    loss, delta = cross_entropy(np.array([[1e4, 0.0], [0.0, -1e4]]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert np.isclose(loss, 5e3)
    assert np.allclose(delta, [[0.5, -0.5], [0.0, 0.0]])


def test_mlp_has_the_papers_form_and_starts_reproducibly():
    model = mlp(3072, (512, 512, 512), 10)
    names = [type(layer).__name__ for layer in model.layers]
    assert names == ["Dense", "BatchNorm", "ReLU"] * 3 + ["Dense", "Bias"]
    assert (model.shape, model.n_out, model.kernels) == ((3072,), 10, (0, 3, 6, 9))
    first, again, other = (initial_weights(model, seed) for seed in (0, 0, 1))
    assert np.array_equal(first[3], again[3])
    assert not np.array_equal(first[3], other[3])
    assert not np.array_equal(first[3][0], first[6][0])
    bound = 1 / np.sqrt(512)
    assert 0.99 * bound < np.abs(first[3]).max() <= bound
    assert abs(first[3].std() / (bound / np.sqrt(3)) - 1) < 4 / np.sqrt(2 * 512**2)


def test_evaluate_is_forward_where_nothing_depends_on_the_batch():
    model = mlp(5, (4, 3), 2, norm=None)
    weights, x = initial_weights(model, 0), np.random.default_rng(0).standard_normal((6, 5))
    assert np.array_equal(evaluate(model, weights, initial_buffers(model), x), forward(model, weights, x)[0])
    with_norm = mlp(5, (4, 3), 2)
    weights = initial_weights(with_norm, 0)
    assert not np.allclose(
        evaluate(with_norm, weights, initial_buffers(with_norm), x), forward(with_norm, weights, x)[0], atol=1e-3
    )


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "at least one kernel"),
        ((ReLU(),), "at least one kernel"),
        ((Dense(3, 4), Dense(5, 2)), r"takes 5 features on the last axis, got shape \(4,\)"),
        ((Dense(3, 4), Bias(3)), "takes 3 features"),
        ((BatchNorm(3), Dense(3, 2)), "below the first kernel layer"),
    ],
)
def test_models_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        Model(layers)


@given(
    n_in=st.integers(-2, 3), widths=st.lists(st.integers(-1, 3), max_size=3), n_out=st.integers(-1, 3),
    norm=st.sampled_from(["batch", None, "layer"]),
)  # fmt: skip
def test_mlp_accepts_exactly_positive_widths_and_known_norms(n_in, widths, n_out, norm):
    if min([n_in, n_out, *widths]) >= 1 and norm != "layer":
        assert mlp(n_in, widths, n_out, norm=norm).n_out == n_out
    else:
        with pytest.raises(ValueError, match=r"n_in|widths|n_out|norm"):
            mlp(n_in, widths, n_out, norm=norm)
