"""Captured training steps without a device: replays see what changes through device memory alone.

The kernels run on the host (``tests/cuda_on_host.py``), and what stands in for a CUDA graph runs the step's Python code
again, but with the host's clock set to nonsense: whatever a step knows of its number and of the schedule's factor it
must have read from the arrays that the device has too. What this cannot show: that CuPy's capture works as documented.
``tests/test_gpu.py`` does on a device.
"""

import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

import linfb.kernels
from linfb import rules
from linfb._live import Live, live
from linfb.backend import Key
from linfb.datasets import AutoAugment, Cutout, RandomCrop, RandomFlip, RandomRotation, load_dataset
from linfb.datasets.splits import Samples
from linfb.engine import Exponential, Optimizers, adamw, amsgrad, decoder, mlp, muon, rmsprop, sgd, train, vgg_like, vit
from linfb.engine import run as runs
from linfb.engine.graph import WIDTH, Blocks, CudaStream, capturable
from linfb.engine.trees import flatten
from linfb.kernels import _cuda
from linfb.rules import mirrors, readers
from tests.cuda_on_host import SOURCES, emulated

DATA = load_dataset("digits")


class Replayed:
    """Stands in for :class:`CudaStream`: the work is done again, without the host's knowledge of the step."""

    def __init__(self):
        self.captures = self.launches = 0

    @contextmanager
    def used(self):
        yield

    def captured(self, work):
        work()
        self.captures += 1
        blocks = work.__self__

        def launch():
            self.launches += 1
            blocks.clock.number, blocks.clock.factor = -1, float("nan")
            work()

        return launch


