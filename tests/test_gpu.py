"""On a CUDA device: the same results as on the CPU. Skipped where there is none; CI has none.

Single kernels against their plain twins are in ``tests/test_gpu_kernels.py``, on a device too.
"""

import time

import numpy as np
import pytest

import linfb
from linfb import rules
from linfb.datasets import RandomCrop, RandomFlip, load_dataset
from linfb.engine import Exponential, adamw, amsgrad, mlp, muon, rmsprop, sgd, train, vgg_like, vit
from linfb.engine import run as engine_run
from linfb.kernels import _cuda
from linfb.linear import Dop853, Euler, RungeKutta4
from linfb.rules import mirrors, readers

pytestmark = pytest.mark.gpu

DEVICE = "gpu"
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

    gpu, cpu, other = run(DEVICE), run("cpu"), run("cpu", 0.02)
    for name in ("loss", "network_map", "captured_energy"):
        np.testing.assert_allclose(gpu[name], cpu[name], rtol=1e-8, atol=1e-9)
    assert np.abs(gpu["network_map"] - other["network_map"]).max() > 1e-4


NETWORKS = {
    "dense": mlp(64, (32, 32), 10),
    "images": vgg_like((8, 8, 1), 10, widths=(8, 16), dense=32),
    "patches": vit((8, 8, 1), 10, patch=2, width=24, depth=2, heads=3),
}
OPTIMISERS = {
    "sgd": sgd(0.05, momentum=0.9),
    "rmsprop": rmsprop(1e-3),
    "amsgrad": amsgrad(1e-3),
    "adamw": adamw(1e-3),
    "muon": muon(1e-3),
}


def run(network, rule, optimizer, device=DEVICE, dtype="float64", **settings):
    """Train for 100 steps."""
    return train(
        load_dataset("digits"), NETWORKS[network], RULES[rule], epochs=2, batch_size=25,
        optimizer=OPTIMISERS[optimizer], device=device, dtype=dtype, progress=False, **settings,
    )  # fmt: skip


CASES = [
    *((network, rule, "amsgrad") for network in NETWORKS for rule in ("backpropagation", "Oja on errors", "direct")),
    *(("dense", rule, "sgd") for rule in RULES),
    *(("patches", "Oja on errors", optimizer) for optimizer in OPTIMISERS),
]


@pytest.mark.parametrize(("network", "rule", "optimizer"), CASES)
def test_training_is_that_of_the_cpu(network, rule, optimizer):
    """Rounding grows from step to step: a thousandth of what another seed does, after 100 of them."""
    gpu, cpu, other = (run(network, rule, optimizer, device, seed=seed) for device, seed in CASES_OF_SEEDS)
    assert gpu.sizes["step"] >= 100
    np.testing.assert_allclose(gpu.step_loss[:10], cpu.step_loss[:10], rtol=1e-10)
    np.testing.assert_allclose(gpu.step_loss[:100], cpu.step_loss[:100], rtol=1e-6)
    assert np.abs(gpu.step_loss[:10] - other.step_loss[:10]).max() > 1e-3


CASES_OF_SEEDS = ((DEVICE, 0), ("cpu", 0), ("cpu", 1))


@pytest.mark.parametrize("network", NETWORKS)
def test_single_precision_training_stays_near_that_of_the_cpu(network):
    gpu, cpu = (run(network, "Oja on errors", "sgd", device, "float32") for device in (DEVICE, "cpu"))
    np.testing.assert_allclose(gpu.step_loss[:10], cpu.step_loss[:10], rtol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("products", [None, "tf32", "float16", "bfloat16"])
def test_two_runs_have_the_same_bits(network, products):
    first, second = (run(network, "Oja on errors", "amsgrad", dtype="float32", products=products) for _ in range(2))
    assert np.array_equal(first.step_loss, second.step_loss)
    assert float(first.test_loss[0]) == float(second.test_loss[0])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("products", "tolerance"), [("tf32", 3e-3), ("float16", 3e-3), ("bfloat16", 2e-2)])
def test_products_in_low_precision_stay_near_those_in_single(network, products, tolerance):
    exact = run(network, "Oja on errors", "sgd", dtype="float32")
    low = run(network, "Oja on errors", "sgd", dtype="float32", products=products)
    assert np.any(low.step_loss[:10] != exact.step_loss[:10])
    np.testing.assert_allclose(low.step_loss[:10], exact.step_loss[:10], rtol=tolerance)


