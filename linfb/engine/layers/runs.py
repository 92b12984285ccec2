"""Networks side by side: every array has a run axis first, and each layer does all runs in one call.

Most layers of perceptrons take such arrays as they are (they say ``ensemble = True``). The others are wrapped: each run
is done by itself, several at a time on the threads of :mod:`linfb._threads`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from linfb._threads import for_slices
from linfb._workspace import empty
from linfb.backend import Keys, namespace
from linfb.engine.models import Model, is_kernel, is_mark

__all__ = ["Runs", "joined", "side_by_side"]


@dataclass(frozen=True)
class Runs:
    """A layer of several networks, run by run: everything is what it is for each run alone.

    Parameters
    ----------
    layer : layer
    runs : int
        Number of networks; it is the first axis of weights and activities.
    axes : int
        Number of axes of one sample at the input. An input without run axis is the same for all runs.

    Examples
    --------
    >>> from linfb.engine.layers import Flatten
    >>> Runs(Flatten(), 2, 2).forward(None, np.ones((2, 5, 3, 4)))[0].shape
    (2, 5, 12)
    """

    layer: Any
    runs: int
    axes: int
    ensemble: ClassVar[bool] = True

    def __getattr__(self, name: str) -> Any:
        if name == "layer" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.layer, name)

    def forward(self, weights: Any, x: Any, key: Keys | None = None) -> tuple[Any, Any]:
        """Return the output; and the caches of all runs, for kernel layers (whose cache is an array) as one array."""
        own, keys = self._inputs(x), [()] * self.runs if key is None else [(one,) for one in key.keys]

        def one(r: int) -> tuple[Any, Any]:
            return self.layer.forward(_at(weights, r), own(r), *keys[r])

        outputs, caches = zip(*self._each(one), strict=True)
        if not is_kernel(self.layer):
            return joined(outputs), caches
        return joined(outputs), x if all(cache is own(r) for r, cache in enumerate(caches)) else joined(caches)

    def grad(self, weights: Any, cache: Any, delta: Any) -> Any:
        """Return the gradient of the weights, or of any kernel."""
        own = self._caches(cache)
        return joined(self._each(lambda r: self.layer.grad(_at(weights, r), own(r), _at(delta, r))))

    def pull(self, weights: Any, cache: Any, delta: Any) -> Any:
        """Return the error at the input."""
        own = self._caches(cache)
        return joined(self._each(lambda r: self.layer.pull(_at(weights, r), own(r), _at(delta, r))))

    def grad_pull(self, weights: Any, cache: Any, delta: Any) -> tuple[Any, Any]:
        """Return the gradient of the weights and the error at the input."""
        own = self._caches(cache)
        pairs = self._each(lambda r: self.layer.grad_pull(_at(weights, r), own(r), _at(delta, r)))
        gradients, errors = zip(*pairs, strict=True)
        return joined(gradients), joined(errors)

    def evaluate(self, weights: Any, buffers: Any, x: Any) -> Any:
        """Return the output in evaluation."""
        own = self._inputs(x)
        if not hasattr(self.layer, "evaluate"):
            return joined(self._each(lambda r: self.layer.forward(_at(weights, r), own(r))[0]))
        return joined(self._each(lambda r: self.layer.evaluate(_at(weights, r), _at(buffers, r), own(r))))

    def update_buffers(self, buffers: Any, cache: Any) -> Any:
        """Return the running averages with one batch more."""
        own = self._caches(cache)
        return joined(self._each(lambda r: self.layer.update_buffers(_at(buffers, r), own(r))))

    def compose(self, P: Any, kernel: Any) -> Any:
        """Return the kernel with its output features mapped by P."""
        return joined(self._each(lambda r: self.layer.compose(_at(P, r), _at(kernel, r))))

    def contract(self, Q: Any, kernel: Any) -> Any:
        """Return the inner products of the output features of two kernels."""
        return joined(self._each(lambda r: self.layer.contract(_at(Q, r), _at(kernel, r))))

    def _each(self, function: Callable[[int], Any]) -> list[Any]:
        return for_slices(lambda r, _: function(r), self.runs, 1)

    def _inputs(self, x: Any) -> Callable[[int], Any]:
        """Return what gives each run its input, the same object whenever it is asked."""
        shared = x.ndim == self.axes + 1
        parts = [x if shared else x[r, ...] for r in range(self.runs)]
        return parts.__getitem__

    def _caches(self, cache: Any) -> Callable[[int], Any]:
        return self._inputs(cache) if is_kernel(self.layer) else cache.__getitem__


def _at(arrays: Any, r: int) -> Any:
    """Return the part of one run of an array, or of a dict of arrays."""
    if isinstance(arrays, dict):
        return {name: _at(array, r) for name, array in arrays.items()}
    return None if arrays is None else arrays[r, ...]


def joined(parts: Sequence[Any]) -> Any:
    """Return arrays of all runs as one with a leading run axis; of dicts of arrays a dict, of None None."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, dict):
        return {name: joined([part[name] for part in parts]) for name in first}
    if isinstance(first, np.ndarray):
        return np.stack(parts, out=empty((len(parts), *first.shape), first.dtype))
    return namespace(*parts).stack(list(parts))


def side_by_side(model: Model, runs: int) -> Model:
    """Return several networks of one architecture as one, whose arrays have a run axis first.

    Parameters
    ----------
    model : Model
    runs : int

    Examples
    --------
    >>> from linfb.engine import Conv2d, Dense, Flatten, ReLU
    >>> model = Model((Conv2d(1, 2, 3), ReLU(), Flatten(), Dense(8, 2)), (4, 4, 1))
    >>> [type(layer).__name__ for layer in side_by_side(model, 3).layers]
    ['Runs', 'ReLU', 'Runs', 'Dense']
    """
    layers = (
        layer if is_mark(layer) or getattr(layer, "ensemble", False) else Runs(layer, runs, len(shape))
        for layer, shape in zip(model.layers, model.shapes, strict=False)
    )
    return Model(tuple(layers), model.shape, leading=1)