@pytest.fixture
def device(cuda_library, monkeypatch):
    """Let everything run on emulated kernels, in blocks of five steps; return what trains, captured or not."""
    monkeypatch.setattr(_cuda, "function", emulated(cuda_library, SOURCES))
    module = linfb.kernels._module
    monkeypatch.setattr(linfb.kernels, "_module", lambda device, topic: module(device.replace("cpu", "gpu"), topic))
    monkeypatch.setattr(runs, "_UNREAD_STEPS", 5)

    def trained(captured, model, rule, optimizer, *, steps, step=None, **settings):
        seen, stream = {}, Replayed()

        def blocks(group, data):
            (run,) = group.runs
            own = partial(runs._step, group, data, runs._scale(run, data[0]))
            own = own if step is None else step(own)
            take = partial(runs._one_by_one, own)
            if captured:
                take = Blocks(own, runs.device_namespace("cpu"), run.dtype, (5, run.batch_size), stream)

            def block(state, rows, clocks, done):
                state, losses, right = take(state, rows[:, :], clocks, done)
                seen["state"] = state
                return state, losses, right

            return block

        monkeypatch.setattr(runs, "blocks", blocks)
        monkeypatch.setattr("linfb.engine.fusing.fused", lambda model: model)  # groups are for a CPU
        splits = DATA.splits(dtype="float32", **({"layout": "image"} if len(model.shape) == 3 else {}))
        sizes = {"train": 6 * steps // 2, "validation": 8, "test": 8}
        few = {part: Samples(*(array[:size] for array in getattr(splits, part))) for part, size in sizes.items()}
        result = train(
            replace(splits, **few), model, rule, epochs=2, batch_size=6, optimizer=optimizer,
            schedule=Exponential(0.5), progress=False, name="few", **settings,
        )  # fmt: skip
        assert result.sizes["step"] == steps
        if captured:
            assert (stream.captures, stream.launches) == (1, steps - 1)
        arrays = {path: array.copy() for path, array in flatten(seen["state"]).items()}
        return arrays | {"losses": result.step_loss.values, "accuracy": result.train_accuracy.values}

    return trained


def same_bits(first, second):
    assert first.keys() == second.keys()
    return all(np.array_equal(first[path], second[path]) for path in first)


IMAGES = (8, 8, 1)
CASES = {
    "dense": (lambda: mlp(64, (8, 6), 10), rules.low_rank(2), amsgrad(0.01, weight_decay=1e-3), 24, {}),
    "weight mirror": (
        lambda: mlp(64, (8,), 10), rules.low_rank(2, mirror=mirrors.WeightMirror(probes=4)), sgd(0.1, momentum=0.9), 14,
        {"error_clip": 0.1},
    ),
    "signs": (
        lambda: mlp(64, (8,), 10), rules.low_rank(2, mirror=mirrors.Sign(magnitude="random")),
        Optimizers(muon(0.01), P=adamw(0.01), clip_norm=1.0), 14, {},
    ),
    "images": (
        lambda: vgg_like(IMAGES, 10, widths=(3, 4), dense=6), rules.low_rank(2), rmsprop(0.003), 12,
        {"augment": (RandomCrop(1), RandomFlip(), RandomRotation(10.0), Cutout(3))},
    ),
    "patches": (
        lambda: vit(IMAGES, 10, patch=4, width=6, depth=1, heads=2, dropout=0.1), rules.low_rank(2), adamw(0.01), 12,
        {"products": "float16"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_replays_are_the_steps_that_they_stand_for(device, name):
    model, rule, optimizer, steps, settings = CASES[name]
    plain, captured = (device(how, model(), rule, optimizer, steps=steps, **settings) for how in (False, True))
    assert same_bits(captured, plain)


def baked(*names):
    """Return a step that takes the number or the factor as it was when it was captured."""
    kept = {}

    def step(own):
        def one(state, rows, number, factor):
            values = {"number": number, "factor": factor}
            for name in names:
                values[name] = kept.setdefault(name, values[name].now() if isinstance(number, Live) else None)
            return own(state, rows, values["number"], values["factor"])

        return one

    return step


@pytest.mark.parametrize("what", ["number", "factor"])
def test_a_number_of_the_host_in_a_captured_step_is_seen(device, what):
    model, rule, optimizer = vgg_like(IMAGES, 10, widths=(3,), dense=6), rules.low_rank(2), amsgrad(0.01)
    plain = device(False, model, rule, optimizer, steps=12)
    assert same_bits(device(True, model, rule, optimizer, steps=12), plain)
    assert not same_bits(device(True, model, rule, optimizer, steps=12, step=baked(what)), plain)


def test_steps_that_need_the_host_are_not_captured():
    everything = (mlp(4, (3,), 2).layers, vgg_like(IMAGES, 10, widths=(3,), dense=6).layers)
    assert capturable(*everything[0], *everything[1], RandomFlip(), readers.Oja(), mirrors.KolenPollack(), muon(0.1))
    assert capturable(mirrors.Normative(), None)
    for part in (
        AutoAugment(),
        mirrors.Normative(restart_every=10),
        readers.SimilarityMatching(),
        *(layer for layer in decoder(5, 7, width=6, depth=1, heads=2).layers if not capturable(layer)),
        muon(0.1, other=SimpleNamespace(init=print, update=print, capturable=False)),
    ):
        assert not capturable(RandomFlip(), part)
    assert not capturable(*decoder(5, 7, width=6, depth=1, heads=2).layers)


def test_what_is_live_is_no_number():
    clock = SimpleNamespace(number=3)
    number = Live(getattr, (clock, "number"))
    for wrong in (lambda: 2 * number, lambda: number + 1.0, lambda: float(number), lambda: np.ones(2) * number):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(TypeError, match="cannot draw on the host"):
        Key(0).at(number).host()
    rates = live(np.multiply, np.array([1.0, 2.0]), number)
    assert rates.identity == live(np.multiply, np.array([1.0, 2.0]), number).identity
    assert rates.identity != live(np.multiply, np.array([1.0, 3.0]), number).identity
    clock.number = 5
    assert np.array_equal(rates.now(), [5.0, 10.0])


def test_random_numbers_and_rates_of_runs_follow_the_clock(cuda_library, monkeypatch):
    """Two blocks of uniform numbers, and of an ensemble's steps with a rate for each run."""
    monkeypatch.setattr(_cuda, "function", emulated(cuda_library, SOURCES))
    gpu_random, gpu = (import_module(f"linfb.kernels.gpu_{topic}") for topic in ("random", "optimisers"))
    rates, start = np.array([0.1, 0.2]), np.ones((2, 3), np.float32)

    def own(state, rows, number, factor):
        drawn = gpu_random.uniform(live(pow, 3, number), (2, 3), start)
        value, _ = gpu.sgd(state["value"], drawn, None, live(np.multiply, rates, factor), 0.0, 0.0, 0.0, 0.1)
        return {"value": value}, drawn[0, 0], np.sum(rows)

    stream, value = Replayed(), start.copy()
    take, state = Blocks(own, runs.device_namespace("cpu"), "float32", (4, 2), stream), {"value": start.copy()}
    for first in (1, 5):
        clocks = [(number, 1 / number) for number in range(first, first + 4)]
        _, losses, right = take(state, np.full((4, 2), first), clocks, lambda: None)
        for (number, factor), loss in zip(clocks, losses, strict=True):
            drawn = gpu_random.uniform(3**number, (2, 3), start)
            assert loss == drawn[0, 0]
            gpu.sgd(value, drawn, None, rates * factor, 0.0, 0.0, 0.0, 0.1)
        assert np.array_equal(state["value"], value)
        assert int(right) == 8 * first
    assert (stream.captures, stream.launches) == (1, 7)
    take({"value": start.copy()}, np.zeros((1, 2)), [(1, 1.0)], lambda: None)  # other arrays: captured again
    assert (stream.captures, stream.launches) == (2, 7)


def test_too_many_numbers_are_refused():
    def own(state, rows, number, factor):
        for i in range(WIDTH + 1):
            _cuda.held(live(np.add, i, factor), np.float32, state["value"])

    take = Blocks(own, runs.device_namespace("cpu"), "float32", (4, 2), Replayed())
    with pytest.raises(ValueError, match=r"more than 1024 numbers of dtype float32 change"):
        take({"value": np.ones(2)}, np.zeros((1, 2)), [(1, 1.0)], lambda: None)


def test_work_is_captured_on_a_stream_of_its_own_in_memory_of_its_own(monkeypatch):
    """The calls of CuPy in their order; the second time the work is done nothing would run."""
    calls = []

    class Stream:
        def __init__(self, name="own", non_blocking=False):
            self.name = name
            assert non_blocking or name == "outer"

        def __enter__(self):
            calls.append("on")

        def __exit__(self, *error):
            calls.append("off")

        def record(self):
            return self.name

        def wait_event(self, event):
            calls.append(f"{self.name} waits for {event}")

        def begin_capture(self):
            calls.append("begin")

        def end_capture(self):
            calls.append("end")
            return SimpleNamespace(launch=lambda: calls.append("launch"))

    @contextmanager
    def using_allocator(allocate):
        calls.append(allocate)
        yield
        calls.append("given back")

    cuda = SimpleNamespace(
        Stream=Stream, MemoryPool=lambda: SimpleNamespace(malloc="pool"), using_allocator=using_allocator,
        get_current_stream=lambda: Stream("outer"),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    stream = CudaStream()
    with stream.used():
        launch = stream.captured(lambda: calls.append("work"))
        launch()
    assert calls == [
        "own waits for outer", "on", "pool", "work", "begin", "work", "end", "given back", "launch", "off",
        "outer waits for own",
    ]  # fmt: skip
