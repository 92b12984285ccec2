"""Receptive fields of networks against finite differences, and their numbers on known fields and as plain loops."""

import math

import numpy as np
import pytest
from scipy.ndimage import rotate

from linfb.engine import Model, mlp, retina
from linfb.engine.layers import BatchNorm, Bias, Conv2d, Flatten, ReLU, residual
from linfb.engine.models import forward, initial_weights
from linfb.engine.observables import receptive_fields
from linfb.observables import bar_responses, centre_surround, orientedness, random_fields, smoothness

Y, X = np.mgrid[-8:9, -8:9].astype(float)


def gabor(angle, phase=0.0, width=3.0, wavelength=6.0, centre=(0.0, 0.0)):
    y, x = Y - centre[0], X - centre[1]
    wave = np.cos(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / wavelength + phase)
    return np.exp(-(x**2 + y**2) / (2 * width**2)) * wave


def difference(centre=(0.0, 0.0), inner=1.5, outer=3.0, balance=0.8):
    r2 = (Y - centre[0]) ** 2 + (X - centre[1]) ** 2
    return np.exp(-r2 / (2 * inner**2)) - balance * (inner / outer) ** 2 * np.exp(-r2 / (2 * outer**2))


def plain_responses(field, angles, widths, phases):
    """Return the responses to bars, written as loops over pixels."""
    height, width = field.shape
    radius = min(height, width) / 2
    found = []
    for i in range(angles):
        theta, best = math.pi * i / angles, 0.0
        for w in np.linspace(1, radius, widths):
            for phi in np.linspace(-radius, radius, phases):
                response = 0.0
                for r in range(height):
                    for c in range(width):
                        y, x = r - (height - 1) / 2, c - (width - 1) / 2
                        if math.hypot(y, x) <= radius:
                            off = abs(math.cos(theta) * y + math.sin(theta) * x - phi)
                            bar = 1.0 if off < w / 2 - 0.5 else 0.0 if off > w / 2 + 0.5 else w / 2 + 0.5 - off
                            response += bar * field[r, c]
                best = max(best, abs(response))
        found.append(best)
    return np.array(found)


@pytest.mark.parametrize("shape", [(7, 7), (5, 6)])
def test_responses_to_bars_are_the_sums_over_pixels(shape):
    field = np.random.default_rng(0).standard_normal(shape)
    bank = {"angles": 4, "widths": 3, "phases": 5}
    expected = plain_responses(field, **bank)
    np.testing.assert_allclose(bar_responses(field, **bank), expected, rtol=1e-12)
    assert np.abs(bar_responses(field.T.copy(), **bank) / expected - 1).max() > 1e-3
    found = orientedness(field, **bank)
    best = expected.argmax()
    assert found.ratio == pytest.approx(expected[best] / expected[(best + 2) % 4], rel=1e-12)
    assert found.spread == pytest.approx(expected.std() / expected[best], rel=1e-12)


@pytest.mark.parametrize("angle", np.linspace(0, np.pi, 7)[:-1])
def test_gabor_is_oriented_along_its_stripes(angle):
    field = gabor(angle)
    # a bar's angle is that of its normal from the columns' axis, a wave's that of its direction from the rows'
    normal = np.pi * bar_responses(field).argmax() / 50
    assert abs(np.sin(normal - (np.pi / 2 - angle))) < np.sin(np.pi / 50)
    found = orientedness(field)
    assert found.ratio > 5
    assert found.spread > 0.2
    assert centre_surround(field).explained < 0.6


def test_circular_fields_are_not_oriented_and_wholly_explained():
    found = orientedness(difference())
    assert found.ratio < 1.02  # pixels are squares
    assert found.spread < 0.02
    for centre in ((0.0, 0.0), (1.3, -2.4)):
        explained, surround = centre_surround(difference(centre))
        assert explained == pytest.approx(1.0, abs=1e-6)
        assert surround == pytest.approx(0.8, abs=1e-3)
    explained, surround = centre_surround(difference(balance=0.0))
    assert explained == pytest.approx(1.0, abs=1e-6)
    assert surround == pytest.approx(0.0, abs=1e-3)
    # a sum of two Gaussians is no difference of them; one alone is the next best
    explained, surround = centre_surround(difference(balance=-1.5))
    assert 0.5 < explained < 0.999
    assert surround < 1e-3


