"""Counter-based random numbers: the published generator, the same bits from every twin, and no structure."""

import inspect
import math

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from linfb._threads import threads
from linfb.backend import Key
from linfb.kernels import cpu_random, reference_random, suited

MASK = 2**64 - 1
LIKE = {name: np.ones(1, name) for name in ("float16", "float32", "float64")}


def splitmix64(state, n):
    """Return the first outputs of SplitMix64, in Python's integers, as its authors wrote it: one state, advanced."""
    values = []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        values.append(z ^ (z >> 31))
    return values


def test_the_oracle_gives_the_values_in_circulation():
    known = [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821
    ]  # fmt: skip
    assert splitmix64(1234567, 5) == known
    assert splitmix64(1234568, 5) != known


@pytest.mark.parametrize("kernels", [cpu_random, reference_random], ids=["cpu", "reference"])
@pytest.mark.parametrize(("dtype", "bits"), [("float64", 53), ("float32", 24), ("float16", 11)])
@given(state=st.one_of(st.integers(0, MASK), st.integers(MASK - 100, MASK)), n=st.integers(0, 40))
def test_numbers_are_the_leading_bits_of_splitmix64(kernels, dtype, bits, state, n):
    if dtype == "float16" and kernels is cpu_random:
        kernels = suited("random", LIKE[dtype])  # the reference: nothing is compiled for half precision
    numbers = kernels.uniform(state, (n,), LIKE[dtype])
    assert numbers.dtype == dtype
    assert numbers.tolist() == [math.ldexp(z >> (64 - bits), -bits) for z in splitmix64(state, n)]
    assert np.all((numbers >= 0) & (numbers < 1))
    if n:
        assert numbers.tolist() != [math.ldexp(z >> (64 - bits), -bits) for z in splitmix64((state + 1) & MASK, n)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(state=st.integers(0, MASK), shape=st.sampled_from([(), (0,), (5,), (3, 4), (2, 1, 3), (300, 501)]))
def test_all_twins_give_the_same_bits(dtype, state, shape):
    plain = reference_random.uniform(state, shape, LIKE[dtype])
    compiled = cpu_random.uniform(state, shape, LIKE[dtype])
    like = array_api_strict.ones(1, dtype=getattr(array_api_strict, dtype))
    strict = reference_random.uniform(state, shape, like)
    assert suited("random", LIKE[dtype]) is cpu_random
    assert suited("random", like) is reference_random
    assert plain.shape == compiled.shape == strict.shape == shape
    assert strict.dtype == like.dtype
    for other in (compiled, np.asarray(strict)):
        assert plain.tobytes() == other.tobytes()
    if plain.size > 2:
        assert plain.tobytes() != cpu_random.uniform((state + 1) & MASK, shape, LIKE[dtype]).tobytes()


def test_the_number_of_threads_does_not_matter():
    shape = (5, 40_000)  # four slices
    alone = cpu_random.uniform(3, shape, LIKE["float32"])
    for n in (1, 2, 3):
        with threads(n):
            assert cpu_random.uniform(3, shape, LIKE["float32"]).tobytes() == alone.tobytes()


def test_twins_have_the_same_names_and_signatures():
    assert cpu_random.__all__ == reference_random.__all__
    for name in cpu_random.__all__:
        assert inspect.signature(getattr(cpu_random, name)) == inspect.signature(getattr(reference_random, name))


@pytest.mark.parametrize("kernels", [cpu_random, reference_random], ids=["cpu", "reference"])
def test_bad_arguments_are_refused_by_name(kernels):
    for state, error in ((-1, ValueError), (2**64, ValueError), (0.5, TypeError)):
        with pytest.raises(error, match="state"):
            kernels.uniform(state, (2,), LIKE["float64"])
    with pytest.raises(TypeError, match=r"like must be an array.*int64"):
        kernels.uniform(0, (2,), np.ones(1, dtype=np.int64))


def kolmogorov_smirnov(numbers, distribution):
    """Return how likely a larger distance to the distribution would be, in units of standard deviations."""
    return stats.norm.isf(stats.kstest(np.ravel(numbers), distribution).pvalue)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_of_one_place_are_uniform(dtype):
    for seed in range(5):
        numbers = Key(seed).at("dropout").uniform((100_000,), LIKE[dtype])
        assert kolmogorov_smirnov(numbers, "uniform") < 4
        assert kolmogorov_smirnov(numbers**1.05, "uniform") > 4  # a small bend is seen
        counts = np.bincount((numbers * 256).astype(int), minlength=256)
        assert abs(np.sum((counts - 390.625) ** 2 / 390.625) - 255) / np.sqrt(2 * 255) < 4
        adjacent = np.corrcoef(numbers[:-1], numbers[1:])[0, 1] * np.sqrt(numbers.size)
        assert abs(adjacent) < 4


def correlations(keys, n):
    draws = np.array([key.uniform((n,), LIKE["float64"]) for key in keys])
    draws = (draws - 0.5) * np.sqrt(12)
    gram = draws @ draws.T / np.sqrt(n)
    return gram[np.triu_indices(len(draws), 1)]


def test_places_are_independent():
    steps = correlations([Key(0).at("dropout", step) for step in range(60)], 1000)
    seeds = correlations([Key(seed).at("dropout", 0) for seed in range(60)], 1000)
    for pairs in (steps, seeds):
        assert abs(pairs.mean()) * np.sqrt(pairs.size) < 4
        assert abs(np.mean(pairs**2) - 1) * np.sqrt(pairs.size / 2) < 4
        assert np.abs(pairs).max() < 5
    same = correlations([Key(0).at("dropout", 1), Key(0).at("dropout", 1)], 1000)
    assert same[0] > 25


@given(seed=st.integers(0, 2**40), names=st.lists(st.one_of(st.text(max_size=4), st.integers(0, 9)), max_size=3))
def test_a_place_is_its_seed_and_names(seed, names):
    key, like = Key(seed).at(*names), LIKE["float32"]
    numbers = key.uniform((4,), like)
    assert np.array_equal(numbers, Key(seed, tuple(names)).uniform((4,), like))
    assert np.array_equal(key.host().random(4), Key(seed, tuple(names)).host().random(4))
    for other in (Key(seed + 1).at(*names), key.at("more"), key.at(0)):
        assert not np.array_equal(numbers, other.uniform((4,), like))
        assert not np.array_equal(key.host().random(4), other.host().random(4))


def test_names_of_places_are_not_confused():
    places = [(), ("a", "b"), ("ab",), ("a/b",), ("b", "a"), ("1",), (1,), ("a", 1), ("a", "1")]
    assert len({float(Key(0).at(*names).uniform((), LIKE["float64"])) for names in places}) == len(places)
    assert Key(1).at("a").at("b", 2) == Key(1, ("a", "b", 2))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_numbers_are_standard_and_normal(dtype):
    for seed in range(5):
        numbers = Key(seed).at("noise").normal((200, 500), LIKE[dtype])
        assert numbers.shape == (200, 500)
        assert numbers.dtype == dtype
        z, n = numbers.astype(float), numbers.size
        for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
            variance = math.prod(range(2 * power - 1, 0, -2)) - moment**2
            assert abs(np.mean(z**power) - moment) / np.sqrt(variance / n) < 4
            if power == 2:
                assert abs(np.mean((1.02 * z) ** power) - moment) / np.sqrt(variance / n) > 4  # negative control
        assert kolmogorov_smirnov(z, "norm") < 4
        assert kolmogorov_smirnov(z, "logistic") > 4
    strict = Key(0).at("noise").normal((3,), array_api_strict.ones(1))
    assert np.allclose(np.asarray(strict), Key(0).at("noise").normal((3,), LIKE["float64"]), rtol=1e-14, atol=0)
