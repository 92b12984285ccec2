"""Fixed slices on any number of threads: the same bits, and the caller's BLAS setting afterwards."""

import threading
import time
from contextlib import nullcontext

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from linfb._threads import add, columns, for_slices, later, rows, sliced, threads, together
from tests.blas_cases import rows_alike


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def draw(*shape, dtype="float32"):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("shape", [(1, 300), (63, 300), (1000, 64), (5, 7, 64), (2, 3, 4, 10)])
def test_products_are_the_plain_ones(shape):
    x, matrix = draw(*shape, dtype="float64"), draw(shape[-1], 9, dtype="float64")
    delta = draw(*shape[:-1], 70, dtype="float64")
    plain = x.reshape(-1, shape[-1])
    with threads(2):
        y, gradient = rows(x, matrix), columns(delta, x)
    assert y.shape == (*shape[:-1], 9)
    assert np.allclose(y.reshape(-1, 9), plain @ matrix, rtol=0, atol=1e-12 * shape[-1])
    assert np.allclose(gradient, delta.reshape(-1, 70).T @ plain, rtol=0, atol=1e-12 * len(plain))
    assert np.array_equal(rows(x, matrix), (plain @ matrix).reshape(y.shape))  # outside of a block: one plain product


def test_bits_do_not_depend_on_the_number_of_threads_or_on_other_rows():
    x, matrix, delta = draw(700, 576), draw(576, 10), draw(700, 130)
    found = []
    for n in (1, 2, 3, 5):
        with threads(n):
            found.append((rows(x, matrix), columns(delta, x), rows(x[:1], matrix), rows(x[3:20], matrix)))
    for several in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], several, strict=True))
    if rows_alike("float32"):  # with this BLAS
        assert np.array_equal(found[0][2], found[0][0][:1])
        assert np.array_equal(found[0][3], found[0][0][3:20])
        with threadpool_limits(1):  # the reason for fixed blocks: a plain product of few rows rounds differently
            assert not np.array_equal(x[:3] @ matrix, (x @ matrix)[:3])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_rows_have_the_bits_of_few(dtype):
    x, matrix, delta = draw(4200, 70, dtype=dtype), draw(70, 24, dtype=dtype)[:, :13], draw(4200, 33, dtype=dtype)
    with threads(2):
        whole, part, gradient = rows(x, matrix), rows(x[5:40], matrix), columns(delta, x)
    exact, eps = x.astype(np.longdouble) @ matrix, np.finfo(dtype).eps
    assert np.abs(whole - exact).max() < 70 * eps * np.abs(exact).max()
    exact = delta.T.astype(np.longdouble) @ x
    assert np.abs(gradient - exact).max() < 4200**0.5 * eps * np.abs(exact).max()  # roundings are independent
    assert not np.abs(gradient[::-1] - exact).max() < 4200**0.5 * eps * np.abs(exact).max()  # control
    with threads(3):
        assert np.array_equal(rows(x, matrix), whole)
        assert np.array_equal(columns(delta, x), gradient)
    if rows_alike(dtype):
        assert np.array_equal(whole[5:40], part)  # from one large block and from a small one
        assert not np.array_equal(whole[6:41], part)