def test_best_difference_is_no_worse_than_any_other():
    rng = np.random.default_rng(1)
    field = random_fields(1, 17, smoothness=1.0, seed=3)[0]
    explained = centre_surround(field).explained
    for _ in range(2000):
        trial = difference(rng.uniform(-8, 8, 2), *np.sort(rng.uniform(0.5, 17, 2)), rng.uniform(0, 3))
        share = np.sum(trial * field) ** 2 / np.sum(trial**2) / np.sum(field**2)
        assert share <= explained + 1e-9


@pytest.mark.parametrize(
    "field", [gabor(0.4, 0.7), difference((0.5, 1.0)), random_fields(1, 17, smoothness=1, seed=0)[0]]
)
def test_numbers_do_not_depend_on_sign_scale_or_turns(field):
    plain, shape = orientedness(field), centre_surround(field)
    for changed in (-field, 1e200 * field, 1e-200 * field, np.rot90(field), field.T, field[::-1]):
        changed = changed.copy()
        np.testing.assert_allclose(orientedness(changed), plain, rtol=1e-9)
        np.testing.assert_allclose(centre_surround(changed).explained, shape.explained, rtol=1e-5)
        np.testing.assert_allclose(smoothness(changed), smoothness(field), rtol=1e-9)


def test_numbers_hardly_depend_on_rotation():
    field = gabor(0.0, width=2.5)
    found = [orientedness(gabor(angle, width=2.5)) for angle in np.linspace(0, np.pi, 12)]
    ratios, spreads = np.array(found).T
    assert np.ptp(ratios) < 0.05 * ratios.mean()  # the grid of pixels
    assert np.ptp(spreads) < 0.05 * spreads.mean()
    explained = [centre_surround(gabor(angle, width=2.5)).explained for angle in np.linspace(0, np.pi, 12)]
    assert np.ptp(explained) < 0.01
    turned = rotate(field, 30, reshape=False, order=3)
    assert orientedness(turned).ratio == pytest.approx(orientedness(field).ratio, rel=0.1)
    stretched = np.exp(-(X**2) / 8 - Y**2 / 32)
    assert abs(orientedness(stretched).ratio / orientedness(field).ratio - 1) > 0.1  # another field has another number


def test_noise_is_the_null_of_known_fields():
    noise = random_fields(100, 17, seed=0)
    assert np.quantile(orientedness(noise).ratio, 0.99) < orientedness(gabor(0.3)).ratio / 3
    assert np.quantile(orientedness(noise).ratio, 0.01) > orientedness(difference()).ratio
    explained = centre_surround(noise[:40]).explained
    assert explained.max() < 0.3 < centre_surround(difference()).explained
    noisy = difference() + 0.02 * noise[0]
    assert centre_surround(noisy).explained > 0.9


def test_random_fields_have_the_smoothness_they_are_made_with():
    assert smoothness(random_fields(200, 9, seed=0)).mean() < 0.3
    for width in (0.8, 1.5):
        large = random_fields(1, 250, smoothness=width, seed=1)[0]  # so many pixels that chance is below a percent
        assert smoothness(large) == pytest.approx(width, rel=0.03)
        edges = np.mean(random_fields(2000, 9, smoothness=width, seed=2) ** 2, axis=0)
        assert np.ptp(edges) < 0.3 * edges.mean()  # as strong at the edges as in the middle
    assert np.array_equal(random_fields(3, 9, seed=5), random_fields(3, 9, seed=5))
    assert not np.array_equal(random_fields(3, 9, seed=5), random_fields(3, 9, seed=6))
    assert smoothness(np.ones((4, 4))) == np.inf
    assert smoothness(np.indices((4, 4)).sum(axis=0) % 2 * 2.0 - 1) == 0


def test_empty_fields_have_no_numbers_and_others_beside_them_do():
    fields = np.stack([np.zeros((17, 17)), gabor(0.0)]).reshape(2, 1, 17, 17)
    for found in (*orientedness(fields), *centre_surround(fields), smoothness(fields)):
        assert found.shape == (2, 1)
        assert np.isnan(found[0, 0])
        assert np.isfinite(found[1, 0])
    np.testing.assert_allclose(orientedness(fields).ratio[1, 0], orientedness(gabor(0.0)).ratio, rtol=1e-12)
    assert bar_responses(np.zeros((0, 5, 5))).shape == (0, 50)
    assert centre_surround(np.zeros((0, 5, 5))).explained.shape == (0,)


