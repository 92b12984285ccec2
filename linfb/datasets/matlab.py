"""The MATLAB files of SVHN: images and labels, checked for type, shape and range."""

from __future__ import annotations

import io

import numpy as np

__all__ = ["parse_svhn"]


def parse_svhn(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of one SVHN file, the digit 0 (labelled 10 there) as class 0.

    Parameters
    ----------
    data : bytes
        The whole file. SciPy reads it, which runs nothing in it but was not written for hostile files: check its
        checksum first.

    Returns
    -------
    images : numpy.ndarray of uint8, shape (sample, 32, 32, 3)
    labels : numpy.ndarray of int64, shape (sample,)

    Raises
    ------
    ValueError
        If this is not a MATLAB file, or has other variables, types, shapes or labels.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(io.BytesIO(data), variable_names=("X", "y"))
    except Exception as error:  # whatever the reader's parts raise
        raise ValueError(f"not a MATLAB file that SciPy can read: {error}") from error
    if missing := {"X", "y"} - set(content):
        raise ValueError(f"MATLAB file lacks the variable {', '.join(sorted(missing))}")
    images, labels = np.asarray(content["X"]), np.asarray(content["y"])
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3) or images.shape[3] == 0:
        raise ValueError(f"X must be bytes of shape (32, 32, 3, sample), got {images.dtype} of shape {images.shape}")
    if labels.dtype.kind not in "iu" or labels.shape != (images.shape[3], 1):
        raise ValueError(
            f"y must be integers of shape ({images.shape[3]}, 1), got {labels.dtype} of shape {labels.shape}"
        )
    if not 1 <= labels.min() <= labels.max() <= 10:
        raise ValueError(f"y must lie in 1 to 10, got {labels.min()} to {labels.max()}")
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels[:, 0].astype(np.int64) % 10
