"""Peak memory of training steps: bounded by the cost model, and under low-rank rules by backpropagation plus Q and P.

NumPy tells tracemalloc of every buffer. What was there before the first step counts too: weights, feedback arrays and
the optimiser's state; the batch does not.
"""

import gc
import math
import tracemalloc

import numpy as np
import pytest

from linfb import rules
from linfb._threads import threads
from linfb._workspace import PAGE
from linfb.backend import Key
from linfb.engine import (
    Bias,
    Conv2d,
    Dense,
    GlobalAveragePool,
    MaxPool2d,
    Model,
    Optimizers,
    ReLU,
    adam,
    cost,
    cross_entropy,
    mlp,
    vit,
)  # fmt: skip
from linfb.engine.losses import one_hot
from linfb.engine.state import initial_state, step
from linfb.rules import mirrors, readers

BATCH = 16
OPTIMISERS = Optimizers(adam(1e-3))


def convolutional():
    layers, below = [], 3
    for i, width in enumerate((16, 32)):
        layers += [MaxPool2d(2)] if i else []
        for _ in range(2):
            layers += [Conv2d(below, width, 3, padding=1), Bias(width), ReLU()]
            below = width
    return Model((*layers, GlobalAveragePool(), Dense(32, 10), Bias(10)), (16, 16, 3))


def transformer():
    return vit((16, 16, 3), 10, width=32, depth=1, heads=4, mlp_ratio=4, dropout=0.0, drop_path=0.0)


PATCHES = 4 * 2**19  # bytes of a block of patches, at most
# A step of backpropagation takes so many times the bytes that the cost model counts (what is more are outputs and
# errors on their way, in a workspace that keeps memory for each size), and scratch.
NETWORKS = {
    "mlp": (lambda: mlp(256, (128, 128, 128), 10), 1.2, 0),
    "convolutional": (convolutional, 2.2, 3 * PATCHES),
    "transformer": (transformer, 2.0, 0),
}
LOW_RANK = {
    "the paper's rule": rules.low_rank(1 / 8),
    "only Q learns": rules.low_rank(1 / 8, reader=readers.Fixed()),
    "nothing learns": rules.low_rank(1 / 8, reader=readers.Fixed(), mirror=mirrors.Fixed()),
    "local": rules.local(1 / 8),
    "normative": rules.normative(1 / 8),
}


def peak(model, rule, extra=None):
    """Return the most bytes held at once in two steps, from an empty start; `extra` is called in the second."""
    rng = np.random.default_rng(0)
    x = rng.random((BATCH, *model.shape), dtype=np.float32)
    targets = one_hot(rng.integers(0, 10, BATCH), 10, like=x)
    tracemalloc.start()
    try:
        with threads(1):
            return _peak(model, rule, x, targets, extra)
    finally:
        tracemalloc.stop()


def _peak(model, rule, x, targets, extra):
    state = initial_state(model, rule, OPTIMISERS, 0, lambda array: array.astype(np.float32))[0]
    gc.collect()
    tracemalloc.reset_peak()
    for number in (1, 2):
        held = extra() if extra else None
        state, _, _ = step(model, rule, cross_entropy, OPTIMISERS, state, x, targets, number=number, key=Key(0))
        del held
    return tracemalloc.get_traced_memory()[1]


def counted(model, rule):
    return cost(model, rule, batch_size=BATCH, optimizer=OPTIMISERS).memory


def allowance(model, scratch):
    """Return the bytes of one copy of the largest error and kernel, which a reader and mirror may hold, and scratch.

    What they hold besides comes in whole pages.
    """
    error = max(math.prod(model.shapes[i + 1]) for i in model.kernels)
    kernel = max(math.prod(model.layers[i].kernel_shape) for i in model.kernels[1:])
    return 4 * (BATCH * error + kernel) + PAGE * len(model.layers) + scratch


@pytest.fixture(scope="module")
def backpropagation():
    """Return the model, and its peak under backpropagation, by name; compiled code is loaded first."""
    made = {name: make() for name, (make, _, _) in NETWORKS.items()}
    for model in made.values():
        peak(model, rules.low_rank(2))
    return {name: (model, peak(model, rules.backpropagation())) for name, model in made.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_backpropagation_needs_a_known_multiple_of_what_it_must_keep(name, backpropagation):
    model, found = backpropagation[name]
    data = 4 * BATCH * math.prod(model.shape)  # counted as kept, but not allocated in a step
    needed = counted(model, rules.backpropagation()).total
    _, times, scratch = NETWORKS[name]
    assert needed - data <= found <= times * needed + scratch


@pytest.mark.parametrize("rule", LOW_RANK)
@pytest.mark.parametrize("name", NETWORKS)
def test_low_rank_rules_need_no_more_than_backpropagation_and_their_own_arrays(name, rule, backpropagation):
    model, bp = backpropagation[name]
    narrow = 2 if rule == "local" else 1  # convolutions through Q: of the error, and of the activity
    scratch = narrow * PATCHES if name == "convolutional" else 0
    own = counted(model, LOW_RANK[rule]).total - counted(model, rules.backpropagation()).total
    assert peak(model, LOW_RANK[rule]) <= bp + own + allowance(model, scratch)


def test_the_bound_sees_one_more_copy_of_the_activations(backpropagation):
    model, bp = backpropagation["transformer"]
    rule = LOW_RANK["the paper's rule"]
    own = counted(model, rule).total - counted(model, rules.backpropagation()).total
    more = int(counted(model, rule).activations)
    wasteful = peak(model, rule, lambda: np.ones(more, np.uint8))
    assert wasteful > bp + own + allowance(model, 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_direct_rules_hold_the_errors_of_branches_apart(name, backpropagation):
    model, bp = backpropagation[name]
    rule = rules.direct_low_rank(2)
    own = counted(model, rule).total - counted(model, rules.backpropagation()).total
    errors = sum(4 * BATCH * math.prod(model.shapes[i]) for i in model.kernels[1:])
    scratch = PATCHES if name == "convolutional" else 0
    assert peak(model, rule) <= bp + own + errors + allowance(model, scratch)
