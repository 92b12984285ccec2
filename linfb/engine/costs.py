r"""What a training step costs by arithmetic: operations, bytes moved and bytes kept, for every rule alike.

A kernel layer with :math:`n` rows (batch times positions) takes three products of :math:`2\,n\,n_\text{in}n_\text{out}`
operations under backpropagation: forward, weight gradient, transport of the error; the first has no transport. A
channel of rank r transports with :math:`2\,n\,r(n_\text{in} + n_\text{out})` and has to learn Q and P besides.

Counted are the products that a step cannot do without, each once: what is read through P serves the transport, the
mirror and the reader, and Kolen-Pollack's gradient of Q is the cheaper of error times input and
:math:`P\,\nabla W`. Bytes are those of every operand and result once (activations, not patches of them), and for what
is no product, one pass per layer. What is no product counts no operations: it waits for memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from linfb._checks import choice, integer, real
from linfb.engine.backward import pathways
from linfb.engine.layers import (
    GELU,
    Attention,
    BatchNorm,
    Bias,
    ClassToken,
    Dropout,
    Erf,
    Flatten,
    GlobalAveragePool,
    Identity,
    LayerNorm,
    MaxPool2d,
    PositionalEmbedding,
    ReLU,
    StochasticDepth,
    TakeToken,
    Tanh,
    TokenEmbedding,
)  # fmt: skip
from linfb.engine.layers.branches import Fork, Join, Swap
from linfb.engine.layers.precision import Cast
from linfb.engine.models import Model, is_kernel
from linfb.engine.optimisers import Muon, Optimizers
from linfb.engine.trees import flatten
from linfb.rules import Rule
from linfb.rules.channels import resolved_ranks

__all__ = ["Cost", "Memory", "Parts", "Work", "cost"]

READERS = ("identity", "fixed", "oja", "similarity_matching", "local", "normative")
MIRRORS = ("exact", "zero", "sign", "fixed", "kolen_pollack", "weight_mirror", "normative")


@dataclass(frozen=True)
class Work:
    """Operations and traffic of a part of a step.

    Attributes
    ----------
    flops : float
        Floating-point operations in products of matrices, a multiplication and an addition being two.
    bytes : float
        Read and written.
    """

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def seconds(self, gemm_flops_per_s: float, bytes_per_s: float) -> float:
        """Return the longer of the times that operations and traffic take: the roofline."""
        return max(self.flops / gemm_flops_per_s, self.bytes / bytes_per_s)


@dataclass(frozen=True)
class Parts:
    """The parts of a step, of one layer or of all.

    Attributes
    ----------
    forward, weight_gradient, transport : Work
        Products of kernel layers.
    feedback_learning : Work
        What Q and P descend.
    attention : Work
        Products of activations with activations, both ways.
    rest : Work
        Activations, normalisation, offsets, pooling, dropout, sums of branches, softmax, loss: both ways.
    optimiser : Work
        Of weights, Q and P.
    """

    forward: Work = Work()
    weight_gradient: Work = Work()
    transport: Work = Work()
    feedback_learning: Work = Work()
    attention: Work = Work()
    rest: Work = Work()
    optimiser: Work = Work()

    def __add__(self, other: Parts) -> Parts:
        return Parts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def __iter__(self) -> Iterator[Work]:
        return (getattr(self, part.name) for part in fields(self))

    @property
    def flops(self) -> float:
        """Operations in all products."""
        return sum(work.flops for work in self)

    @property
    def bytes(self) -> float:
        """Bytes read and written."""
        return sum(work.bytes for work in self)


@dataclass(frozen=True)
class Memory:
    """Bytes that a step needs at once, but for scratch.

    Attributes
    ----------
    weights, channels : float
        Of the layers; Q, P and lateral connections.
    gradients, slots : float
        Of both; the optimiser's state of both.
    activations : float
        What the forward pass keeps for the way back, each array once.
    """

    weights: float = 0.0
    channels: float = 0.0
    gradients: float = 0.0
    slots: float = 0.0
    activations: float = 0.0

    def __add__(self, other: Memory) -> Memory:
        return Memory(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    @property
    def total(self) -> float:
        """Sum of all."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class Cost:
    """What :func:`cost` returns.

    Attributes
    ----------
    layers : tuple of Parts
        One per layer of the model.
    loss : Parts
        Of the loss and of clipping gradients.
    memory : Memory
    """

    layers: tuple[Parts, ...]
    loss: Parts
    memory: Memory

    @property
    def total(self) -> Parts:
        """The parts of the whole step."""
        return sum(self.layers, start=self.loss)

    def net_saving(self, other: Cost) -> float:
        r"""Return the share of another rule's products that this one saves, :math:`1 - F/F_\text{other}`.

        Parameters
        ----------
        other : Cost
            Of the same model and batch, under backpropagation.
        """
        return 1 - self.total.flops / other.total.flops

    def seconds(self, gemm_flops_per_s: float, bytes_per_s: float) -> float:
        """Return the time of a step whose every part, layer by layer, runs at one of two ceilings.

        Parameters
        ----------
        gemm_flops_per_s : float
            Measured for large products, in the same precision and on as many threads.
        bytes_per_s : float
            Measured for copies into warm memory, what is read and what is written.
        """
        for name, value in (("gemm_flops_per_s", gemm_flops_per_s), ("bytes_per_s", bytes_per_s)):
            real(name, value, above=0.0)
        return sum(work.seconds(gemm_flops_per_s, bytes_per_s) for parts in (*self.layers, self.loss) for work in parts)