@pytest.mark.parametrize(("n", "k", "m"), [(1, 5, 16), (17, 33, 48), (26, 70, 64)])
def test_products_of_many_positions_with_few_columns_are_the_plain_ones(n, k, m):
    x, matrix = draw(n, 41, k), draw(m, k).T
    found = []
    for several in (1, 2, 3):
        with threads(several):
            found.append(rows(x, matrix))
    assert all(np.array_equal(found[0], other) for other in found[1:])
    exact, scale = x.astype(float) @ matrix, np.abs(x) @ np.abs(matrix)
    assert (np.abs(found[0] - exact) <= k * 2.0**-23 * scale).all()
    assert not (np.abs(found[0][..., ::-1] - exact) <= k * 2.0**-23 * scale).all()  # control
    with threads(2):
        assert np.array_equal(rows(x[n // 2 :], matrix), found[0][n // 2 :])  # whatever BLAS does


@pytest.mark.parametrize("pause", [0.0, 0.2])  # with helpers that look for work, and that sleep
def test_a_pool_does_every_item_once(pause):
    turns = 3 if pause else 400
    x, matrix, exact = draw(640, 70, dtype="float64"), draw(70, 90, dtype="float64"), []
    with threads(3):
        found = []
        for i in range(turns):
            time.sleep(pause)
            found.append((rows(x + i, matrix), columns(x, x + i)))
    for i, (product, moments) in enumerate(found):
        assert np.allclose(product, (x + i) @ matrix, rtol=0, atol=1e-10)
        assert np.allclose(moments, x.T @ (x + i), rtol=0, atol=1e-9)
        exact.append(np.allclose(product, (x + i + 1) @ matrix, rtol=0, atol=1e-10))
    assert not any(exact)  # control


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_second_pair_of_products_is_added(dtype, turned):
    left, right = draw(200, 300, dtype=dtype), draw(200, 40, dtype=dtype)
    more, other = draw(30, 300, dtype=dtype), draw(30, 40, dtype=dtype)
    if turned:
        left, right, more, other = right, left, other, more
    exact = left.T.astype(np.longdouble) @ right + more.T.astype(np.longdouble) @ other
    tolerance = 230 * np.finfo(dtype).eps * np.abs(exact).max()
    for n in (0, 1, 2):
        with threads(n) if n else nullcontext():
            found = columns(left, right, plus=(more, other))
            alone = columns(left, right)
        assert np.abs(found - exact).max() < tolerance
        assert not np.abs(alone - exact).max() < tolerance


def test_matrices_lie_in_memory_in_any_way():
    x, matrix = draw(130, 64, dtype="float64"), draw(64, 20, dtype="float64")
    views = [
        (x, matrix), (np.asfortranarray(x), matrix), (x, np.asfortranarray(matrix)), (x[::-1, ::-1], matrix[::-1]),
        (x[:, :1], matrix[:1]), (x[:1], matrix[:, :1]), (np.broadcast_to(x[:1], x.shape), matrix),
        (x[:, ::2], matrix[::2]), (x[:0], matrix), (x, matrix[:, :0]), (x[:, :0], matrix[:0]),
    ]  # fmt: skip
    with threads(2):
        for left, right in views:
            found = rows(left, right)
            assert found.shape == (len(left), right.shape[1])
            assert np.allclose(found, left @ right, rtol=0, atol=1e-12)
            if left.shape[1]:
                assert np.allclose(columns(left, x[: len(left)]), left.T @ x[: len(left)], rtol=0, atol=1e-11)
        half = x.astype(np.float16)
        assert np.array_equal(rows(half, half.T), half @ half.T)  # a type that BLAS does not have


def test_sums_are_the_plain_ones():
    x, y = draw(300, 700), draw(700, 300).T
    with threads(2):
        assert np.array_equal(add(x, y), x + y)
        assert np.array_equal(add(x, np.ascontiguousarray(y)), x + y)
    assert np.array_equal(add(x, y), x + y)
    assert not np.array_equal(add(x, x), x + y)


def test_the_callers_setting_comes_back_also_after_an_error():
    before = blas_threads()
    with threads(2):
        assert set(blas_threads()) == {1}
        assert sliced(np.ones(1))
    assert blas_threads() == before
    with pytest.raises(RuntimeError, match="inside"), threads(3):
        raise RuntimeError("inside")
    assert blas_threads() == before
    assert not sliced(np.ones(1))


def test_slices_come_back_in_order_from_several_threads():
    meet = threading.Barrier(2, timeout=10)

    def piece(start, stop):
        if start < 14:
            meet.wait()  # two slices are at work at once, or this fails
        assert not sliced(np.ones(1))
        return start, stop, threading.get_ident()

    with threads(2):
        found = for_slices(piece, 20, 7)
    assert [entry[:2] for entry in found] == [(0, 7), (7, 14), (14, 20)]
    assert len({entry[2] for entry in found}) == 2
    assert for_slices(lambda a, b: b - a, 0, 7) == []


def test_an_error_in_a_slice_is_raised():
    def piece(start, stop):
        if start:
            raise ZeroDivisionError(start)

    for n in (1, 2):
        with threads(n), pytest.raises(ZeroDivisionError):
            for_slices(piece, 20, 7)


def test_bad_numbers_of_threads():
    with pytest.raises(ValueError, match="threads"), threads(0):
        pass
    with pytest.raises(TypeError, match="threads"), threads(1.5):
        pass


@pytest.mark.parametrize("n", [1, 3])
def test_what_is_left_for_later_is_done_together_at_the_end(n):
    seen, handed = [], []
    with threads(n):
        with together():
            later(lambda a, b: seen.append((a, b)), 5, 2)
            later(lambda a, b: seen.append((a, b, "other")), 3, 3)
            handed.append(list(seen))
        later(lambda a, b: handed.append((a, b)), 2, 2)  # outside of a block at once
    assert handed == [[], (0, 2)]
    assert sorted(seen) == [(0, 2), (0, 3, "other"), (2, 4), (4, 5)]


def test_nothing_is_done_later_after_an_error():
    seen = []

    def fails():
        later(lambda a, b: seen.append(a), 5, 2)
        raise RuntimeError("before")

    with pytest.raises(RuntimeError, match="before"), together():
        fails()
    assert not seen