@pytest.mark.parametrize("function", [orientedness, bar_responses, centre_surround, smoothness])
@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (np.full((5, 5), np.nan), ValueError), (np.zeros((2, 5)), ValueError), (np.zeros(5), ValueError),
        (np.zeros((5, 5), complex), TypeError), ("field", TypeError),
    ],
)  # fmt: skip
def test_bad_fields_are_refused_by_name(function, fields, error):
    with pytest.raises(error, match="fields"):
        function(fields)


def test_bad_settings_are_refused_by_name():
    for settings in ({"angles": 5}, {"angles": 0}, {"widths": 0}, {"phases": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            orientedness(gabor(0.0), **settings)
    for settings in ({"number": 0}, {"size": 0}, {"smoothness": -1.0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            random_fields(**({"number": 2, "size": 3, "smoothness": 0.0, "seed": 0} | settings))


MODELS = {
    "retina": retina((9, 8, 2), 4, width=5, bottleneck=3, size=3, ventral=2, dense=6),
    "residual": Model(
        (
            Conv2d(1, 3, 3, padding=1), Bias(3), ReLU(),
            *residual(Conv2d(3, 3, 3, padding=1), Bias(3), ReLU()), Conv2d(3, 2, 3, stride=2),
        ),
        (9, 9, 1),
    ),
}  # fmt: skip


def weights_of(model, seed=0):
    """Return weights with offsets that open some rectifiers of a blank image and close others."""
    rng = np.random.default_rng(seed)
    drawn = initial_weights(model, seed)
    return tuple(rng.standard_normal(w.shape) if w is not None and w.ndim == 1 else w for w in drawn)


@pytest.mark.parametrize(
    ("name", "layer"), [("retina", 0), ("retina", 3), ("retina", 6), ("retina", 8), ("residual", -1)]
)
def test_fields_are_finite_differences(name, layer):
    model = MODELS[name]
    layer %= len(model.layers)
    weights = weights_of(model)
    fields = receptive_fields(model, weights, layer)
    part = Model(model.layers[: layer + 1], model.shape)
    height, width, channels = part.shapes[-1]
    assert fields.shape == (channels, *model.shape)

    def middle(image):
        return forward(part, weights, image[None])[0][0, height // 2, width // 2]

    step = 1e-6
    steps = step * np.eye(math.prod(model.shape)).reshape(-1, *model.shape)
    slopes = np.array([(middle(one) - middle(-one)) / (2 * step) for one in steps])
    expected = slopes.T.reshape(fields.shape)
    # the network is piecewise linear: what is left is rounding of responses of size 1 over the step
    np.testing.assert_allclose(fields, expected, atol=1e-9)
    assert np.abs(fields).max() > 1e-3
    others = receptive_fields(model, weights_of(model, seed=1), layer)
    assert np.abs(others - expected).max() > 1e-3


def test_closed_ways_give_fields_of_zeros():
    model = MODELS["retina"]
    weights = list(weights_of(model))
    weights[1] = -np.ones(5)
    assert not receptive_fields(model, weights, model.kernels[1]).any()
    assert receptive_fields(model, weights, model.kernels[0]).any()


def test_bad_layers_are_refused_by_name():
    model = MODELS["retina"]
    weights = weights_of(model)
    flat = next(i for i, one in enumerate(model.layers) if isinstance(one, Flatten))
    for layer in (-1, len(model.layers), flat, len(model.layers) - 1):
        with pytest.raises(ValueError, match="layer"):
            receptive_fields(model, weights, layer)
    with pytest.raises(TypeError, match="layer"):
        receptive_fields(model, weights, 1.0)
    normed = retina((9, 9, 1), 4, width=3, size=3, dense=6, norm="batch")
    assert isinstance(normed.layers[1], BatchNorm)
    with pytest.raises(ValueError, match=r"layer 3 is above BatchNorm"):
        receptive_fields(normed, initial_weights(normed, 0), 3)
    vectors = mlp(4, (3,), 2, norm=None)
    with pytest.raises(ValueError, match="layer 0 has outputs"):
        receptive_fields(vectors, initial_weights(vectors, 0), 0)
