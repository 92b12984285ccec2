"""The cost model against hand counts, and against the products that an instrumented step takes under every rule."""

import itertools
import math

import array_api_strict
import numpy as np
import pytest

from linfb import rules
from linfb.backend import Key
from linfb.engine import (
    BatchNorm,
    Bias,
    Conv2d,
    Dense,
    GlobalAveragePool,
    LayerNorm,
    MaxPool2d,
    Model,
    Optimizers,
    ReLU,
    TokenEmbedding,
    adam,
    cost,
    decoder,
    mlp,
    muon,
    residual,
    resnet20,
    sgd,
    squared_error,
    vgg_like,
    vit,
)  # fmt: skip
from linfb.engine.backward import pathways
from linfb.engine.costs import Parts, Work
from linfb.engine.layers.precision import cast
from linfb.engine.state import initial_state, step
from linfb.engine.trees import flatten
from linfb.rules import Rule, mirrors, readers, resolve_rank

STEP = {"batch_size": 128, "optimizer": sgd(0.1, momentum=0.9)}
BP = rules.backpropagation()
MOVELESS = {"reader": readers.Fixed(), "mirror": mirrors.Fixed()}


def four_convolutions(norm=Bias):
    layers, below = [], 3
    for i, width in enumerate((64, 128)):
        layers += [MaxPool2d(2)] if i else []
        for _ in range(2):
            layers += [Conv2d(below, width, 3, padding=1), norm(width), ReLU()]
            below = width
    return Model((*layers, GlobalAveragePool(), Dense(128, 10), Bias(10)), (32, 32, 3))


def small_vit():
    return vit((32, 32, 3), 10, width=128, depth=4, heads=4, mlp_ratio=4, dropout=0.0, drop_path=0.0)


def saving(model, rule, **changes):
    settings = STEP | changes
    return cost(model, rule, **settings).net_saving(cost(model, BP, **settings))


@pytest.mark.parametrize(
    ("model", "gigaflops"), [(mlp(3072, (512,) * 3, 10), 1.21), (four_convolutions(), 73.4), (small_vit(), 42.8)]
)
def test_steps_of_backpropagation_have_the_known_number_of_operations(model, gigaflops):
    flops = cost(model, BP, **STEP).total.flops / 1e9
    assert flops == pytest.approx(gigaflops, abs=0.05 if gigaflops > 2 else 0.005)  # what rounding leaves open
    with_first = flops + cost(model, BP, **STEP).layers[0].forward.flops / 1e9
    assert with_first != pytest.approx(gigaflops, abs=0.05 if gigaflops > 2 else 0.005)  # no error into the data


def test_the_wide_network_for_cifar():
    model, n = mlp(3072, (512,) * 3, 10), 128
    bp = cost(model, BP, **STEP).total
    products = 2 * 3072 * 512 + 3 * (2 * 512 * 512 + 512 * 10)
    assert bp.flops == 2 * n * products
    assert round(100 * bp.transport.flops / bp.flops) == 11
    low = cost(model, rules.low_rank(64), **STEP).total
    r, out = 64, (512, 512, 10)
    ranks = [min(r, width) for width in out]
    assert low.transport.flops == sum(2 * n * r * (512 + width) for r, width in zip(ranks, out, strict=True))
    of_Q = [2 * r * 512 * min(n, width) for r, width in zip(ranks, out, strict=True)]
    of_P = [2 * r * (n * width + r * min(n, width) + r * width) for r, width in zip(ranks, out, strict=True)]
    assert low.feedback_learning.flops == sum(of_Q) + sum(of_P)
    assert saving(model, rules.low_rank(64)) == pytest.approx(0.047, abs=5e-4)  # to the digits of the hand count
    assert saving(model, rules.low_rank(64)) < saving(model, rules.low_rank(64, **MOVELESS)) - 0.02  # learning counts


def test_the_savings_of_transformers():
    assert saving(small_vit(), rules.low_rank(16)) == pytest.approx(0.180, abs=5e-4)
    model = vit((32, 32, 3), 10)  # the paper's: 384 wide, 8 deep
    for rank, share in ((32, 0.264), (48, 0.229), (64, 0.194)):
        settings = STEP | {"batch_size": 256}
        low, bp = (cost(model, rule, **settings).total for rule in (rules.normative(rank), BP))
        of_kernels = [sum(p.flops for p in (t.forward, t.weight_gradient, t.transport)) for t in (low, bp)]
        assert 1 - of_kernels[0] / of_kernels[1] == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize(("n_in", "n_out"), [(512, 512), (300, 60)])
