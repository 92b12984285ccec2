"""Times on a CUDA device: `python -m tests.benchmarks.gpu` prints the tables of docs/gpu.rst and writes gpu.json.

Steps of training against PyTorch's, eager and compiled, where a PyTorch with CUDA is importable: the same layers, batch
and optimiser, TensorFloat-32 on both sides, data on the device. All sides of a row are measured in turns, a block of
steps each between two CUDA events; medians.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from linfb import rules
from linfb._provenance import versions
from linfb.datasets import Dataset
from linfb.engine import Constant, Model, Optimizers, mlp, sgd, vgg_like, vit
from linfb.engine import run as runs
from linfb.engine.layers.precision import tensor_float32
from linfb.engine.state import initial_state
from linfb.kernels import gpu_images, gpu_optimisers

BATCH, STEPS, ROUNDS = 128, 32, 15
IMAGE = (32, 32, 3)
RATE = {"learning_rate": 0.01, "momentum": 0.9}


def milliseconds(sides: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median time of each side, measured in turns after two rounds that warm up."""
    import cupy

    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(ROUNDS + 2):
        for name, side in sides.items():
            cupy.cuda.runtime.deviceSynchronize()
            start, stop = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            side()
            cupy.cuda.runtime.deviceSynchronize()  # PyTorch has a stream of its own
            stop.record()
            stop.synchronize()
            if turn > 1:
                found[name].append(cupy.cuda.get_elapsed_time(start, stop))
    return {name: median(times) for name, times in found.items()}


def ours(model: Model, rule: Any, products: str | None, captured: bool = True) -> Callable[[], Any]:
    """Return what takes a block of steps of training on random data."""
    from linfb.engine.training import _network

    rng = np.random.default_rng(0)
    x = rng.standard_normal((4 * BATCH, *model.shape)).astype("float32")
    labels = np.arange(len(x)) % 10
    splits = Dataset.from_arrays(x, labels, x[:BATCH], labels[:BATCH], name="noise").splits(dtype="float32")
    run = runs.Run(
        splits=splits, model=model, rule=rule, batch_size=BATCH, optimisers=Optimizers(sgd(**RATE)),
        schedule=Constant(), seed=0, loss="cross_entropy", label_smoothing=0.0, error_clip=None, augment=(), observe={},
        device="gpu", dtype="float32", products=products, name="noise", network=_network(model, products),
    )  # fmt: skip
    data = tuple(runs.device_namespace("gpu").asarray(array) for array in (x, labels))
    chosen, runs.capturable = runs.capturable, runs.capturable if captured else lambda *parts: False
    try:
        take = runs.blocks(run, data)
    finally:
        runs.capturable = chosen
    state, _ = initial_state(run.network, rule, run.optimisers, 0, run.place)
    rows = runs.device_namespace("gpu").asarray(rng.integers(0, len(x), (STEPS, BATCH)))
    held = [state]

    def block() -> None:
        with tensor_float32("gpu"):
            clocks = [(i + 1, 1.0) for i in range(STEPS)]
            held[0], losses, _ = take(held[0], rows, clocks, lambda: None)
            assert np.isfinite(float(losses[-1]))

    return block


def theirs(build: Callable[[Any], Any], compiled: bool) -> Callable[[], Any]:
    """Return what takes as many steps with PyTorch."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    network = build(torch).cuda().to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(network.parameters(), lr=RATE["learning_rate"], momentum=RATE["momentum"])
    x, labels = torch.randn(4 * BATCH, 3, 32, 32, device="cuda"), torch.randint(10, (4 * BATCH,), device="cuda")
    x = x.contiguous(memory_format=torch.channels_last)
    loss = torch.nn.CrossEntropyLoss()
    call = torch.compile(network, mode="max-autotune") if compiled else network

    def block() -> None:
        for _ in range(STEPS):
            rows = torch.randint(len(x), (BATCH,), device="cuda")
            optimiser.zero_grad()
            value = loss(call(x[rows]), labels[rows])
            value.backward()
            optimiser.step()
        assert np.isfinite(value.item())

    return block


def torch_mlp(torch: Any) -> Any:
    """Return PyTorch's twin of ``mlp(3072, (512, 512, 512), 10)``."""
    nn, sizes = torch.nn, (3072, 512, 512, 512)
    hidden = [
        layer for a, b in pairwise(sizes)
        for layer in (nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU())
    ]  # fmt: skip
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(512, 10))


def torch_vgg(torch: Any) -> Any:
    """Return PyTorch's twin of ``vgg_like(IMAGE, 10)``."""
    nn, layers, below = torch.nn, [], 3
    for i, width in enumerate((64, 128, 256, 512)):
        layers += [nn.MaxPool2d(2)] if i else []
        for n_in in (below, width):
            layers += [nn.Conv2d(n_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        below = width
    head = (nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.4), nn.Linear(256, 10))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


def torch_vit(torch: Any) -> Any:
    """Return PyTorch's twin of ``vit(IMAGE, 10, drop_path=0.0)``: blocks of its own encoder layer, normalised first."""
    nn = torch.nn

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 384, 4, stride=4), nn.Linear(384, 10)
            self.first, self.places = nn.Parameter(torch.zeros(384)), nn.Parameter(torch.zeros(65, 384))
            block = nn.TransformerEncoderLayer(384, 8, 768, 0.1, "gelu", batch_first=True, norm_first=True)
            self.blocks, self.drop = nn.TransformerEncoder(block, 8, nn.LayerNorm(384), False), nn.Dropout(0.1)

        def forward(self, x: Any) -> Any:
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.first.expand(len(x), 1, -1), x], 1) + self.places
            return self.head(self.blocks(self.drop(x))[:, 0])

    return Transformer()


