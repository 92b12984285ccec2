"""AutoAugment: pairs of image operations, found by a search, one pair drawn for each image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from linfb._checks import choice
from linfb.backend import Key, namespace, to_numpy

__all__ = ["OPERATIONS", "POLICIES", "AutoAugment", "Step"]

_LEVELS = 9  # of magnitude: 0 to 9


@dataclass(frozen=True)
class Step:
    """One operation of a pair: its name, the probability that it is applied, and its level."""

    operation: str
    probability: float
    level: int


@dataclass(frozen=True)
class AutoAugment:
    """Change each image by one of 25 pairs of operations, drawn afresh.

    Each operation of the pair is applied with its own probability, and one that has a direction (shear, shift,
    rotation, more or less of something) takes either with probability 1/2.

    Parameters
    ----------
    policy : {"cifar10", "svhn"}
        Which of the published lists of pairs.

    Notes
    -----
    The lists are those of the paper's appendix, and so are the ranges: shears up to 0.3, shifts up to 150/331 of the
    image's size (150 pixels of ImageNet's 331), rotations up to 30 degrees, enhancements by factors 0.1 to 1.9,
    posterisation down to 4 bits, solarisation from threshold 256 down to 0. How a level from 0 to 9 becomes a
    magnitude is not in the paper; as in most implementations 0 means no change and 9 the end of the range, in equal
    steps. Pixels that come from outside are black, and places are rounded to the nearest pixel.

    The operations are those of Pillow (which Matplotlib brings along) on the host, on pixel values rounded to bytes:
    for data made of bytes. It is far slower than the other augmentations, and images on a GPU travel to the host and
    back. The draws come from :meth:`~linfb.backend.Key.host`. Checked by ``tests/test_augmentation.py``.

    References
    ----------
    :cite:t:`cubuk2019`.

    Examples
    --------
    >>> x = np.full((2, 8, 8, 3), 100.0)
    >>> AutoAugment().augment(x, Key(0)).shape
    (2, 8, 8, 3)
    """

    policy: str = "cifar10"
    capturable: ClassVar[bool] = False  # works and draws on the host

    def __post_init__(self) -> None:
        choice("policy", self.policy, POLICIES)

    def augment(self, x: Any, key: Key, mean: Any = None) -> Any:
        """Return changed images, made of whole numbers from 0 to 255.

        Raises
        ------
        ValueError
            If the images are neither grey nor in three colours, or their values are not on the scale of bytes.
        """
        pixels, pairs, draws = _bytes(to_numpy(x)), POLICIES[self.policy], key.host()
        chosen = draws.integers(len(pairs), size=len(pixels))
        chances, directions = draws.random((len(pixels), 2)), draws.choice([-1, 1], size=(len(pixels), 2))
        changed = [_changed(pairs[i], *rest) for i, *rest in zip(chosen, pixels, chances, directions, strict=True)]
        result = np.stack(changed) if changed else pixels
        return namespace(x).asarray(result, dtype=x.dtype)


def _changed(pair: tuple[Step, Step], pixels: np.ndarray, chances: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return one image of bytes after those operations of a pair whose chance is below their probability.

    Parameters
    ----------
    pair : two of Step
    pixels : numpy.ndarray of uint8, shape (height, width, channel)
    chances : numpy.ndarray, shape (2,)
        Uniform numbers in [0, 1).
    directions : numpy.ndarray of int, shape (2,)
        1 or -1, for operations that have a direction.
    """
    from PIL import Image

    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    for step, chance, direction in zip(pair, chances, directions, strict=True):
        if chance < step.probability:
            image = OPERATIONS[step.operation](image, step.level / _LEVELS, int(direction))
    return np.asarray(image).reshape(pixels.shape)


def _bytes(x: np.ndarray) -> np.ndarray:
    if x.ndim != 4 or x.shape[3] not in (1, 3):
        raise ValueError(f"AutoAugment takes (batch, height, width, 1 or 3 channels), got {x.shape}")
    rounded = np.rint(x)
    low, high = rounded.min(initial=0.0), rounded.max(initial=0.0)
    if not (low >= 0 and high <= 255) or (high <= 1 and np.any(rounded != x)):
        raise ValueError(f"AutoAugment takes pixel values from 0 to 255, got {x.min():.3g} to {x.max():.3g}")
    return rounded.astype(np.uint8)


# The operations: (image, strength from 0 to 1, direction) -> image --------------------------------------------------
def _affine(image: Any, *matrix: float) -> Any:
    from PIL import Image

    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _enhanced(kind: str) -> Callable[[Any, float, int], Any]:
    def enhance(image: Any, strength: float, direction: int) -> Any:
        from PIL import ImageEnhance

        return getattr(ImageEnhance, kind)(image).enhance(1 + 0.9 * strength * direction)

    return enhance


def _without_strength(name: str) -> Callable[[Any, float, int], Any]:
    def operation(image: Any, strength: float, direction: int) -> Any:
        from PIL import ImageOps

        return getattr(ImageOps, name)(image)

    return operation


