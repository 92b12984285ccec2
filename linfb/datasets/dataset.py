"""A labelled image set: what it holds, where it came from, and how to split it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from linfb._checks import integer, real_array
from linfb.datasets.splits import Samples, Splits, moments, split_indices, standardised

__all__ = ["Dataset"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images (or feature vectors) with a fixed test part.

    Made by :func:`linfb.datasets.load_dataset` or, from a user's own arrays, by :meth:`Dataset.from_arrays`. The
    arrays are read-only.

    Parameters
    ----------
    name : str
        What the data are; a subset says so here.
    train_images, test_images : numpy.ndarray, shape (sample, height, width, channel) or (sample, feature)
        Unsigned bytes as in the original files, or finite floats.
    train_labels, test_labels : numpy.ndarray of int64, shape (sample,)
        Classes from 0.
    class_names : tuple of str
        One name for each class.
    provenance : mapping of str to str
        Where the data came from: file name to "sha256:..." for files.

    Raises
    ------
    TypeError, ValueError
        If shapes, types or label ranges do not fit each other; the message names the array.

    Examples
    --------
    >>> from linfb.datasets import load_dataset
    >>> digits = load_dataset("digits")
    >>> digits.shape, len(digits.train_labels), len(digits.test_labels)
    ((8, 8, 1), 1437, 360)
    >>> splits = digits.splits(validation=200, seed=0)
    >>> x, y = splits.train
    >>> x.shape, x.dtype, y.shape
    ((1237, 64), dtype('float32'), (1237,))
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images = _images(f"{part}_images", getattr(self, f"{part}_images"))
            labels = _labels(f"{part}_labels", getattr(self, f"{part}_labels"), len(images), len(self.class_names))
            object.__setattr__(self, f"{part}_images", _read_only(images))
            object.__setattr__(self, f"{part}_labels", _read_only(labels))
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                f"test_images has images of shape {self.test_images.shape[1:]}, expected {self.shape} as in training"
            )
        object.__setattr__(self, "provenance", dict(self.provenance))

    @classmethod
    def from_arrays(
        cls,
        train_images: Any,
        train_labels: Any,
        test_images: Any,
        test_labels: Any,
        *,
        name: str = "arrays",
        class_names: Sequence[str] | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> Dataset:
        """Return a data set of the user's own arrays (copied).

        Parameters
        ----------
        train_images, test_images : array_like, shape (sample, feature), (sample, height, width[, channel])
            Real numbers; three axes are taken as grey images and get a channel axis of size 1. Unsigned bytes stay
            bytes, float32 stays float32, all else becomes float64.
        train_labels, test_labels : array_like of int, shape (sample,)
            Classes from 0.
        name : str
            A name for messages and results.
        class_names : sequence of str, optional
            Names of the classes; "0", "1", ... up to the largest label if None.
        provenance : mapping of str to str, optional
            Notes on the origin.

        Examples
        --------
        >>> x = np.arange(12.0).reshape(6, 2)
        >>> Dataset.from_arrays(x, [0, 1, 0, 1, 0, 1], x[:2], [0, 1]).class_names
        ('0', '1')
        """
        x, y = _own("train", train_images, train_labels)
        x_test, y_test = _own("test", test_images, test_labels)
        if class_names is None:
            class_names = [str(i) for i in range(1 + max(int(y.max()), int(y_test.max())))]
        return cls(name, x, y, x_test, y_test, tuple(class_names), provenance or {})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, (height, width, channel) or (feature,)."""
        return self.train_images.shape[1:]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def grey(self) -> Dataset:
        r"""Return the same images in grey; those that are grey already stay as they are.

        .. math:: Y = 0.299\, R + 0.587\, G + 0.114\, B

        Returns
        -------
        Dataset
            With one channel. Bytes stay bytes: Y is computed exactly and rounded to the nearest one, halves up.

        Raises
        ------
        ValueError
            If the inputs are vectors, or images with a number of channels other than 1 or 3.

        Examples
        --------
        >>> colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)[None]
        >>> Dataset.from_arrays(colours, [0], colours, [0]).grey().train_images[0, ..., 0]
        array([[ 76, 150,  29]], dtype=uint8)
        """
        if len(self.shape) != 3 or self.shape[2] not in (1, 3):
            raise ValueError(f"grey() needs images (height, width, 1 or 3 channels), but they have shape {self.shape}")
        if self.shape[2] == 1:
            return self
        return replace(
            self,
            name=f"{self.name}-grey",
            train_images=_luma(self.train_images),
            test_images=_luma(self.test_images),
            provenance={**self.provenance, "grey": "0.299 R + 0.587 G + 0.114 B"},
        )

    def classes(self, labels: int | Sequence[int]) -> Dataset:
        """Return the images of some classes only, relabelled from 0.

        Parameters
        ----------
        labels : int or sequence of int
            How many classes, from the first; or which, in the order of their new labels.

        Raises
        ------
        TypeError, ValueError
            If a label is not an integer, not a class or there twice, or if none is given.

        Examples
        --------
        >>> from linfb.datasets import load_dataset
        >>> odd = load_dataset("digits").classes([1, 3, 5, 7, 9])
        >>> odd.name, odd.class_names, int(odd.train_labels.max())
        ('digits-5-classes', ('1', '3', '5', '7', '9'), 4)
        """
        if isinstance(labels, Sequence) and not isinstance(labels, str):
            chosen = [integer("labels", label, at_least=0, at_most=self.n_classes - 1) for label in labels]
        else:
            chosen = list(range(integer("labels", labels, at_least=1, at_most=self.n_classes)))
        if not chosen or len(set(chosen)) != len(chosen):
            raise ValueError(f"labels must be different classes, at least one, got {chosen}")
        new = np.full(self.n_classes, -1)
        new[chosen] = np.arange(len(chosen))
        parts: dict[str, np.ndarray] = {}
        for part in ("train", "test"):
            relabelled = new[getattr(self, f"{part}_labels")]
            parts[f"{part}_labels"] = relabelled[relabelled >= 0]
            parts[f"{part}_images"] = getattr(self, f"{part}_images")[relabelled >= 0]
        before = f"{self.provenance['classes']}; of these " if "classes" in self.provenance else ""
        return replace(
            self,
            name=f"{self.name}-{len(chosen)}-classes",
            class_names=tuple(self.class_names[label] for label in chosen),
            provenance={**self.provenance, "classes": before + ", ".join(map(str, chosen))},
            **parts,
        )

    def splits(
        self,
        *,
        validation: int | float = 0.1,
        train: int | float | None = None,
        seed: int = 0,
        draw: str = "stratified",
        standardise: str = "channel",
        layout: str = "flat",
        dtype: Any = "float32",
    ) -> Splits:
        r"""Return standardised inputs and labels for training, validation and test.

        .. math:: x = \frac{\text{pixel} - \mu}{s}

        with mean :math:`\mu` and standard deviation :math:`s` of the training part alone (neither validation nor
        test images enter).

        Parameters
        ----------
        validation, train, seed, draw
            How many of the training images validate and train, and which; see
            :func:`linfb.datasets.splits.split_indices`.
        standardise : {"channel", "pixel", "none"}
            One mean and deviation for each channel (for vectors: each feature), for each pixel, or the bare values.
        layout : {"flat", "image"}
            Inputs of shape (sample, feature) or (sample, height, width, channel).
        dtype : {"float32", "float64"}
            Type of the inputs.

        Returns
        -------
        Splits
            Its `train`, `validation` and `test` unpack as ``x, y``.

        Raises
        ------
        TypeError, ValueError
            If an argument is out of range; the message names it.

        Notes
        -----
        Checked by ``tests/test_datasets.py``: disjoint parts, shares of the classes, and that changing validation
        or test images leaves the training inputs as they are.
        """
        chosen, held_out = split_indices(self.train_labels, validation=validation, train=train, seed=seed, draw=draw)
        mean, std = moments(self.train_images, chosen, standardise)

        def samples(images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Samples:
            return Samples(standardised(images, rows, mean, std, layout=layout, dtype=dtype), labels[rows])

        return Splits(
            train=samples(self.train_images, self.train_labels, chosen),
            validation=samples(self.train_images, self.train_labels, held_out),
            test=samples(self.test_images, self.test_labels, np.arange(len(self.test_labels))),
            train_indices=chosen,
            validation_indices=held_out,
            mean=mean,
            std=std,
            class_names=self.class_names,
            image_shape=self.shape if len(self.shape) == 3 else None,
        )


def _own(part: str, images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return checked copies of one part's arrays, grey images with a channel axis."""
    pixels = _images(f"{part}_images", images).copy()
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    return pixels, _labels(f"{part}_labels", labels, len(pixels), None).copy()


def _luma(images: np.ndarray) -> np.ndarray:
    """Return (sample, height, width, 1) from (sample, height, width, 3)."""
    if images.dtype != np.uint8:
        return (images @ np.array([0.299, 0.587, 0.114], images.dtype))[..., None]
    result = np.empty((*images.shape[:3], 1), np.uint8)
    for rows in (slice(start, start + 256) for start in range(0, len(images), 256)):
        red, green, blue = (images[rows, ..., channel].astype(np.uint32) for channel in range(3))
        result[rows, ..., 0] = (299 * red + 587 * green + 114 * blue + 500) // 1000
    return result


def _images(name: str, images: Any) -> np.ndarray:
    given = getattr(images, "dtype", None)
    if given == np.uint8:
        array = np.asarray(images)
    else:
        array = real_array(name, images, dtype=np.float32 if given == np.float32 else np.float64)
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"{name} has shape {array.shape}, expected (sample, feature) or (sample, height, width, channel), not empty"
        )
    return array


def _labels(name: str, labels: Any, n_samples: int, n_classes: int | None) -> np.ndarray:
    try:
        array = np.asarray(labels)
    except ValueError as error:  # rows of different lengths
        raise TypeError(f"{name} must be an array of integers (classes from 0)") from error
    if array.shape != (n_samples,):
        raise ValueError(f"{name} has shape {array.shape}, expected ({n_samples},): one class for each sample")
    if array.dtype.kind not in "iu":
        hint = "np.unique(labels, return_inverse=True) numbers any labels"
        raise TypeError(f"{name} must be integers (classes from 0), got dtype {array.dtype}; {hint}")
    if array.min() < 0 or (n_classes is not None and array.max() >= n_classes):
        top = "" if n_classes is None else f" to {n_classes - 1}"
        raise ValueError(f"{name} must be classes from 0{top}, got {array.min()} to {array.max()}")
    return array.astype(np.int64, copy=False)


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