NETWORKS: dict[str, tuple[Model, Callable[[Any], Any]]] = {
    "MLP 3072-512-512-512-10": (mlp(3072, (512, 512, 512), 10), torch_mlp),
    "VGG-like, 8 convolutions": (vgg_like(IMAGE, 10), torch_vgg),
    "ViT, 8 blocks of 384": (vit(IMAGE, 10, drop_path=0.0), torch_vit),
}


def steps() -> list[dict]:
    """Return rows of step times in milliseconds."""
    try:
        import torch

        peers = torch.cuda.is_available()
    except ImportError:
        peers = False
    if not peers:
        print("PyTorch with CUDA is missing: no comparison")
    rows = []
    for name, (model, build) in NETWORKS.items():
        rule = rules.low_rank(64)
        sides = {
            "captured": ours(model, rules.backpropagation(), "tf32"),
            "one by one": ours(model, rules.backpropagation(), "tf32", captured=False),
            "captured, bfloat16": ours(model, rules.backpropagation(), "bfloat16"),
            "captured, rank 64": ours(model, rule, "tf32"),
        }
        if peers:
            sides |= {"PyTorch": theirs(build, False), "torch.compile": theirs(build, True)}
        times = {side: value / STEPS for side, value in milliseconds(sides).items()}
        rows.append({"network": name, **times})
        print(f"{name:28s} " + "  ".join(f"{side} {value:.3f} ms" for side, value in times.items()))
    return rows


def bandwidth() -> list[dict]:
    """Return rows of memory-bound work of an ensemble: how fast it is, as a share of a plain copy.

    The paper's first nonlinear figure is bound by passes over the weights, their gradient and AMSGrad's three arrays:
    nine in an update, and one each for the way forward, the way back and the gradient.
    """
    import cupy

    n, out, n_in = 32, 512, 4096  # as many weights as 3072-512-512-512-10 has: 8.4 MB a run
    rng = np.random.default_rng(0)
    arrays = [cupy.asarray(rng.random((n, out, n_in), dtype=np.float32)) for _ in range(5)]
    rates = np.geomspace(1e-4, 1e-2, n)
    x = cupy.asarray(rng.random((32, n_in), dtype=np.float32))
    delta = cupy.asarray(rng.random((n, 32, out), dtype=np.float32))
    source, target = (cupy.empty(1 << 28, dtype=cupy.uint8) for _ in range(2))

    def update() -> None:
        gpu_optimisers.amsgrad(*arrays, rates, 0.9, 0.999, 1e-8, 0.0, 0.0, 7)

    def layer() -> None:
        x @ arrays[0].swapaxes(1, 2)
        delta @ arrays[0]
        cupy.matmul(delta.swapaxes(1, 2), x, out=arrays[1])
        update()

    def copy() -> None:
        target[...] = source

    size = arrays[0].nbytes
    passes = {"AMSGrad of an ensemble": (9, update), "a step of its layer": (12, layer)}
    sides = {name: side for name, (_, side) in passes.items()} | {"copy": copy}
    times = milliseconds(sides)
    speed = 2 * source.nbytes / times["copy"]
    rows = [
        {"work": name, "ms": times[name], "share": count * size / times[name] / speed}
        for name, (count, _) in passes.items()
    ]
    for row in rows:
        print(f"{row['work']:28s} {row['ms']:.3f} ms, {100 * row['share']:.0f} % of a copy's {speed / 1e9:.2f} TB/s")
    return rows


def convolutions() -> list[dict]:
    """Return rows of one 3x3 convolution for several sizes of the buffer of patches."""
    import cupy

    rng = np.random.default_rng(0)
    rows, before = [], gpu_images.BUFFER
    for side, channels in ((32, 64), (16, 128), (8, 256)):
        x = cupy.asarray(rng.random((BATCH, side, side, channels), dtype=np.float32))
        kernel = cupy.asarray(rng.random((channels, 3, 3, channels), dtype=np.float32))

        def convolve(buffer: int, x: Any = x, kernel: Any = kernel) -> None:
            gpu_images.BUFFER = buffer
            with tensor_float32("gpu"):
                for _ in range(10):
                    gpu_images.convolve(x, kernel, 1, 1)

        sizes = [1 << power for power in (23, 24, 25, 26, 29)]
        times = milliseconds({f"{size >> 20} MiB": lambda size=size: convolve(size) for size in sizes})
        gpu_images.BUFFER = before
        rows.append({"convolution": f"{side}x{side}x{channels}", **{key: value / 10 for key, value in times.items()}})
        print(rows[-1])
    return rows


def main() -> None:
    """Measure everything and write the record."""
    import cupy

    device = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    print(device)
    record = {
        "device": device, "versions": versions(), "steps": steps(), "bandwidth": bandwidth(), "convolutions":
        convolutions(),
    }  # fmt: skip
    Path("gpu.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