def test_a_channel_that_only_carries_breaks_even_where_the_harmonic_mean_says(n_in, n_out):
    model, even = Model((Dense(7, n_in), Dense(n_in, n_out))), 1 / (1 / n_in + 1 / n_out)
    for rank, gains in ((math.ceil(even) - 1, True), (math.floor(even) + 1, False)):
        assert (saving(model, rules.low_rank(rank, **MOVELESS)) > 0) is gains
    if even == int(even):
        assert saving(model, rules.low_rank(int(even), **MOVELESS)) == 0
    assert saving(model, rules.low_rank(1, **MOVELESS)) < 1 / 3


def test_zero_feedback_saves_all_transport_and_attention_is_charged_to_all():
    bp = cost(small_vit(), BP, **STEP).total
    zero = cost(small_vit(), rules.zero_feedback(), **STEP).total
    assert zero.transport.flops == zero.feedback_learning.flops == 0
    assert zero.flops == bp.flops - bp.transport.flops
    assert zero.attention == bp.attention
    assert bp.attention.flops == 12 * 128 * 4 * 65**2 * 128


# ---------------------------------------------------------------------------------------------------------------------
# Counting. The plain way through the array-API standard writes every product as `a @ b`.


class Products:
    """Counts operations of `a @ b` on strict arrays."""

    def __init__(self, monkeypatch):
        self.flops = 0
        array = type(array_api_strict.ones(1))
        multiply, look_up = array.__matmul__, TokenEmbedding.grad

        def counted(a, b):
            result = multiply(a, b)
            self.flops += 2 * math.prod(result.shape) * a.shape[-1]
            return result

        def not_counted(*args):  # a sum of errors by token, which the plain way writes as a product
            before, result = self.flops, look_up(*args)
            self.flops = before
            return result

        monkeypatch.setattr(array, "__matmul__", counted)
        monkeypatch.setattr(TokenEmbedding, "grad", not_counted)


def perceptron():
    return Model((Dense(6, 5), Bias(5), ReLU(), Dense(5, 7), BatchNorm(7), ReLU(), Dense(7, 4), Bias(4)))


def convolutional():
    branch = (Conv2d(5, 6, 3, stride=2, padding=1), Bias(6), ReLU(), Conv2d(6, 6, 3, padding=1))
    return Model(
        (Conv2d(2, 5, 3, padding=1), ReLU(), *residual(*branch, shortcut=(Conv2d(5, 6, 1, stride=2),)), MaxPool2d(2),
         LayerNorm(6), GlobalAveragePool(), Dense(6, 4)),
        (4, 4, 2),
    )  # fmt: skip


NETWORKS = {
    "perceptron": perceptron,
    "convolutional": convolutional,
    "vit": lambda: vit((8, 8, 2), 4, patch=4, width=6, depth=1, heads=2, dropout=0.2, drop_path=0.0),
    "decoder": lambda: decoder(4, 5, width=6, depth=1, heads=2),
}


def cells():
    sources = ("above", "network", "hidden")
    identity = (readers.Identity(),)
    compressing = (
        readers.Fixed(), readers.Oja(), readers.Oja(on="labels"), readers.Oja(covariance="normalised"),
        readers.SimilarityMatching(), readers.SimilarityMatching(on="labels"), readers.Local(), readers.Normative(),
    )  # fmt: skip
    ways = (
        mirrors.Exact(), mirrors.Zero(), mirrors.Sign(), mirrors.Sign("fixed"), mirrors.Fixed(),
        mirrors.KolenPollack(), mirrors.WeightMirror(), mirrors.WeightMirror(probes=2), mirrors.Normative(),
    )  # fmt: skip
    for source, reader, mirror in itertools.product(sources, identity + compressing, ways):
        try:
            yield Rule("cell", source, reader, mirror, rank=2 if reader.compresses else None)
        except ValueError:
            continue


CELLS = list(cells())
NAMED = [
    BP, rules.zero_feedback(), rules.feedback_alignment(), rules.feedback_alignment(rank=2), rules.sign_symmetry(),
    rules.kolen_pollack(), rules.weight_mirror(), rules.low_rank(2), rules.low_rank(0.5), rules.local(2),
    rules.normative(2), rules.direct_feedback_alignment(), rules.direct_low_rank(2),
]  # fmt: skip


def solved(model, rule):
    """Return the operations of linear systems, which are no products."""
    if rule.reader.name != "similarity_matching":
        return 0.0
    ways, flops = pathways(model, rule), 0.0
    for k in range(1, len(ways)):
        n_out = ways[k].kernel_shape[0]
        rank, _ = resolve_rank(rule.rank, k, n_out, getattr(ways[k], "blocks", 1))
        flops += 2 / 3 * rank**3 + 2 * rank**2 * n_out
    return flops


