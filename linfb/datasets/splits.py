"""Parts of a data set for training, model selection and the final test, standardised by the training part alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from linfb._checks import choice, integer, real
from linfb.backend import stream

__all__ = ["Samples", "Splits", "inverse", "moments", "split_indices", "standardised"]

_ROWS = 256  # images handled at a time, so that float copies stay small (and in the cache)


class Samples(NamedTuple):
    """Inputs and labels of one part; unpacks as ``x, y = splits.train``.

    Attributes
    ----------
    x : numpy.ndarray of float, shape (sample, feature) or (sample, height, width, channel)
        For text tokens: int64, shape (sample, length).
    y : numpy.ndarray of int64, shape (sample,)
        For text of the shape of x.
    """

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True, eq=False)
class Splits:
    """The three parts of a data set; made by ``splits`` of :class:`linfb.datasets.Dataset` or a text.

    Parameters
    ----------
    train, validation, test : Samples
        Standardised inputs and labels. The epoch is chosen on `validation`; `test` is looked at once.
    train_indices, validation_indices : numpy.ndarray of int64
        Rows of the data set's training images, or numbers of windows of a text; rising.
    mean, std : numpy.ndarray
        What was subtracted and divided by, broadcast against one image; from `train` only.
    class_names : tuple of str
    image_shape : tuple of int, optional
        Shape of one image, (height, width, channel), in either layout; None if the inputs are not images.
    """

    train: Samples
    validation: Samples
    test: Samples
    train_indices: np.ndarray
    validation_indices: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...] | None = None

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.train.x.shape[1:]


def split_indices(
    labels: np.ndarray,
    *,
    validation: int | float,
    train: int | float | None = None,
    seed: int = 0,
    draw: str = "stratified",
) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows train and which validate; disjoint, and the same for the same arguments.

    Parameters
    ----------
    labels : numpy.ndarray of int, shape (sample,)
        Classes from 0.
    validation : int or float
        Number of validation rows, or their share if a float below 1.
    train : int or float, optional
        Number or share of training rows; all that remain if None.
    seed : int
        Seed of the draw; the validation rows do not depend on `train`.
    draw : {"stratified", "plain"}
        Whether every class gets its share (to within rounding: one image for classes of equal size) or the rows
        are drawn regardless of class.

    Returns
    -------
    train_indices, validation_indices : numpy.ndarray of int64
        Rising.

    Raises
    ------
    ValueError
        If a number is negative, no training row remains, or more rows are asked for than there are.

    Examples
    --------
    >>> train, validation = split_indices(np.repeat([0, 1], 50), validation=10)
    >>> len(train), np.bincount(np.repeat([0, 1], 50)[validation])
    (90, array([5, 5]))
    """
    total = len(labels)
    n_validation = _count("validation", validation, total, least=0)
    n_train = total - n_validation if train is None else _count("train", train, total, least=1)
    if n_train < 1 or n_train + n_validation > total:
        raise ValueError(f"validation={n_validation} and train={n_train} rows asked for, but there are {total}")
    order = _order(np.asarray(labels), seed, choice("draw", draw, ("stratified", "plain")))
    return np.sort(order[n_validation : n_validation + n_train]), np.sort(order[:n_validation])


def _count(name: str, value: Any, total: int, *, least: int) -> int:
    if isinstance(value, float):
        return max(least, round(total * real(name, value, at_least=0.0, below=1.0)))
    return integer(name, value, at_least=least, at_most=total)


def _order(labels: np.ndarray, seed: int, draw: str) -> np.ndarray:
    """Return all rows in random order; if stratified, every prefix holds each class in its proportion."""
    rng = stream(seed, "datasets", "split", draw)
    order = rng.permutation(len(labels))
    if draw == "plain":
        return order
    position = np.empty(len(labels))
    for value in np.unique(labels):
        rows = np.flatnonzero(labels[order] == value)
        position[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return order[np.argsort(position, kind="stable")]


def moments(images: np.ndarray, indices: np.ndarray, per: str) -> tuple[np.ndarray, np.ndarray]:
    r"""Return mean and standard deviation of some of the images.

    .. math:: \mu = \langle x \rangle, \qquad s = \sqrt{\langle (x - \mu)^2 \rangle}

    Parameters
    ----------
    images : numpy.ndarray, shape (sample, ...)
    indices : numpy.ndarray of int, shape (used,)
        Rows to average over.
    per : {"channel", "pixel", "none"}
        Averages over rows and positions (one value for each entry of the last axis), over rows only, or the
        neutral values 0 and 1.

    Returns
    -------
    mean, std : numpy.ndarray of float64, shape (channel,) or that of one image
        The standard deviation divides by the number of values, not that less one.
    """
    choice("standardise", per, ("channel", "pixel", "none"))
    if per == "none":
        return np.zeros(images.shape[-1:]), np.ones(images.shape[-1:])
    axes = () if per == "pixel" else tuple(range(images.ndim - 2))  # of the average over rows
    start = np.zeros(images.shape[1:])
    mean = (sum((chunk.sum(axis=0) for chunk in _chunks(images, indices)), start) / len(indices)).mean(axis=axes)
    square = sum((np.square(chunk - mean).sum(axis=0) for chunk in _chunks(images, indices)), start) / len(indices)
    return mean, np.sqrt(square.mean(axis=axes))


def _chunks(images: np.ndarray, indices: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(indices), _ROWS):
        yield images[indices[start : start + _ROWS]].astype(np.float64)


def standardised(
    images: np.ndarray, indices: np.ndarray, mean: np.ndarray, std: np.ndarray, *, layout: str, dtype: Any
) -> np.ndarray:
    r"""Return :math:`(x - \mu)/s` of some of the images; where :math:`s = 0` it is 0.

    A pixel or channel that never varies in training carries nothing to learn from, and dividing by its (zero)
    deviation would blow it up in the test images, so it is switched off there as well.

    Parameters
    ----------
    images : numpy.ndarray, shape (sample, ...)
    indices : numpy.ndarray of int, shape (used,)
    mean, std : numpy.ndarray
        As returned by :func:`moments`.
    layout : {"flat", "image"}
        One row of features for each image, or the image's own axes (height, width, channel).
    dtype : {"float32", "float64"}
        Type of the result.

    Returns
    -------
    numpy.ndarray of `dtype`, shape (used, feature) or (used, height, width, channel)
    """
    choice("layout", layout, ("flat", "image"))
    given = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    dtype = np.dtype(choice("dtype", given, ("float32", "float64")))
    gain = inverse(std).astype(dtype)
    result = np.empty((len(indices), *images.shape[1:]), dtype)
    for start in range(0, len(indices), _ROWS):
        rows = slice(start, start + _ROWS)
        np.subtract(images[indices[rows]], mean, out=result[rows], casting="same_kind")
        result[rows] *= gain
    return result.reshape(len(indices), math.prod(images.shape[1:])) if layout == "flat" else result


def inverse(std: np.ndarray) -> np.ndarray:
    """Return 1/std, and 0 where `std` is 0."""
    return np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)
