"""The one entry to the known data sets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from linfb._checks import choice, path
from linfb.datasets.dataset import Dataset
from linfb.datasets.files import checksum, fetch, locate, read_source
from linfb.datasets.sources import SOURCES, Source
from linfb.datasets.splits import split_indices

__all__ = ["DATASET_NAMES", "load_dataset"]

DATASET_NAMES = ("digits", *SOURCES)
"""What :func:`load_dataset` knows."""

_DIGITS_CHECKSUM = "sha256:87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
_DIGITS_TEST = 360


def load_dataset(name: str = "digits", *, root: str | os.PathLike | None = None, download: bool = False) -> Dataset:
    """Return a data set by name, from files whose checksums are verified.

    Parameters
    ----------
    name : {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"}
        "digits" ships with scikit-learn (1797 images of 8 x 8 pixels, values 0 to 16) and needs no files; its test
        part is a fixed stratified fifth. The others are those of :cite:t:`lecun1998`, :cite:t:`xiao2017`,
        :cite:t:`krizhevsky2009` and :cite:t:`netzer2011` (cropped digits, without the "extra" ones).
    root : path, optional
        The folder that holds the data set, or the folder of the data set itself. If None: the environment variable
        LINFB_DATA, then the cache of earlier downloads.
    download : bool
        Whether to fetch missing files, into `root` if given, else into the cache.

    Returns
    -------
    Dataset
        Images of uint8, shape (sample, height, width, channel). Where the folder holds the known subset of CIFAR-100
        instead of the whole, the name is "cifar100-subset": its results are not those of CIFAR-100.

    Raises
    ------
    FileNotFoundError
        If files are missing; says which, where they were looked for, and how to get them.
    ValueError
        For an unknown name, a checksum that does not match, or content that does not parse.

    Notes
    -----
    Files may be plain, .gz or .xz, or (CIFAR) the authors' tar archive, which is read without unpacking it. CIFAR's
    pickles are read by :func:`linfb.datasets.pickles.read_pickle`, which executes nothing; SVHN's MATLAB files, whose
    checksums are known to be right by then, by SciPy.

    Examples
    --------
    >>> load_dataset("digits").n_classes
    10
    """
    if choice("name", name, DATASET_NAMES) == "digits":
        return _digits()
    return _from_files(name, SOURCES[name], _roots(root), download)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = digits.images.astype(np.uint8)[..., None], digits.target.astype(np.int64)
    found = checksum(images.tobytes() + labels.astype(np.uint8).tobytes(), "sha256")
    if found != _DIGITS_CHECKSUM:
        raise ValueError(f"scikit-learn's digits: checksum {found}, expected {_DIGITS_CHECKSUM}")
    train, test = split_indices(labels, validation=_DIGITS_TEST, seed=0)
    names = tuple(str(i) for i in range(10))
    return Dataset("digits", images[train], labels[train], images[test], labels[test], names, {"digits": found})


def _roots(root: str | os.PathLike | None) -> tuple[Path, ...]:
    """Return where to look, in order; the last is where downloads go."""
    if root is not None:
        return (path("root", root).expanduser(),)
    import pooch

    named = os.environ.get("LINFB_DATA")
    return (*((Path(named).expanduser(),) if named else ()), Path(pooch.os_cache("linfb")))


def _from_files(name: str, source: Source, roots: tuple[Path, ...], download: bool) -> Dataset:
    places = (found for root in roots if (found := locate(source, root)) is not None)
    found = next(places, None)
    if found is None and download:
        folder = roots[-1] / source.folders[1]
        for item in source.downloads:
            fetch(item, folder)
        found = locate(source, roots[-1])
    if found is None:
        raise FileNotFoundError(_missing(name, source, roots))
    edition, parts, checksums = read_source(source, found)
    train_images, train_labels, test_images, test_labels, names = source.assemble(parts)
    return Dataset(edition, train_images, train_labels, test_images, test_labels, names, checksums)


def _missing(name: str, source: Source, roots: tuple[Path, ...]) -> str:
    archive = "" if source.archive is None else f", or {source.archive}"
    absent = [str(root) for root in roots if not root.is_dir()]
    note = f" ({', '.join(absent)} is not a folder)" if absent else ""
    return (
        f"{name}: no folder holds all of {', '.join(source.limits)} (plain, .gz or .xz){archive}; looked in "
        f"{' and '.join(map(str, roots))}{note}, there in {', '.join(source.folders)}. "
        "Name the folder with root=... (--data-root) or the environment variable LINFB_DATA, or pass download=True."
    )
