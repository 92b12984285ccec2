"""The networks that are measured, and a training step of ours on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from linfb.backend import Key, Keys
from linfb.engine import BatchNorm, Bias, Conv2d, Dense, GlobalAveragePool, MaxPool2d, Model, Optimizers, ReLU, sgd
from linfb.engine import mlp as perceptron
from linfb.engine import vit as transformer
from linfb.engine.backward import backward
from linfb.engine.fusing import apart, fused
from linfb.engine.layers.runs import side_by_side
from linfb.engine.losses import cross_entropy, one_hot
from linfb.engine.models import forward
from linfb.engine.optimisers import joined
from linfb.engine.state import State, initial_state, stacked_states, step
from linfb.engine.trees import flatten
from linfb.rules import Rule
from tests.benchmarks.measure import distance

RATE, MOMENTUM = 1e-3, 0.9


@dataclass(frozen=True)
class Sizes:
    """How large everything is: as in the goals, or small, for a test of the code."""

    batch: int = 128
    n_in: int = 3072
    widths: tuple[int, ...] = (512, 512, 512)
    image: int = 32
    channels: tuple[int, ...] = (64, 128)
    dim: int = 128
    depth: int = 4
    heads: int = 4
    members: int = 32
    member: tuple[int, ...] = (64, 128, 128, 10)
    member_batch: int = 32
    linear: tuple[int, ...] = (128, 64, 64)
    samples: int = 20000
    times: int = 200
    scaling_width: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    scaling_depth: tuple[int, ...] = (2, 4, 8, 16, 32)
    scaling_batch: tuple[int, ...] = (16, 64, 256, 1024)
    scaling_rank: tuple[int, ...] = (1, 4, 16, 64, 128, 256, 512)
    scaling_members: tuple[int, ...] = (1, 4, 16, 64)
    base: int = 512
    seconds: float = 6.0


FULL = Sizes()
QUICK = Sizes(
    batch=4, n_in=12, widths=(8, 8), image=8, channels=(4, 4), dim=8, depth=1, heads=2, members=2, member=(4, 8, 3),
    member_batch=4, linear=(6, 4, 3), samples=20, times=5, scaling_width=(8, 16), scaling_depth=(2, 3),
    scaling_batch=(4, 8), scaling_rank=(1, 4), scaling_members=(1, 2), base=8, seconds=0.0,
)  # fmt: skip


def mlp(sizes: Sizes, norm: str | None = None) -> Model:
    """Return the perceptron, with offsets or batch normalisation."""
    return perceptron(sizes.n_in, sizes.widths, 10, norm=norm)


def vgg(sizes: Sizes, norm: str | None = None) -> Model:
    """Return pairs of 3x3 convolutions with pooling between them, averages over all places, and a dense layer."""
    layers: list[Any] = []
    below = 3
    for i, width in enumerate(sizes.channels):
        layers += [MaxPool2d(2)] if i else []
        for _ in range(2):
            middle = Bias(width) if norm is None else BatchNorm(width)
            layers += [Conv2d(below, width, 3, padding=1), middle, ReLU()]
            below = width
    return Model((*layers, GlobalAveragePool(), Dense(below, 10), Bias(10)), (sizes.image, sizes.image, 3))


def vit(sizes: Sizes, norm: None = None) -> Model:
    """Return the transformer on patches of 4x4, without dropout."""
    shape = (sizes.image, sizes.image, 3)
    wide = {"width": sizes.dim, "depth": sizes.depth, "heads": sizes.heads, "mlp_ratio": 4}
    return transformer(shape, 10, **wide, dropout=0.0, drop_path=0.0)


def square(width: int, layers: int) -> Model:
    """Return a perceptron whose layers are all of one width, the outputs too."""
    return perceptron(width, (width,) * (layers - 1), width, norm=None)


def batch(model: Model, rows: int, dtype: str = "float32", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels; images are (batch, height, width, channel)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, *model.shape)).astype(dtype)
    return x, rng.integers(0, model.n_out, rows)


def optimiser() -> Optimizers:
    """Return SGD with momentum, that of all rows."""
    return Optimizers(sgd(RATE, momentum=MOMENTUM))


def stepper(model: Model, rule: Rule, x: np.ndarray, labels: np.ndarray, seed: int = 0) -> Callable[[], State]:
    """Return a function that takes one training step after the other and returns the state after it."""
    optimisers, targets = optimiser(), one_hot(labels, model.n_out, like=x)
    state = initial_state(model, rule, optimisers, seed, lambda array: array.astype(x.dtype))[0]
    network, number = fused(model), 0

    def call() -> State:
        nonlocal state, number
        number += 1
        state = step(
            network, rule, cross_entropy, optimisers, state, x, targets, number=number, key=Key(0)
        )[0]  # fmt: skip
        return state

    return call


def gradients(model: Model, rule: Rule, x: np.ndarray, labels: np.ndarray) -> tuple[dict[str, np.ndarray], ...]:
    """Return weights at the start, their gradients on a batch, and those of Q and P: by path, in the layers' order."""
    targets = one_hot(labels, model.n_out, like=x)
    state = initial_state(model, rule, optimiser(), 0, lambda array: array.astype(x.dtype))[0]
    network = fused(model)
    outputs, caches = forward(network, state.weights, x, Key(0))
    delta = cross_entropy(outputs, targets)[1]
    run = backward(network, rule, state.weights, state.channels, caches, delta, targets, key=Key(0))
    return flatten(state.weights), flatten(run.weights), flatten(run.channels)


def ensemble_stepper(
    model: Model, rule: Rule, x: np.ndarray, labels: np.ndarray, members: int
) -> Callable[[], State]:  # fmt: skip
    """Return what :func:`stepper` does for all members of an ensemble: seeds 0 to members - 1, on one batch."""
    optimisers = joined([optimiser()] * members)
    states = [
        initial_state(model, rule, optimiser(), seed, lambda array: array.astype(x.dtype))[0]
        for seed in range(members)
    ]  # fmt: skip
    state, network, number = stacked_states(states, np.array), side_by_side(apart(fused(model)), members), 0
    together = np.broadcast_to(x, (members, *x.shape))
    targets = np.broadcast_to(one_hot(labels, model.n_out, like=x), (members, len(x), model.n_out))
    key = Keys(tuple(range(members)))

    def call() -> State:
        nonlocal state, number
        number += 1
        state = step(
            network, rule, partial(cross_entropy, leading=1), optimisers, state, together, targets, number=number,
            key=key,
        )[0]  # fmt: skip
        return state

    return call


def members_apart(
    model: Model, rule: Rule, x: np.ndarray, labels: np.ndarray, members: int, steps: int, shift: int = 0
) -> float:  # fmt: skip
    """Return how far weights in an ensemble are from those of single runs after so many steps: worst member and array.

    With a `shift` every member is compared with the single run of another, so many places further.
    """
    together = flatten(after(ensemble_stepper(model, rule, x, labels, members), steps).weights)
    worst = 0.0
    for r in range(members):
        alone = flatten(after(stepper(model, rule, x, labels, (r + shift) % members), steps).weights)
        worst = max(worst, distance([together[path][r] for path in alone], list(alone.values())))
    return worst


def after(call: Callable[[], State], steps: int) -> State:
    """Return the state after so many steps."""
    for _ in range(steps - 1):
        call()
    return call()
