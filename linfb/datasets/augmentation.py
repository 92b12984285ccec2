"""Random changes of training images that leave their class as it is: crops, flips, rotations, holes, AutoAugment.

Each is a frozen dataclass with ``augment(x, key, mean=None)``, a pure function of a batch of pixel values and of a
:class:`~linfb.backend.Key`: image i of the batch takes draw i. All but AutoAugment run on the device of `x`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from linfb._checks import integer, real
from linfb.backend import Key, namespace
from linfb.datasets.autoaugment import AutoAugment
from linfb.datasets.splits import inverse

if TYPE_CHECKING:
    from linfb.datasets.splits import Splits

__all__ = [
    "Augmentation", "AutoAugment", "Cutout", "RandomCrop", "RandomFlip", "RandomRotation", "Scale", "augmented",
    "scale_of",
]  # fmt: skip


class Augmentation(Protocol):
    """A random change of images."""

    def augment(self, x: Any, key: Key, mean: Any = None) -> Any:
        """Return changed images, of the shape, precision and library of `x`.

        One that works or draws on the host says ``capturable = False`` (:func:`linfb.engine.graph.capturable`).

        Parameters
        ----------
        x : array, shape (batch, height, width, channel)
            Pixel values as in the data set: 0 to 255 for bytes.
        key : Key
            Where the random numbers come from.
        mean : array, optional
            The mean pixel or image of the training part, which ``fill="mean"`` stands for.
        """
        ...


class Scale(NamedTuple):
    """Mean, deviation and its inverse of every pixel, as rows on a device: what standardised the data."""

    mean: Any
    std: Any
    inverse: Any


def scale_of(splits: Splits, like: Any) -> Scale:
    """Return the standardisation of image data on the device and in the precision of an array."""
    shape = splits.image_shape
    assert shape is not None

    def row(values: np.ndarray) -> Any:
        return namespace(like).asarray(np.broadcast_to(values, shape).reshape(-1), dtype=like.dtype)

    return Scale(row(splits.mean), row(splits.std), row(inverse(splits.std)))


def augmented(
    x: Any, splits: Splits, augmentations: Sequence[Augmentation], key: Key, scale: Scale | None = None
) -> Any:
    r"""Return standardised inputs whose pixels went through some augmentations, one after the other.

    .. math:: x \mapsto \frac{a(s x + \mu) - \mu}{s}

    with the mean :math:`\mu` and the deviation :math:`s` by which the data were standardised.

    Parameters
    ----------
    x : array, shape (batch, feature) or (batch, height, width, channel)
        Inputs from ``splits.train``, in either layout, on any device.
    splits : Splits
        Where they are from.
    augmentations : sequence of augmentations
        The i-th draws from ``key.at(i)``.
    key : Key
    scale : Scale, optional
        What :func:`scale_of` returns, if it is at hand; a captured step cannot bring it from the host.

    Returns
    -------
    array of the shape, precision and library of `x`
        Without augmentations `x` itself.

    Raises
    ------
    ValueError
        If the inputs are no images, or have another shape than those of `splits`.

    Notes
    -----
    Undoing and redoing the standardisation rounds: pixels that nothing touches come back within a few units of the
    last place of a pixel value. Checked by ``tests/test_augmentation.py``.

    Examples
    --------
    >>> from linfb.datasets import load_dataset
    >>> splits = load_dataset("digits").splits()
    >>> x = augmented(splits.train.x[:5], splits, (RandomCrop(padding=1), RandomRotation(10.0)), Key(0))
    >>> x.shape, x.dtype
    ((5, 64), dtype('float32'))
    """
    if not augmentations:
        return x
    shape = splits.image_shape
    if shape is None:
        raise ValueError(f"augmentations change images, but the inputs are none: they have shape {splits.shape}")
    if x.shape[1:] != splits.shape:
        raise ValueError(f"x has inputs of shape {tuple(x.shape[1:])}, expected {splits.shape} as in splits")
    xp, rows = namespace(x), (x.shape[0], math.prod(shape))  # sums along rows are far faster than along channels
    mean, std, inverse_std = scale_of(splits, x) if scale is None else scale
    pixels = xp.reshape(xp.reshape(x, rows) * std + mean, (x.shape[0], *shape))
    for i, augmentation in enumerate(augmentations):
        pixels = augmentation.augment(pixels, key.at(i), xp.reshape(mean, shape))
    return xp.reshape((xp.reshape(pixels, rows) - mean) * inverse_std, x.shape)


@dataclass(frozen=True)
class RandomCrop:
    """Shift every image: pad it on all sides and cut out a window of its size at a random place.

    Parameters
    ----------
    padding : int
        Pixels on each side; shifts along each axis are -padding to padding, all equally likely.
    fill : float or "mean"
        Value of the pixels that come from outside, or the mean pixel.

    Examples
    --------
    >>> x = np.arange(16.0).reshape(1, 4, 4, 1)
    >>> RandomCrop(padding=1).augment(x, Key(2))[0, ..., 0]
    array([[ 5.,  6.,  7.,  0.],
           [ 9., 10., 11.,  0.],
           [13., 14., 15.,  0.],
           [ 0.,  0.,  0.,  0.]])
    """

    padding: int = 4
    fill: float | str = 0.0

    def __post_init__(self) -> None:
        integer("padding", self.padding, at_least=0)
        _checked_fill(self.fill)

    def augment(self, x: Any, key: Key, mean: Any = None) -> Any:
        """Return shifted images."""
        rows, columns = _grid(x)
        down = _drawn(key.at("rows"), x, 2 * self.padding + 1) - self.padding
        right = _drawn(key.at("columns"), x, 2 * self.padding + 1) - self.padding
        return _moved(x, rows + down, columns + right, _filling(self.fill, x, mean))


@dataclass(frozen=True)
class RandomFlip:
    """Exchange left and right of an image with probability `p`."""

    p: float = 0.5

    def __post_init__(self) -> None:
        real("p", self.p, at_least=0.0, at_most=1.0)

    def augment(self, x: Any, key: Key, mean: Any = None) -> Any:
        """Return images, some of them mirrored."""
        xp = namespace(x)
        rows, columns = _grid(x)
        mirrored = _per_image(key.uniform((x.shape[0],), x)) < self.p
        return _moved(x, rows, xp.where(mirrored, x.shape[2] - 1 - columns, columns), _filling(0.0, x, mean))


@dataclass(frozen=True)
class RandomRotation:
    """Rotate every image about its centre by a random angle; a pixel takes the value of the nearest source pixel.

    Parameters
    ----------
    degrees : float
        Angles are uniform from -degrees to degrees; positive ones turn counter-clockwise.
    fill : float or "mean"
        Value of the pixels that come from outside, or the mean pixel.
    """

    degrees: float
    fill: float | str = 0.0

    def __post_init__(self) -> None:
        real("degrees", self.degrees, at_least=0.0, at_most=180.0)
        _checked_fill(self.fill)

    def augment(self, x: Any, key: Key, mean: Any = None) -> Any:
        """Return rotated images."""
        xp = namespace(x)
        height, width = x.shape[1:3]
        angle = _per_image((2 * key.uniform((x.shape[0],), x) - 1) * math.radians(self.degrees))
        down, right = (xp.astype(place, x.dtype) for place in _grid(x))
        down, right = down - (height - 1) / 2, right - (width - 1) / 2
        row = right * xp.sin(angle) + down * xp.cos(angle) + (height - 1) / 2
        column = right * xp.cos(angle) - down * xp.sin(angle) + (width - 1) / 2
        rows, columns = (xp.astype(xp.floor(place + 0.5), xp.int64) for place in (row, column))
        return _moved(x, rows, columns, _filling(self.fill, x, mean))


@dataclass(frozen=True)
class Cutout:
    """Blank a square around a random pixel of every image; what reaches over the border is cut off.

    Parameters
    ----------
    size : int
        Side of the square: for a centre c it covers rows (and columns) c - size // 2 to c - size // 2 + size - 1.
    fill : float or "mean"
        What the square is filled with. The mean pixel, the default, is zero in standardised inputs.

    References
    ----------
    :cite:t:`devries2017`.
    """

    size: int = 16
    fill: float | str = "mean"

    def __post_init__(self) -> None:
        integer("size", self.size, at_least=1)
        _checked_fill(self.fill)

    def augment(self, x: Any, key: Key, mean: Any = None) -> Any:
        """Return images with holes."""
        rows, columns = _grid(x)
        top = _drawn(key.at("rows"), x, x.shape[1]) - self.size // 2
        left = _drawn(key.at("columns"), x, x.shape[2]) - self.size // 2
        blank = (rows >= top) & (rows < top + self.size) & (columns >= left) & (columns < left + self.size)
        return namespace(x).where(blank[..., None], _filling(self.fill, x, mean), x)


def _grid(x: Any) -> tuple[Any, Any]:
    """Return the rows, shape (1, height, 1), and columns, shape (1, 1, width), of the pixels of images."""
    xp = namespace(x)
    return xp.arange(x.shape[1])[None, :, None], xp.arange(x.shape[2])[None, None, :]


def _per_image(values: Any) -> Any:
    return values[:, None, None]


def _drawn(key: Key, x: Any, n: int) -> Any:
    """Return one of the integers 0 to n - 1 for each image, shape (batch, 1, 1)."""
    xp = namespace(x)
    return _per_image(xp.astype(xp.floor(key.uniform((x.shape[0],), x) * n), xp.int64))


def _moved(x: Any, rows: Any, columns: Any, fill: Any) -> Any:
    """Return images whose pixels are those of `x` at other places, or `fill` where the place is outside.

    Rows and columns are integers of a shape that broadcasts to (batch, height, width).
    """
    xp = namespace(x)
    batch, height, width, channels = x.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    first = _per_image(xp.arange(batch) * (height * width))
    place = xp.where(inside, first + rows * width + columns, batch * height * width)
    if fill.ndim < 3:  # one pixel for all that is outside, put at the end of the list
        blank = xp.broadcast_to(fill, (1, channels))
        pixels = xp.concat([xp.reshape(x, (batch * height * width, channels)), blank])
        return xp.reshape(xp.take(pixels, xp.reshape(place, (-1,)), axis=0), x.shape)
    zeros = xp.zeros((), dtype=x.dtype)
    return xp.where(inside[..., None], _moved(x, rows, columns, zeros), fill)


def _checked_fill(fill: Any) -> None:
    if isinstance(fill, str) and fill != "mean":
        raise ValueError(f"fill must be a number or 'mean', got {fill!r}")
    if not isinstance(fill, str):
        real("fill", fill)


def _filling(fill: float | str, x: Any, mean: Any) -> Any:
    """Return what blank pixels hold, an array that broadcasts against one image."""
    if fill != "mean":
        return namespace(x).asarray(fill, dtype=x.dtype)
    if mean is None:
        raise ValueError("fill='mean' needs the mean pixel: pass mean=..., or use linfb.datasets.augmented")
    return mean