def _rotate(image: Any, strength: float, direction: int) -> Any:
    return image.rotate(30 * strength * direction)


def _shear_x(image: Any, strength: float, direction: int) -> Any:
    return _affine(image, 1, 0.3 * strength * direction, 0, 0, 1, 0)


def _shear_y(image: Any, strength: float, direction: int) -> Any:
    return _affine(image, 1, 0, 0, 0.3 * strength * direction, 1, 0)


def _translate_x(image: Any, strength: float, direction: int) -> Any:
    return _affine(image, 1, 0, direction * math.floor(150 / 331 * strength * image.size[0]), 0, 1, 0)


def _translate_y(image: Any, strength: float, direction: int) -> Any:
    return _affine(image, 1, 0, 0, 0, 1, direction * math.floor(150 / 331 * strength * image.size[1]))


def _posterize(image: Any, strength: float, direction: int) -> Any:
    from PIL import ImageOps

    return ImageOps.posterize(image, round(8 - 4 * strength))


def _solarize(image: Any, strength: float, direction: int) -> Any:
    from PIL import ImageOps

    return ImageOps.solarize(image, math.ceil(256 * (1 - strength)))


OPERATIONS: dict[str, Callable[[Any, float, int], Any]] = {
    "autocontrast": _without_strength("autocontrast"),
    "equalize": _without_strength("equalize"),
    "invert": _without_strength("invert"),
    "brightness": _enhanced("Brightness"),
    "color": _enhanced("Color"),
    "contrast": _enhanced("Contrast"),
    "sharpness": _enhanced("Sharpness"),
    "posterize": _posterize,
    "solarize": _solarize,
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
"""From the name of an operation to a function of an image, a strength from 0 to 1 and a direction, 1 or -1.

:meta hide-value:
"""


def _pairs(table: str) -> tuple[tuple[Step, Step], ...]:
    """Return the pairs of a table; without a level stand operations that have none."""

    def step(words: str) -> Step:
        operation, probability, *level = words.split()
        return Step(operation, float(probability), int(level[0]) if level else 0)

    lines = [line.split(",") for line in table.strip().splitlines()]
    return tuple((step(first), step(second)) for first, second in lines)


POLICIES = {
    "cifar10": _pairs("""
        invert 0.1, contrast 0.2 6
        rotate 0.7 2, translate_x 0.3 9
        sharpness 0.8 1, sharpness 0.9 3
        shear_y 0.5 8, translate_y 0.7 9
        autocontrast 0.5, equalize 0.9
        shear_y 0.2 7, posterize 0.3 7
        color 0.4 3, brightness 0.6 7
        sharpness 0.3 9, brightness 0.7 9
        equalize 0.6, equalize 0.5
        contrast 0.6 7, sharpness 0.6 5
        color 0.7 7, translate_x 0.5 8
        equalize 0.3, autocontrast 0.4
        translate_y 0.4 3, sharpness 0.2 6
        brightness 0.9 6, color 0.2 8
        solarize 0.5 2, invert 0.0
        equalize 0.2, autocontrast 0.6
        equalize 0.2, equalize 0.6
        color 0.9 9, equalize 0.6
        autocontrast 0.8, solarize 0.2 8
        brightness 0.1 3, color 0.7 0
        solarize 0.4 5, autocontrast 0.9
        translate_y 0.9 9, translate_y 0.7 9
        autocontrast 0.9, solarize 0.8 3
        equalize 0.8, invert 0.1
        translate_y 0.7 9, autocontrast 0.9
    """),
    "svhn": _pairs("""
        shear_x 0.9 4, invert 0.2
        shear_y 0.9 8, invert 0.7
        equalize 0.6, solarize 0.6 6
        invert 0.9, equalize 0.6
        equalize 0.6, rotate 0.9 3
        shear_x 0.9 4, autocontrast 0.8
        shear_y 0.9 8, invert 0.4
        shear_y 0.9 5, solarize 0.2 6
        invert 0.9, autocontrast 0.8
        equalize 0.6, rotate 0.9 3
        shear_x 0.9 4, solarize 0.3 3
        shear_y 0.8 8, invert 0.7
        equalize 0.9, translate_y 0.6 6
        invert 0.9, equalize 0.6
        contrast 0.3 3, rotate 0.8 4
        invert 0.8, translate_y 0.0 2
        shear_y 0.7 6, solarize 0.4 8
        invert 0.6, rotate 0.8 4
        shear_y 0.3 7, translate_x 0.9 3
        shear_x 0.1 6, invert 0.6
        solarize 0.7 2, translate_y 0.6 7
        shear_y 0.8 4, invert 0.8
        shear_x 0.7 9, translate_y 0.8 3
        shear_y 0.8 5, autocontrast 0.7
        shear_x 0.7 2, invert 0.1
    """),
}
"""From the name of a policy to its 25 pairs of steps.

:meta hide-value:
"""