def counted(monkeypatch, model, rule, batch):
    """Return the operations in the products of one step."""
    optimisers = Optimizers(sgd(0.01))
    state, _ = initial_state(model, rule, optimisers, 0, array_api_strict.asarray)
    rng = np.random.default_rng(0)
    tokens = isinstance(model.layers[0], TokenEmbedding)
    shape = (batch, *model.shape)
    x = rng.integers(0, 5, shape) if tokens else rng.standard_normal(shape)
    targets = rng.random((batch, *model.shapes[-1]))
    with monkeypatch.context() as patch:
        products = Products(patch)
        step(
            model, rule, squared_error, optimisers, state, array_api_strict.asarray(x),
            array_api_strict.asarray(targets), number=1, key=Key(0),
        )  # fmt: skip
    return products.flops


@pytest.mark.parametrize(
    ("network", "batch", "which"),
    [
        ("perceptron", 2, CELLS),
        ("convolutional", 2, [rule for rule in CELLS if rule.source == "above"]),
        *((network, 9, NAMED) for network in NETWORKS),
    ],
)
def test_the_count_is_that_of_an_instrumented_step(network, batch, which, monkeypatch):
    model, seen = NETWORKS[network](), 0
    for rule in which:
        try:
            pathways(model, rule)
        except ValueError:  # the error has positions that the inputs do not share
            continue
        expected = cost(model, rule, batch_size=batch, optimizer=sgd(0.01)).total.flops
        found = counted(monkeypatch, model, rule, batch)
        # thirds of the linear systems' operations are no binary fractions
        assert found == pytest.approx(expected - solved(model, rule), rel=1e-12), rule
        seen += 1
    assert seen > 0.7 * len(which)


def test_the_counter_sees_a_transport_into_the_first_layer(monkeypatch):
    model = perceptron()
    found = counted(monkeypatch, model, BP, 3)
    assert found == cost(model, BP, batch_size=3, optimizer=sgd(0.01)).total.flops
    lower = Model((Dense(6, 6), *model.layers))
    assert counted(monkeypatch, lower, BP, 3) - found == 2 * 3 * (2 * 6 * 6 + 5 * 6)  # two of its own, one of the next


def test_rules_for_some_layers_count_backpropagation_elsewhere():
    model, settings = mlp(8, (8, 8, 8), 8), STEP | {"batch_size": 4}
    one = cost(model, rules.low_rank(2, layers=[2]), **settings)
    all_of_them, bp = (cost(model, rule, **settings) for rule in (rules.low_rank(2), BP))
    kernels = model.kernels
    assert one.layers[kernels[2]] == all_of_them.layers[kernels[2]]
    assert all(one.layers[kernels[k]] == bp.layers[kernels[k]] for k in (0, 1, 3))


# ---------------------------------------------------------------------------------------------------------------------
# Bytes.


def test_bytes_of_a_dense_layer_by_hand():
    model = Model((Dense(3, 4), Dense(4, 2)))
    plain = cost(model, BP, batch_size=5, optimizer=sgd(0.1)).layers[1]
    assert plain.forward.bytes == plain.weight_gradient.bytes == plain.transport.bytes == 4 * (5 * 4 + 4 * 2 + 5 * 2)
    assert plain.optimiser == Work(bytes=4 * 3 * 8)
    double = cost(model, BP, batch_size=5, optimizer=adam(), dtype="float64").layers[1]
    assert double.forward.bytes == 2 * plain.forward.bytes
    assert double.optimiser == Work(bytes=8 * 7 * 8)
    low = cost(model, rules.low_rank(1), batch_size=5, optimizer=sgd(0.1)).layers[1]
    assert low.transport.bytes == 4 * ((5 * 2 + 2 + 5) + (5 * 4 + 4 + 5))
    assert low.optimiser.bytes == 4 * 3 * (8 + 4 + 2)


