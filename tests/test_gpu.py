"""On a CUDA device: the same results as on the CPU. Skipped where there is none; CI has none."""

import numpy as np
import pytest

import linfb
from linfb import rules
from linfb.linear import Dop853, Euler, RungeKutta4
from linfb.rules import mirrors, readers

pytestmark = pytest.mark.gpu

TASK = linfb.low_rank_teacher(24, 16, [3.0, 2.0, 1.0], label_noise=0.1)
NETWORK = linfb.LinearNetwork((24, 20, 18, 16), linfb.SmallRandom(0.3))
RULES = {
    "backpropagation": rules.backpropagation(),
    "feedback alignment": rules.feedback_alignment(),
    "weight mirror": rules.weight_mirror(),
    "Oja on errors": rules.low_rank(2),
    "perfect mirror": rules.low_rank(2, reader=readers.Oja(on="labels"), mirror=mirrors.Exact()),
    "direct": rules.direct_low_rank(2),
    "local": rules.local(2),
    "normative": rules.normative(2),
}


@pytest.mark.parametrize("method", [Euler(0.01), RungeKutta4(0.05), Dop853()], ids=["euler", "rk4", "dop853"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_simulation_is_that_of_the_cpu(rule, method):
    def run(device, weight_decay=0.01):
        return linfb.simulate(
            TASK, NETWORK, rule, [0.0, 1.0, 2.0], seeds=range(4), weight_decay=weight_decay, method=method,
            observe=("loss", "network_map", "mirror_alignment", "captured_energy"), device=device,
        )  # fmt: skip

    gpu, cpu, other = run("gpu"), run("cpu"), run("cpu", 0.02)
    for name in ("loss", "network_map", "captured_energy"):
        np.testing.assert_allclose(gpu[name], cpu[name], rtol=1e-8, atol=1e-9)
    assert np.abs(gpu["network_map"] - other["network_map"]).max() > 1e-4


@pytest.mark.parametrize("rule", [rules.backpropagation(), rules.low_rank(5), rules.direct_feedback_alignment()])
def test_training_is_that_of_the_cpu(rule):
    from linfb.datasets import load_dataset
    from linfb.engine import amsgrad, mlp, train

    data = load_dataset("digits").splits(dtype="float64")

    def run(device, rate=1e-3):
        return train(
            data, mlp(64, (32, 32), 10), rule, epochs=2, batch_size=64, optimizer=amsgrad(rate), device=device,
            dtype="float64", progress=False,
        )  # fmt: skip

    gpu, cpu, other = run("gpu"), run("cpu"), run("cpu", 2e-3)
    np.testing.assert_allclose(gpu.train_loss, cpu.train_loss, rtol=1e-8)
    assert np.abs(gpu.train_loss - other.train_loss).max() > 1e-3


def test_mixed_devices_are_refused():
    import cupy

    with pytest.raises(TypeError, match="different libraries"):
        linfb.backend.namespace(np.ones(2), cupy.ones(2))
