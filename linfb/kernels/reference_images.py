"""Convolution and pooling of images, written plainly in the array-API standard. The oracles.

Images are (batch, height, width, feature), kernels (out, kh, kw, in). Every function has a twin of the same name and
signature in :mod:`linfb.kernels.cpu_images`; ``tests/test_layers_images.py`` holds these to nested loops.
"""

from __future__ import annotations

import math
from typing import Any

from linfb.backend import namespace, transpose

__all__ = ["convolve", "convolve_grad", "convolve_pull", "max_pool", "max_unpool"]


def convolve(x: Any, kernel: Any, stride: int, padding: int) -> Any:
    r"""Convolve images with a kernel (a cross-correlation, as in all of the field).

    .. math:: y_{nijo} = \sum_{abc} K_{oabc}\; x_{n,\; is + a - p,\; js + b - p,\; c}

    Parameters
    ----------
    x : array, shape (batch, height, width, in)
    kernel : array, shape (out, kh, kw, in)
    stride : int
        s, from one place of the window to the next.
    padding : int
        p, number of zeros on each side of an image.

    Returns
    -------
    array, shape (batch, rows, columns, out)
        With :math:`\lfloor (\text{height} + 2p - k_h) / s \rfloor + 1` rows, and columns likewise.
    """
    xp = namespace(x, kernel)
    patches = _patches(x, kernel.shape[1:3], stride, padding)
    y = _rows(patches) @ transpose(xp.reshape(kernel, (kernel.shape[0], -1)))
    return xp.reshape(y, (*patches.shape[:3], kernel.shape[0]))


def convolve_grad(x: Any, delta: Any, size: tuple[int, int], stride: int, padding: int) -> Any:
    r"""Return the gradient of a kernel: products of errors and the pixels they come from, summed over all places.

    .. math:: G_{oabc} = \sum_{nij} \delta_{nijo}\; x_{n,\; is + a - p,\; js + b - p,\; c}

    Parameters
    ----------
    x : array, shape (batch, height, width, in)
    delta : array, shape (batch, rows, columns, out)
        Error at the output.
    size : tuple of int
        (kh, kw).
    stride, padding : int
        Those of :func:`convolve`.

    Returns
    -------
    array, shape (out, kh, kw, in)
    """
    xp = namespace(x, delta)
    total = transpose(_rows(delta)) @ _rows(_patches(x, size, stride, padding))
    return xp.reshape(total, (delta.shape[3], *size, x.shape[3]))


def convolve_pull(delta: Any, kernel: Any, shape: tuple[int, int], stride: int, padding: int) -> Any:
    r"""Return the error at the input of :func:`convolve`: its adjoint in the images.

    .. math:: \delta'_{n,\; is + a - p,\; js + b - p,\; c} \mathrel{+}= \sum_o \delta_{nijo}\, K_{oabc}

    Parameters
    ----------
    delta : array, shape (batch, rows, columns, out)
    kernel : array, shape (out, kh, kw, in)
    shape : tuple of int
        (height, width) of the input.
    stride, padding : int
        Those of :func:`convolve`.

    Returns
    -------
    array, shape (batch, height, width, in)
    """
    xp, (out, *size, features), (height, width) = namespace(delta, kernel), kernel.shape, shape
    spread = _rows(delta) @ xp.reshape(kernel, (out, -1))
    spread = xp.reshape(spread, (*delta.shape[:3], size[0] * size[1], features))
    padded = xp.zeros((delta.shape[0], height + 2 * padding, width + 2 * padding, features), dtype=spread.dtype)
    for tap, pixels in enumerate(_taps(size, delta.shape[1:3], stride)):
        padded[pixels] += spread[:, :, :, tap, :]
    return padded[:, padding : padding + height, padding : padding + width, :]


def max_pool(x: Any, size: int, stride: int) -> tuple[Any, Any]:
    """Return the largest entry of each square window, feature by feature, and which it is.

    Parameters
    ----------
    x : array, shape (batch, height, width, feature)
    size : int
        Side of a window, at most 16; windows that do not fit are left out.
    stride : int
        From one window to the next.

    Returns
    -------
    y : array, shape (batch, rows, columns, feature)
    choice : array of uint8, shape (batch, rows, columns, feature)
        Number of the winner in its window, row by row: the first of equals. A NaN is larger than all numbers (of
        several the last wins), so that it shows.
    """
    xp = namespace(x)
    places = ((x.shape[1] - size) // stride + 1, (x.shape[2] - size) // stride + 1)
    first, *others = _taps((size, size), places, stride)
    y = x[first]
    choice = xp.zeros(y.shape, dtype=xp.uint8)
    for tap, pixels in enumerate(others, start=1):
        value = x[pixels]
        better = (value > y) | (value != value)
        y, choice = xp.where(better, value, y), xp.where(better, xp.asarray(tap, dtype=xp.uint8), choice)
    return y, choice


def max_unpool(delta: Any, choice: Any, shape: tuple[int, int], size: int, stride: int) -> Any:
    """Return the error at the input of :func:`max_pool`: that of each window goes to its winner, and adds up there.

    Parameters
    ----------
    delta : array, shape (batch, rows, columns, feature)
    choice : array of uint8, shape (batch, rows, columns, feature)
        From :func:`max_pool`.
    shape : tuple of int
        (height, width) of the input.
    size, stride : int
        Those of :func:`max_pool`.

    Returns
    -------
    array, shape (batch, height, width, feature)
    """
    xp = namespace(delta, choice)
    dx = xp.zeros((delta.shape[0], *shape, delta.shape[3]), dtype=delta.dtype)
    for tap, pixels in enumerate(_taps((size, size), delta.shape[1:3], stride)):
        dx[pixels] += xp.where(choice == tap, delta, xp.zeros_like(delta))
    return dx


def _rows(images: Any) -> Any:
    return namespace(images).reshape(images, (math.prod(images.shape[:3]), images.shape[3]))


def _patches(x: Any, size: Any, stride: int, padding: int) -> Any:
    """Return what each place of the window sees of the padded images, shape (batch, rows, columns, kh * kw * in)."""
    xp, (batch, height, width, features) = namespace(x), x.shape
    padded = xp.zeros((batch, height + 2 * padding, width + 2 * padding, features), dtype=x.dtype)
    padded[:, padding : padding + height, padding : padding + width, :] = x
    rows, columns = ((padded.shape[axis] - size[axis - 1]) // stride + 1 for axis in (1, 2))
    return xp.concat([padded[pixels] for pixels in _taps(size, (rows, columns), stride)], axis=3)


def _taps(size: Any, places: Any, stride: int) -> list[tuple[slice, ...]]:
    """Return, for each pixel of a window, the pixels of the images that it meets in all places of the window."""

    def along(axis: int, tap: int) -> slice:
        return slice(tap, tap + (places[axis] - 1) * stride + 1, stride)

    return [(slice(None), along(0, a), along(1, b), slice(None)) for a in range(size[0]) for b in range(size[1])]