def test_slots_are_counted_for_what_learns_and_muon_multiplies():
    model = mlp(6, (8,), 4, norm=None)
    learned = 6 * 8 + 8 * 4
    offsets = 8 + 4
    fixed = cost(model, rules.low_rank(2, **MOVELESS), batch_size=1, optimizer=adam())
    moving = cost(model, rules.low_rank(2), batch_size=1, optimizer=adam())
    assert fixed.memory.slots == 4 * 2 * (learned + offsets)
    assert moving.memory.slots - fixed.memory.slots == 4 * 2 * (2 * 8 + 2 * 4)
    assert moving.memory.channels == fixed.memory.channels == 4 * (2 * 8 + 2 * 4)
    apart = cost(model, rules.low_rank(2), batch_size=1, optimizer=Optimizers(adam(), Q=sgd(0.1), P=sgd(0.1)))
    assert apart.memory.slots == fixed.memory.slots
    products = cost(model, BP, batch_size=1, optimizer=muon(steps=3)).total.optimiser.flops
    assert products == 3 * (2 * 6 * 6 * 8 * 2 + 2 * 6**3 + 2 * 4 * 4 * 8 * 2 + 2 * 4**3)
    clipped = cost(model, BP, batch_size=1, optimizer=Optimizers(sgd(0.1), clip_norm=1.0)).loss
    assert clipped.optimiser.bytes == 3 * 4 * (learned + offsets)


@pytest.mark.parametrize("rule", [BP, rules.low_rank(2), rules.low_rank(2, mirror=mirrors.Sign("fixed"))])
@pytest.mark.parametrize("network", NETWORKS)
def test_arrays_are_those_of_a_run(network, rule):
    model = NETWORKS[network]()
    state, _ = initial_state(model, rule, Optimizers(adam()), 0, np.asarray)
    held = {name: 8 * sum(array.size for array in flatten(getattr(state, name)).values())
            for name in ("weights", "channels", "slots")}  # fmt: skip
    memory = cost(model, rule, batch_size=3, optimizer=adam(), dtype="float64").memory
    assert {name: getattr(memory, name) for name in held} == held
    assert memory.gradients == memory.slots / 2


def test_low_precision_halves_the_bytes_of_products_alone():
    model = perceptron()
    low = cost(Model(cast(model.layers, "bfloat16"), model.shape), BP, **STEP)
    full = cost(model, BP, **STEP)
    assert low.total.forward == Work(full.total.forward.flops, full.total.forward.bytes / 2)
    assert low.total.rest == full.total.rest


def test_time_is_that_of_the_ceiling_each_part_meets():
    model = mlp(512, (512, 512, 512), 512, norm=None)
    bp, low = (cost(model, rule, **STEP) for rule in (BP, rules.low_rank(64)))
    assert bp.seconds(1e9, 1e30) == pytest.approx(bp.total.flops / 1e9, rel=1e-12)
    assert bp.seconds(1e30, 1e9) == pytest.approx(bp.total.bytes / 1e9, rel=1e-12)
    flops, memory = 1e11, 2e10
    saved = 1 - low.seconds(flops, memory) / bp.seconds(flops, memory)
    assert 0 < saved < low.net_saving(bp)  # what waits for memory is saved by neither
    assert Work(2.0, 3.0).seconds(1.0, 1.0) == 3.0
    assert (Parts(forward=Work(1.0)) + Parts(rest=Work(bytes=2.0))).bytes == 2.0


@pytest.mark.parametrize("model", [resnet20((32, 32, 3), 10), vgg_like((32, 32, 3), 10)])
def test_every_layer_of_the_architectures_has_work_or_is_known_to_have_none(model):
    counted_layers = cost(model, BP, **STEP).layers
    assert len(counted_layers) == len(model.layers)
    assert all(parts.flops > 0 for layer, parts in zip(model.layers, counted_layers, strict=True)
               if hasattr(layer, "kernel_shape"))  # fmt: skip


def test_a_layer_of_ones_own_passes_once_each_way():
    class Square:
        def out_shape(self, shape):
            return shape

        def initial_weights(self, rng):
            return None

    model = Model((Dense(3, 4), Square(), Dense(4, 2)))
    assert cost(model, BP, batch_size=5, optimizer=sgd(0.1)).layers[1].rest.bytes == 4 * 4 * 20


def test_bad_arguments_are_named():
    model = mlp(4, (4,), 2)
    with pytest.raises(TypeError, match="model"):
        cost(None, BP, **STEP)
    with pytest.raises(TypeError, match="rule"):
        cost(model, "bp", **STEP)
    with pytest.raises(ValueError, match="batch_size"):
        cost(model, BP, batch_size=0, optimizer=sgd(0.1))
    with pytest.raises(ValueError, match="dtype"):
        cost(model, BP, **STEP, dtype="float16")
    with pytest.raises(TypeError, match="optimizer"):
        cost(model, BP, batch_size=1, optimizer=None)
    with pytest.raises(ValueError, match="gemm_flops_per_s"):
        cost(model, BP, **STEP).seconds(0.0, 1.0)

    class Own(mirrors.Fixed):
        name = "own"

    with pytest.raises(ValueError, match="mirror"):
        cost(model, rules.feedback_alignment(mirror=Own()), **STEP)
