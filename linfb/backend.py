"""Which array library an array belongs to, moving between them, and named random streams.

The array decides the library: code asks :func:`namespace` and calls what it returns. Nothing here is global,
and CuPy is imported only when a device is asked for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from linfb._live import Live, live

__all__ = ["Key", "Keys", "device_namespace", "namespace", "reshape", "stream", "to_numpy", "transpose"]

Array = Any
"""An array of any library that follows the array-API standard (NumPy, CuPy)."""


def namespace(*arrays: Any) -> Any:
    """Return the array-API namespace that all `arrays` (None is skipped) belong to.

    Raises
    ------
    TypeError
        If the arrays belong to different libraries, or one is not an array at all.

    Examples
    --------
    >>> import numpy as np
    >>> namespace(np.ones(2)).sum(np.ones(2))
    np.float64(2.0)
    """
    from array_api_compat import array_namespace

    present = [array for array in arrays if array is not None]
    kinds = {type(array).__module__.split(".")[0] for array in present}
    if len(kinds) > 1:
        raise TypeError(
            f"arrays of different libraries ({', '.join(sorted(kinds))}) cannot be combined; move them to one device "
            "first, for example with linfb.backend.to_numpy"
        )
    try:
        return array_namespace(*present)
    except TypeError as error:
        raise TypeError(f"expected arrays, got {[type(array).__name__ for array in present]}") from error


def device_namespace(device: str | ModuleType) -> Any:
    """Return the array namespace of a device: "cpu" (NumPy), "gpu" (CuPy), or an array-API module itself.

    Raises
    ------
    ValueError
        For another name.
    ImportError
        If "gpu" is asked for and CuPy is not installed.
    RuntimeError
        If CuPy is installed and finds no usable device.
    """
    if isinstance(device, ModuleType):
        if not all(hasattr(device, name) for name in ("asarray", "matmul", "linalg")):
            raise ValueError(f"device must be 'cpu', 'gpu' or an array-API module, got the module {device.__name__!r}")
        return device
    if device == "cpu":
        return import_module("array_api_compat.numpy")
    if device == "gpu":
        try:
            import cupy
        except ImportError as error:
            raise ImportError(
                "device='gpu' needs CuPy: install the extra that fits your driver, linfb[cuda12] or linfb[cuda13]"
            ) from error
        if not cupy.cuda.is_available():
            raise RuntimeError("device='gpu' was asked for, but CuPy finds no usable CUDA device")
        return import_module("array_api_compat.cupy")
    raise ValueError(f"device must be 'cpu', 'gpu' or an array-API module, got {device!r}")


def to_numpy(array: Any) -> np.ndarray:
    """Return `array` as a NumPy array on the host (no copy if it is one already)."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "get"):  # CuPy
        return array.get()
    return np.asarray(array)


def stream(seed: int, *names: str | int | Live) -> np.random.Generator:
    """Return the random generator of one purpose: the same `seed` and `names` always give the same draws.

    Streams with different names are independent, so that adding a draw to one purpose does not change another.

    Parameters
    ----------
    seed : int
        Non-negative seed of the whole run.
    *names : str or int
        What the stream is for, from the general to the particular, e.g. ``stream(0, "weights", 1)``.

    Examples
    --------
    >>> bool(stream(0, "weights").random() == stream(0, "weights").random())
    True
    >>> bool(stream(0, "weights").random() == stream(0, "feedback").random())
    False
    """
    from linfb._checks import integer

    seed = integer("seed", seed, at_least=0)
    digest = _digest(*names)
    key = tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _digest(*names: str | int | Live) -> bytes:
    if any(isinstance(name, Live) for name in names):
        raise TypeError("a captured step cannot draw on the host: what does must say capturable = False")
    return hashlib.sha256("/".join(f"{type(name).__name__}:{name}" for name in names).encode()).digest()


def _state(*names: str | int | Live) -> int:
    return int.from_bytes(_digest(*names)[:8], "little")


@dataclass(frozen=True)
class Key:
    """A place in the random numbers of a run: the same place gives the same numbers, on every device, in any order.

    What changes from step to step (dropout, augmentation, noise through mirrors) draws from a counter-based generator
    at a place named by purpose and step, so that a resumed run draws what it would have drawn.

    Parameters
    ----------
    seed : int
        Non-negative seed of the whole run.
    names : tuple of str or int
        What the numbers are for, as for :func:`stream`; in a captured step some are live (:mod:`linfb._live`).

    Examples
    --------
    >>> import numpy as np
    >>> key = Key(0).at("dropout", 7)
    >>> float(key.uniform((), like=np.ones(1))) == float(key.uniform((), like=np.ones(1)))
    True
    """

    seed: int
    names: tuple[str | int | Live, ...] = ()

    def at(self, *names: str | int | Live) -> Key:
        """Return the place of these names below this one."""
        return Key(self.seed, (*self.names, *names))

    def host(self) -> np.random.Generator:
        """Return a generator of NumPy for this place, for draws on the host, which no captured step can make."""
        return stream(self.seed, *self.names)

    def uniform(self, shape: tuple[int, ...], like: Any) -> Any:
        """Return independent uniform numbers in [0, 1), an array of the library and precision of `like`."""
        from linfb.kernels import suited

        return suited("random", like).uniform(live(_state, "key", self.seed, *self.names), shape, like)

    def normal_like(self, array: Any) -> Any:
        """Return independent standard normal numbers, an array like `array`."""
        return self.normal(array.shape, array)

    def normal(self, shape: tuple[int, ...], like: Any) -> Any:
        """Return independent standard normal numbers, by the transform of Box and Muller."""
        xp = namespace(like)
        radius = xp.sqrt(-2 * xp.log1p(-self.at("radius").uniform(shape, like)))
        return radius * xp.cos(2 * np.pi * self.at("angle").uniform(shape, like))


@dataclass(frozen=True)
class Keys:
    """The places of several runs: what is drawn has a leading run axis, and each run draws what it would draw alone.

    Parameters
    ----------
    seeds : tuple of int
        One per run.
    names : tuple of str or int
        As for :class:`Key`.
    """

    seeds: tuple[int, ...]
    names: tuple[str | int | Live, ...] = ()

    @property
    def keys(self) -> tuple[Key, ...]:
        """The place of each run."""
        return tuple(Key(seed, self.names) for seed in self.seeds)

    def at(self, *names: str | int | Live) -> Keys:
        """Return the places of these names below these ones."""
        return Keys(self.seeds, (*self.names, *names))

    def uniform(self, shape: tuple[int, ...], like: Any) -> Any:
        """Return independent uniform numbers in [0, 1), ``(run, *shape)``."""
        return namespace(like).stack([key.uniform(shape, like) for key in self.keys])

    def normal(self, shape: tuple[int, ...], like: Any) -> Any:
        """Return independent standard normal numbers, ``(run, *shape)``."""
        return namespace(like).stack([key.normal(shape, like) for key in self.keys])

    def normal_like(self, array: Any) -> Any:
        """Return independent standard normal numbers, an array like `array`, whose first axis is that of runs."""
        return self.normal(array.shape[1:], array)


def reshape(array: Array, *shape: int) -> Array:
    """Return `array` with another shape; the standard has this as a function only, arrays of most libraries know it."""
    return array.reshape(shape) if hasattr(array, "reshape") else namespace(array).reshape(array, shape)


def transpose(array: Array) -> Array:
    """Return `array` with its last two axes exchanged, shape (..., b, a) from (..., a, b)."""
    return array.mT if hasattr(array, "mT") else array.swapaxes(-1, -2)