def cost(model: Model, rule: Rule, *, batch_size: int, optimizer: Any, dtype: str = "float32") -> Cost:
    """Count one training step of a model under a rule.

    Parameters
    ----------
    model : Model
    rule : Rule
    batch_size : int
    optimizer : Optimizer or Optimizers
    dtype : {"float32", "float64"}
        Of weights, activities and errors; layers under :class:`~linfb.engine.layers.precision.Cast` have their own.

    Returns
    -------
    Cost

    Raises
    ------
    ValueError
        For a reader or mirror whose work is not known (by its `name`).

    Notes
    -----
    What readers learn in every so-manieth step is shared out over all of them.
    Singular value decompositions of mirrors that start again are not counted: they are not part of every step. A
    causal mask saves nothing here, nor does a first layer's sparse input. Checked against hand counts and against the
    products of an instrumented step, under every rule, in ``tests/test_engine_costs.py``; against measured peaks of
    memory in ``tests/test_memory.py``.

    References
    ----------
    The time of the two ceilings: :cite:t:`williams2009`.

    Examples
    --------
    >>> from linfb import rules
    >>> from linfb.engine import mlp, sgd
    >>> step = {"batch_size": 128, "optimizer": sgd(0.1, momentum=0.9)}
    >>> network = mlp(3072, (512, 512, 512), 10)
    >>> bp = cost(network, rules.backpropagation(), **step)
    >>> low = cost(network, rules.low_rank(64), **step)
    >>> print(f"{bp.total.flops / 1e9:.2f} GF, {low.net_saving(bp):.3f} saved")
    1.21 GF, 0.047 saved
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be a linfb.engine.Model, for example mlp(...), got {model!r}")
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a linfb.rules.Rule, for example linfb.rules.backpropagation(), got {rule!r}")
    choice("reader (by its name)", rule.reader.name, READERS)
    choice("mirror (by its name)", rule.mirror.name, MIRRORS)
    size = np.dtype(choice("dtype", dtype, ("float32", "float64"))).itemsize
    optimisers = optimizer if isinstance(optimizer, Optimizers) else Optimizers(optimizer)
    ways = pathways(model, rule)
    blocks = [getattr(way, "blocks", 1) for way in ways]
    ranks = resolved_ranks(rule, [way.kernel_shape[0] for way in ways], blocks)[0]
    step = _Step(model, rule, integer("batch_size", batch_size, at_least=1), size, ways, ranks)
    counted = [(_kernel if is_kernel(layer) else _between)(step, i) for i, layer in enumerate(model.layers)]
    parts, memory = [], Memory()
    for one in counted:
        update, needed = _learning_arrays(one.arrays, optimisers, rule, size)
        parts.append(one.parts + Parts(optimiser=update))
        memory += needed + Memory(activations=one.kept)
    clipping = 0.0 if optimisers.clip_norm is None else 3 * memory.weights
    outputs = batch_size * math.prod(model.shapes[-1])
    loss = Parts(rest=Work(bytes=3 * size * outputs), optimiser=Work(bytes=clipping))
    return Cost(tuple(parts), loss, memory)


@dataclass(frozen=True)
class _Step:
    model: Model
    rule: Rule
    batch: int
    size: int
    ways: Sequence[Any]
    ranks: dict[int, int]

    def layer(self, i: int) -> tuple[Any, int]:
        """Return a layer without a cast, and the bytes of a number in it."""
        layer = self.model.layers[i]
        if not isinstance(layer, Cast):
            return layer, self.size
        return layer.layer, 2 if layer.dtype == "bfloat16" else np.dtype(layer.dtype).itemsize

    def entries(self, i: int) -> int:
        """Return the number of entries at the input of layer i."""
        return self.batch * math.prod(self.model.shapes[i])


class _Counted(NamedTuple):
    """What was counted of a layer; `arrays` are pairs of "W", "Q" or "P" and a shape."""

    parts: Parts
    kept: float
    arrays: list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class _Products:
    """Sizes of a kernel, and of a direct way in its place: rows of the error, widths, entries of the layer's input."""

    rows: int
    n_in: int
    n_out: int
    inputs: int
    size: int

    def product(self, m: int, n: int, k: int) -> Work:
        """Return the work of a product of shapes (m, k) and (k, n)."""
        return Work(2.0 * m * n * k, float(self.size) * (m * k + k * n + m * n))

    def through(self, width: int) -> Work:
        """Return the work of sending all rows through a kernel of so many output features, either way, or its grad."""
        traffic = self.inputs + width * self.n_in + self.rows * width
        return Work(2.0 * self.rows * width * self.n_in, float(self.size) * traffic)

    def read(self, rank: int) -> Work:
        """Return the work of compressing all errors."""
        return self.product(self.rows, rank, self.n_out)

    def across(self, rank: int) -> Work:
        """Return the work of mapping a kernel's output features to `rank` of them."""
        return self.product(rank, self.n_in, self.n_out)


