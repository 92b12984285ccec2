"""PyTorch in float64 as an independent witness: optimisers over fifty steps, clipping, schedules."""

import numpy as np
import pytest

from linfb.engine.optimisers import adam, adamw, amsgrad, clipped, global_norm, muon, rmsprop, sgd
from linfb.engine.schedules import Constant, Cosine, Exponential, Step, Warmup
from linfb.kernels import cpu_optimisers, reference_optimisers

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")

TOLERANCE = 1e-12

CASES = {
    "sgd": (sgd(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "sgd momentum": (
        sgd(0.1, momentum=0.9, weight_decay=0.01), lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01),
    ),
    "sgd nesterov": (
        sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01, nesterov=True),
    ),
    "rmsprop": (rmsprop(0.01), lambda p: torch.optim.RMSprop(p)),
    "rmsprop settings": (
        rmsprop(0.02, alpha=0.9, epsilon=1e-2, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, 0.02, 0.9, 1e-2, 0.1),
    ),
    "rmsprop momentum": (
        rmsprop(0.01, momentum=0.9, weight_decay=0.1), lambda p: torch.optim.RMSprop(p, momentum=0.9, weight_decay=0.1),
    ),
    "rmsprop centred": (rmsprop(0.01, centred=True), lambda p: torch.optim.RMSprop(p, centered=True)),
    "rmsprop both": (
        rmsprop(0.01, alpha=0.8, centred=True, momentum=0.5),
        lambda p: torch.optim.RMSprop(p, alpha=0.8, centered=True, momentum=0.5),
    ),
    "adam": (adam(0.01, weight_decay=0.1), lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1)),
    "adam settings": (
        adam(0.01, beta1=0.5, beta2=0.7, epsilon=1e-2), lambda p: torch.optim.Adam(p, 0.01, (0.5, 0.7), 1e-2),
    ),
    "adam decoupled": (
        adam(0.01, weight_decay=0.1, decay="decoupled"),
        lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1, decoupled_weight_decay=True),
    ),
    "amsgrad": (
        amsgrad(0.01, beta2=0.8, epsilon=1e-3, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.01, (0.9, 0.8), 1e-3, 0.1, amsgrad=True),
    ),
    "adamw": (adamw(0.01, weight_decay=0.1), lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1)),
    "muon": (muon(0.02), lambda p: torch.optim.Muon(p, 0.02, 0.0)),
    "muon settings": (
        muon(0.02, momentum=0.8, nesterov=False, steps=3, weight_decay=0.1),
        lambda p: torch.optim.Muon(p, 0.02, 0.1, 0.8, False, ns_steps=3),
    ),
}  # fmt: skip


def tensor(array, grad=False):
    return torch.tensor(np.array(array), dtype=torch.float64, requires_grad=grad)


def distance(ours, theirs):
    theirs = theirs.detach().numpy()
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def both(optimiser, theirs, shape, steps=50, kernels=reference_optimisers):
    rng = np.random.default_rng(0)
    value = rng.standard_normal(shape)
    parameter = tensor(value, grad=True)
    other, slots = theirs([parameter]), optimiser.init(value)
    for number in range(1, steps + 1):
        gradient = rng.standard_normal(shape)
        value, slots = optimiser.update(value, gradient, slots, step=number, kernels=kernels)
        parameter.grad = tensor(gradient)
        other.step()
    return value, parameter


@pytest.fixture
def iterates_in_float64(monkeypatch):
    """Keep PyTorch's Muon in the precision it was given; it rounds to bfloat16 before it iterates."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())


@pytest.mark.usefixtures("iterates_in_float64")
@pytest.mark.parametrize("kernels", [reference_optimisers, cpu_optimisers])
@pytest.mark.parametrize("shape", [(4, 5), (7, 3)])
@pytest.mark.parametrize("name", CASES)
def test_optimisers_agree_over_fifty_steps(name, shape, kernels):
    value, parameter = both(*CASES[name], shape, kernels=kernels)
    assert distance(value, parameter) <= TOLERANCE
    assert distance(value * (1 + 1e-11), parameter) > TOLERANCE


def test_muon_agrees_with_the_unchanged_one_within_its_rounding():
    optimiser, theirs = muon(0.02), lambda p: torch.optim.Muon(p, 0.02, 0.0)
    start = both(optimiser, theirs, (6, 8), steps=0)[0]
    value, parameter = both(optimiser, theirs, (6, 8), steps=1)
    moved, difference = np.abs(value - start).max(), np.abs(value - parameter.detach().numpy()).max()
    assert 1e-5 * moved < difference < 0.05 * moved


@pytest.mark.parametrize("limit", [0.1, 3.0, 7.0, 100.0])
def test_clipping_agrees(limit):
    rng = np.random.default_rng(1)
    gradients = {str(i): rng.standard_normal(shape) for i, shape in enumerate([(4, 5), (3,), (2, 3, 3, 2)])}
    parameters = [tensor(np.zeros(gradient.shape), grad=True) for gradient in gradients.values()]
    for parameter, gradient in zip(parameters, gradients.values(), strict=True):
        parameter.grad = tensor(gradient)
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    assert global_norm(gradients) == pytest.approx(norm.item(), rel=1e-14)
    ours = clipped(gradients, limit)
    for parameter, gradient in zip(parameters, ours.values(), strict=True):
        assert distance(gradient, parameter.grad) <= TOLERANCE
        assert distance(gradient * (1 + 1e-11), parameter.grad) > TOLERANCE


SCHEDULERS = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        (Constant(), lambda o: SCHEDULERS.ConstantLR(o, 1.0)),
        (Exponential(0.9), lambda o: SCHEDULERS.ExponentialLR(o, 0.9)),
        (Step(0.3, every=4), lambda o: SCHEDULERS.StepLR(o, 4, 0.3)),
        (Step(0.3, milestones=(3, 5, 11)), lambda o: SCHEDULERS.MultiStepLR(o, [3, 5, 11], 0.3)),
        (Cosine(20), lambda o: SCHEDULERS.CosineAnnealingLR(o, 20)),
        (Warmup(6), lambda o: SCHEDULERS.LinearLR(o, 1 / 7, 1.0, 6)),
    ],
)
def test_schedules_agree_at_whole_epochs(schedule, theirs):
    optimiser = torch.optim.SGD([tensor([1.0], grad=True)], 1.0)
    scheduler = theirs(optimiser)
    for epoch in range(21):
        assert schedule(epoch) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12, abs=1e-14), epoch
        optimiser.step()
        scheduler.step()
