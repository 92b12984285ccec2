"""Array libraries, devices and random streams."""

import builtins
import math
import types

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linfb import backend


def test_the_array_decides_the_library():
    assert backend.namespace(np.ones(2), None, np.ones(3)).__name__.endswith("numpy")
    assert backend.namespace(array_api_strict.ones(2)) is array_api_strict
    with pytest.raises(TypeError, match=r"array_api_strict, numpy.*linfb\.backend\.to_numpy"):
        backend.namespace(np.ones(2), array_api_strict.ones(2))
    for bad in ([1.0], "a", 1.0):
        with pytest.raises(TypeError, match="expected arrays"):
            backend.namespace(bad)


def test_devices():
    assert backend.device_namespace("cpu").__name__.endswith("numpy")
    assert backend.device_namespace(array_api_strict) is array_api_strict
    assert backend.device_namespace(np) is np
    for bad in ("tpu", 5, None, math):
        with pytest.raises(ValueError, match="device must be 'cpu', 'gpu' or an array-API module"):
            backend.device_namespace(bad)


def test_without_cupy_the_message_says_what_to_install(monkeypatch):
    original = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.split(".")[0] == "cupy":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"linfb\[cuda12\]"):
        backend.device_namespace("gpu")


def test_cupy_without_a_device_is_refused(monkeypatch):
    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(__import__("sys").modules, "cupy", cupy)
    with pytest.raises(RuntimeError, match="no usable CUDA device"):
        backend.device_namespace("gpu")


def test_to_numpy():
    array = np.arange(3.0)
    assert backend.to_numpy(array) is array
    moved = backend.to_numpy(array_api_strict.asarray(array))
    assert type(moved) is np.ndarray
    assert np.array_equal(moved, array)

    class OnDevice:
        def get(self):
            return array

    assert backend.to_numpy(OnDevice()) is array


def test_transpose_exchanges_the_last_two_axes():
    array = np.arange(24.0).reshape(2, 3, 4)
    assert np.array_equal(backend.transpose(array), np.einsum("nab->nba", array))
    strict = backend.transpose(array_api_strict.asarray(array))
    assert np.array_equal(np.asarray(strict), np.einsum("nab->nba", array))

    class Old:
        def swapaxes(self, a, b):
            return (a, b)

    assert backend.transpose(Old()) == (-1, -2)


NAMES = st.lists(st.one_of(st.text(max_size=4), st.integers(0, 9)), max_size=3)


@given(seed=st.integers(0, 2**40), names=NAMES)
def test_a_stream_is_its_seed_and_names(seed, names):
    first = backend.stream(seed, *names).random(4)
    assert np.array_equal(first, backend.stream(seed, *names).random(4))
    assert not np.array_equal(first, backend.stream(seed + 1, *names).random(4))
    assert not np.array_equal(first, backend.stream(seed, *names, "more").random(4))


def test_names_are_not_confused():
    draws = [
        backend.stream(0, *names).random()
        for names in ((), ("a", "b"), ("ab",), ("a/b",), ("b", "a"), ("1",), (1,), ("a", 1), ("a", "1"))
    ]
    assert len(set(draws)) == len(draws)


def test_streams_are_uncorrelated():
    draws = np.array([backend.stream(0, "run", i).standard_normal(400) for i in range(40)])
    gram = draws @ draws.T / np.sqrt(400)
    pairs = gram[np.triu_indices(40, 1)]
    assert abs(pairs.mean()) * np.sqrt(pairs.size) < 4
    assert np.abs(pairs).max() < 5
    same = np.sum(backend.stream(0, "a").standard_normal(400) * backend.stream(0, "a").standard_normal(400)) / 20
    assert same > 5


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (0.5, TypeError), (True, TypeError), ("0", TypeError)])
def test_bad_seeds_are_refused(seed, error):
    with pytest.raises(error, match="seed"):
        backend.stream(seed, "weights")