def _kernel(step: _Step, i: int) -> _Counted:
    layer, size = step.layer(i)
    n_out, n_in = layer.kernel_shape[0], math.prod(layer.kernel_shape[1:])
    rows, inputs = step.entries(i + 1) // n_out, step.entries(i)
    sizes = _Products(rows, n_in, n_out, inputs, size)
    arrays = [("W", tuple(layer.kernel_shape))]
    if isinstance(layer, TokenEmbedding):  # a look-up, and sums
        traffic = 2 * size * step.entries(i + 1)
        return _Counted(Parts(rest=Work(bytes=2 * traffic + size * n_in * n_out)), 8 * inputs, arrays)
    parts = Parts(forward=sizes.through(n_out), weight_gradient=sizes.through(n_out))
    k = step.model.kernels.index(i)
    if k > 0:
        rule, way, rank = step.rule.at(k), step.ways[k], step.ranks[k]
        direct = step.rule.direct(k, len(step.ways))
        if direct:
            width = math.prod(way.shape)
            sizes = _Products(inputs // width, width, way.n_error, inputs, size)
        labels = k == len(step.ways) - 1 or (direct and rule.source == "network")
        parts += Parts(
            transport=_transport(rule, sizes, rank),
            feedback_learning=_mirroring(rule, sizes, rank, step.model.layers[i], direct)
            + _reading(rule, sizes, rank, labels and getattr(rule.reader, "on", "errors") == "labels"),
        )
        arrays += _channel(rule, rank, way.kernel_shape)
    return _Counted(parts, float(size * inputs), arrays)


def _channel(rule: Rule, rank: int, kernel: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """Return the feedback arrays of a layer, by the optimiser that moves them."""
    mirror, reader = rule.mirror, rule.reader
    has_Q = mirror.name not in ("exact", "zero", "sign") or getattr(mirror, "magnitude", "") == "fixed"
    arrays = [("Q", (rank, *kernel[1:]))] if has_Q else []
    arrays += [("P", (rank, kernel[0]))] if reader.compresses else []
    return arrays + ([("P", (rank, rank))] if reader.name == "similarity_matching" else [])


def _transport(rule: Rule, sizes: _Products, rank: int) -> Work:
    """Count how a compressed error is made and written to the layer's input."""
    work = Work()
    if rule.reader.name == "similarity_matching":  # the rest of connected units: a linear system
        work += Work(2 / 3 * rank**3 + 2.0 * rank**2 * sizes.n_out, sizes.size * rank * (rank + 2 * sizes.n_out))
    if rule.reader.compresses:
        work += sizes.read(rank)
    if rule.mirror.name == "zero":
        return work + Work(bytes=sizes.size * sizes.inputs)
    if rule.mirror.name in ("exact", "sign") and rule.reader.compresses:
        work += sizes.across(rank)
    if rule.mirror.name == "sign":
        work += Work(bytes=3 * sizes.size * rank * sizes.n_in)
    return work + sizes.through(rank)


def _mirroring(rule: Rule, sizes: _Products, rank: int, layer: Any, direct: bool) -> Work:
    """Count what the gradient of Q takes beyond the transport."""
    mirror, compresses = rule.mirror.name, rule.reader.compresses
    if mirror == "kolen_pollack" and not direct:
        return min(sizes.through(rank), sizes.across(rank), key=_flops) if compresses else Work()
    if mirror == "kolen_pollack":
        return sizes.through(rank)
    if mirror == "normative":  # the residual P^T Q - W, and P times it
        return sizes.across(rank) + sizes.across(rank)
    return _noise(rule, sizes, rank, layer) if mirror == "weight_mirror" else Work()


def _noise(rule: Rule, sizes: _Products, rank: int, layer: Any) -> Work:
    """Count a weight mirror's noise: through the weights, read, and multiplied with what was sent."""
    number, *shape = layer.probes(np, np.float16).shape
    probes, mixing = getattr(rule.mirror, "probes", None), Work()
    if probes is not None:
        number, mixing = probes, sizes.product(probes, math.prod(shape), number)
    rows = number * math.prod(layer.out_shape(tuple(shape))[:-1])
    sent = _Products(rows, sizes.n_in, sizes.n_out, number * math.prod(shape), sizes.size)
    read = sent.read(rank) if rule.reader.compresses else Work()
    return mixing + sent.through(sizes.n_out) + read + sent.through(rank)


def _reading(rule: Rule, sizes: _Products, rank: int, labels: bool) -> Work:
    """Count what the gradients of P, and of connections among the channel's units, take beyond the transport."""
    reader, correlation = rule.reader.name, sizes.product(rank, sizes.n_out, sizes.rows)
    if reader == "normative":  # the residual is the mirror's
        return sizes.across(rank)
    if reader == "local":
        return sizes.through(rank) + correlation
    if reader not in ("oja", "similarity_matching"):
        return Work()
    work = correlation + sizes.product(rank, rank, min(sizes.rows, sizes.n_out))
    if reader == "oja":
        work += sizes.product(rank, sizes.n_out, rank)
    work = work + sizes.read(rank) if labels else work
    every = getattr(rule.reader, "every", 1)
    return Work(work.flops / every, work.bytes / every)


def _flops(work: Work) -> float:
    return work.flops


def _between(step: _Step, i: int) -> _Counted:
    """Count a layer that is no kernel: forward, and the way back where there is one."""
    layer, size = step.layer(i)
    passed = _attention if isinstance(layer, Attention) else _passes
    forward, back, kept = passed(layer, step, i, size)
    initial = flatten({"W": layer.initial_weights(np.random.default_rng(0))})
    arrays = [("W", array.shape) for array in initial.values()]
    if i < step.model.kernels[0]:
        return _Counted(forward, 0.0, arrays)
    return _Counted(forward + back, float(kept), arrays)


def _attention(layer: Attention, step: _Step, i: int, size: int) -> tuple[Parts, Parts, float]:
    tokens, outputs = step.model.shapes[i][0], step.entries(i + 1)
    scores = step.batch * layer.heads * tokens**2
    product = Work(2.0 * tokens * outputs, float(size) * (2 * outputs + scores))
    forward = Parts(attention=product + product, rest=Work(bytes=2 * size * scores))
    back = Parts(attention=product + product + product + product, rest=Work(bytes=3 * size * scores))
    return forward, back, size * (3 * outputs + scores)


def _passes(layer: Any, step: _Step, i: int, size: int) -> tuple[Parts, Parts, float]:
    """Count the bytes of a forward pass and of the way back (pull and grad), and those kept in between."""
    before, after = step.entries(i), step.entries(i + 1)
    x, y, back_to_fork = size * before, size * after, 3 * size * before if step.rule.source == "above" else 0
    forward, back, kept = {
        ReLU: (x + y + after, x + y + after, after),
        GELU: (3 * x, 3 * x, x),
        Tanh: (2 * x, 3 * x, x),
        Erf: (2 * x, 3 * x, x),
        Bias: (2 * x, x, 0),
        BatchNorm: (4 * x, 5 * x, x),
        LayerNorm: (3 * x, 5 * x, x),
        Dropout: (3 * x, 3 * x, x) if getattr(layer, "rate", 0) else (0, 0, 0),
        StochasticDepth: (2 * x, 2 * x, size * step.batch) if getattr(layer, "rate", 0) else (0, 0, 0),
        MaxPool2d: (x + y + after, x + y + after, after),
        GlobalAveragePool: (x + y, x + y, 0),
        PositionalEmbedding: (2 * x, x, 0),
        ClassToken: (x + y, y - x, 0),
        TakeToken: (0, x + y, 0),
        Flatten: (0, 0, 0),
        Identity: (0, 0, 0),
        Fork: (0, back_to_fork, 0),
        Swap: (0, 0, 0),
        Join: (3 * x, 0, 0),
    }.get(type(layer), (x + y, x + y, x))
    return Parts(rest=Work(bytes=float(forward))), Parts(rest=Work(bytes=float(back))), kept


def _learning_arrays(
    arrays: list[tuple[str, tuple[int, ...]]], optimisers: Optimizers, rule: Rule, size: int
) -> tuple[Work, Memory]:
    """Return the work of updating a layer's arrays, and the memory of these, their gradients and optimisers' state."""
    learns = {"W": True, "Q": rule.mirror.learns, "P": rule.reader.learns}
    work, memory = Work(), Memory()
    for kind, shape in arrays:
        total = float(size * math.prod(shape))
        memory += Memory(weights=total) if kind == "W" else Memory(channels=total)
        if learns[kind]:
            optimiser = optimisers.parts(rule)[kind].optimiser
            slots = len(optimiser.init(np.zeros((1,) * len(shape))))
            work += Work(_iteration(optimiser, shape), (3 + 2 * slots) * total)
            memory += Memory(gradients=total, slots=slots * total)
    return work, memory


def _iteration(optimiser: Any, shape: tuple[int, ...]) -> float:
    """Return the operations of Muon's products; other optimisers have none."""
    if not isinstance(optimiser, Muon) or len(shape) < 2:
        return 0.0
    short, long = sorted((shape[0], math.prod(shape[1:])))
    return 2.0 * optimiser.steps * short**2 * (2 * long + short)