def test_tensor_float_32_rounds_within_its_block_only():
    import cupy

    from linfb.engine.layers.precision import tensor_float32

    x = cupy.asarray(np.random.default_rng(0).standard_normal((256, 256)).astype("float32"))
    exact = x @ x
    with tensor_float32("gpu"):
        rounded, batched = x @ x, cupy.stack([x, x]) @ cupy.stack([x, x])
    assert cupy.any(rounded != exact)
    assert cupy.any(batched[0] != exact)
    assert float(cupy.abs(rounded - exact).max()) < 2.0**-10 * float((cupy.abs(x) @ cupy.abs(x)).max())
    assert cupy.array_equal(x @ x, exact)


DROPPING = {
    "dense": lambda: mlp(64, (32, 32), 10),
    "images": lambda: vgg_like((8, 8, 1), 10, widths=(8, 16), dense=32),
    "patches": lambda: vit((8, 8, 1), 10, patch=2, width=24, depth=2, heads=3, dropout=0.1, drop_path=0.1),
}


def steps_of(network, capture, monkeypatch, *, optimizer=None, **settings):
    """Train for 114 steps, captured or not; return the result, seconds per step, and how often a kernel was started."""
    started, launch = [], _cuda.launch

    def counted(*arguments, **options):
        started.append(arguments[1])
        launch(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_cuda, "launch", counted)
        if not capture:
            patch.setattr(engine_run, "capturable", lambda *parts: False)
        shaped = {"layout": "image"} if network != "dense" else {}
        splits = load_dataset("digits").splits(dtype="float32", **shaped)
        begin = time.perf_counter()
        result = train(
            splits, DROPPING[network](), RULES["Oja on errors"], epochs=2, batch_size=25, device=DEVICE, progress=False,
            optimizer=amsgrad(1e-3, weight_decay=1e-3) if optimizer is None else optimizer, schedule=Exponential(0.5),
            **settings,
        )  # fmt: skip
        seconds = (time.perf_counter() - begin) / result.sizes["step"]
    return result, seconds, len(started)


@pytest.mark.parametrize("products", [None, "tf32", "bfloat16"])
@pytest.mark.parametrize("network", DROPPING)
def test_captured_steps_have_the_bits_of_those_taken_one_by_one(network, products, monkeypatch, capsys):
    augment = () if network == "dense" else (RandomCrop(1), RandomFlip())
    settings = {"products": products, "augment": augment}
    plain, slow, many = steps_of(network, False, monkeypatch, **settings)
    captured, fast, few = steps_of(network, True, monkeypatch, **settings)
    assert captured.sizes["step"] >= 100
    assert np.array_equal(captured.step_loss, plain.step_loss)
    assert np.array_equal(captured.test_loss, plain.test_loss)
    assert len(set(plain.step_loss.values)) > 100
    other, *_ = steps_of(network, True, monkeypatch, seed=1, **settings)
    assert not np.array_equal(other.step_loss, plain.step_loss)
    assert few < many / 10  # the host started the kernels of two steps, and of evaluation
    with capsys.disabled():
        print(f"\n{network}, {products}: {many} and {few} kernels started; {slow / fast:.1f} times faster in all")


@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_every_optimiser_is_captured_with_the_same_bits(optimizer, monkeypatch):
    plain, captured = (
        steps_of("dense", capture, monkeypatch, optimizer=OPTIMISERS[optimizer])[0] for capture in (False, True)
    )
    assert np.array_equal(captured.step_loss, plain.step_loss)
    assert np.array_equal(captured.test_loss, plain.test_loss)


def test_what_is_allocated_after_a_capture_is_not_overwritten_by_it(monkeypatch):
    """The chosen weights are copied between captured epochs: the test loss with them shows if they stay."""
    plain, captured = (steps_of("images", capture, monkeypatch)[0] for capture in (False, True))
    assert np.array_equal(captured.test_loss.sel(weights="chosen"), plain.test_loss.sel(weights="chosen"))


def test_mixed_devices_are_refused():
    import cupy

    with pytest.raises(TypeError, match="different libraries"):
        linfb.backend.namespace(np.ones(2), cupy.ones(2))
