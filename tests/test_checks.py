"""Argument checks: what passes comes back unchanged, what does not is named."""

import fractions
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from linfb import _checks, theory

REFUSED = (TypeError, ValueError)
NOT_NUMBERS = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.booleans(),
    st.lists(st.integers(), max_size=2),
    st.complex_numbers(),
    st.binary(max_size=2),
    st.dictionaries(st.text(max_size=1), st.none()),
)


def refused(check, *args, **kwargs):
    with pytest.raises(REFUSED, match="the_name"):
        check("the_name", *args, **kwargs)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_pass(number):
    assert _checks.real("x", number) == number
    assert _checks.real("x", np.float64(number)) == number
    assert _checks.real("x", np.array(number)) == number
    assert _checks.real("x", number, at_least=number, at_most=number) == number
    refused(_checks.real, number, above=number)
    refused(_checks.real, number, below=number)


def test_other_kinds_of_numbers():
    assert _checks.real("x", fractions.Fraction(1, 2)) == 0.5
    assert _checks.real("x", 3) == 3.0
    assert isinstance(_checks.real("x", 3), float)
    for value in (10**400, float("nan"), float("inf"), -float("inf"), np.array(np.nan)):
        refused(_checks.real, value)
    for value in (np.array(True), np.array(1j), np.array("1"), np.ones(1), np.bool_(True)):
        refused(_checks.real, value)


@given(NOT_NUMBERS)
def test_what_is_no_number_is_refused(value):
    refused(_checks.real, value)
    refused(_checks.integer, value)


@given(st.integers(-(10**30), 10**30))
def test_integers(number):
    assert _checks.integer("n", number, at_least=number, at_most=number) == number
    refused(_checks.integer, number, at_least=number + 1)
    refused(_checks.integer, number, at_most=number - 1)
    refused(_checks.integer, float(number))
    assert type(_checks.integer("n", np.int32(5))) is int


SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, max_side=3)


@given(hnp.arrays(st.sampled_from([np.float32, np.float64, np.int64]), SHAPES, elements=st.integers(-9, 9)))
def test_arrays_pass_with_their_shape(array):
    found = _checks.real_array("x", array, array.shape)
    assert found.dtype == np.float64
    assert np.array_equal(found, array)
    assert np.array_equal(_checks.real_array("x", array.tolist()), array)
    refused(_checks.real_array, array, (*array.shape, 1))
    if array.ndim:
        refused(_checks.real_array, array, (array.shape[0] + 1, *array.shape[1:]))
        assert _checks.real_array("x", array, ("any", *array.shape[1:])) is not None


@given(SHAPES.filter(bool), st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_arrays_must_be_finite(shape, bad, data):
    array = np.zeros(shape)
    array[tuple(data.draw(st.integers(0, n - 1)) for n in shape)] = bad
    refused(_checks.real_array, array)


@pytest.mark.parametrize("value", [None, "a", [[1], [1, 2]], [1j], {"a": 1}, [None], object(), [10**400]])
def test_what_is_no_array_is_refused(value):
    refused(_checks.real_array, value)


TIMES = st.lists(st.floats(0, 1e6), min_size=1, max_size=6, unique=True).map(sorted)


@given(TIMES)
def test_times_pass(times):
    assert _checks.times_array("times", times).tolist() == times


@given(TIMES.filter(lambda times: len(times) > 1), st.data())
def test_bad_times_are_refused(times, data):
    refused(_checks.times_array, times[::-1])
    refused(_checks.times_array, [*times, times[-1]])
    refused(_checks.times_array, [-1e-9, *times])
    position = data.draw(st.integers(0, len(times)))
    refused(_checks.times_array, [*times[:position], np.nan, *times[position:]])
    refused(_checks.times_array, [times])
    refused(_checks.times_array, [*times, np.inf])


@pytest.mark.parametrize("value", [[], 1.0, "now", None, [[0.0, 1.0]], ["0", "1"], [1j]])
def test_what_is_no_sequence_of_times_is_refused(value):
    refused(_checks.times_array, value)


def test_paths():
    assert _checks.path("x", "a/b") == _checks.path("x", Path("a/b")) == Path("a/b")
    for value in (3, None, b"a", ["a"]):
        refused(_checks.path, value)


def test_generators():
    rng = np.random.default_rng(0)
    assert _checks.generator("x", rng) is rng
    for value in (0, None, np.random, np.random.default_rng, "rng"):
        refused(_checks.generator, value)


def test_choices():
    assert _checks.choice("x", "a", ("a", "b")) == "a"
    assert _checks.choice("x", "a", {"a": 1}) == "a"
    for value in ("c", None, 1, ["a"], {"a"}, ("a",), np.array(["a", "b"]), "A", ""):
        refused(_checks.choice, value, {"a": 1, "b": 2})
    with pytest.raises(ValueError, match="'a', 'b'"):
        _checks.choice("x", "c", ("a", "b"))


@given(hnp.arrays(float, (3, 3), elements=st.floats(-3, 3)))
def test_covariances_pass_and_come_back_symmetric(root):
    matrix = root @ root.T
    assert np.array_equal(_checks.covariance("C", matrix, 3), _checks.covariance("C", matrix, 3).T)
    refused(_checks.covariance, matrix, 4)
    refused(_checks.covariance, matrix - (1e-3 + np.trace(matrix)) * np.eye(3), 3)


BAD = ["None", "text", "nan", "negative", "empty", "cube", "object"]
FUNCTIONS = [name for name in theory.__all__ if inspect.isfunction(getattr(theory, name)) and name != "predict"]


@pytest.mark.parametrize("bad", [None, "x", np.nan, -1.0, [], np.ones((2, 3, 4)), object()], ids=BAD)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_bad_in_every_argument_is_refused_by_the_name_of_one(name, bad):
    parameters = inspect.signature(getattr(theory, name)).parameters
    needed = [p for p in parameters.values() if p.default is p.empty]
    positional = [bad for p in needed if p.kind is not p.KEYWORD_ONLY]
    message = name  # of an argument, if anything is refused; some functions take what others do not
    try:
        getattr(theory, name)(*positional, **{p.name: bad for p in needed if p.kind is p.KEYWORD_ONLY})
    except REFUSED as error:
        message = str(error)
    assert message == name or re.search(rf"\b({'|'.join(parameters)})\b", message)
