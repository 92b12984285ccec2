"""CUDA kernels: compiled for two generations of devices, and run against their plain twins, as C++ on the host too.

The emulation runs a kernel's own source, one thread of the grid after the other (those of a block take turns at its
barriers), called by the same Python code that would start it on a device. What it cannot show: memory that needs
alignment, races between threads, speed.
"""

import ctypes
import inspect
import re
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import linfb.kernels
from linfb import rules
from linfb.backend import Key, to_numpy
from linfb.engine import Optimizers, adamw, amsgrad, cross_entropy, decoder, mlp, muon, rmsprop, sgd, vgg_like, vit
from linfb.engine.losses import one_hot
from linfb.engine.state import initial_state, step
from linfb.engine.trees import flatten
from linfb.kernels import _cuda, gpu_activations, gpu_images, gpu_norms, gpu_optimisers, reference_norms
from tests.cuda_on_host import SOURCES, TOPICS, build, emulated


def test_every_topic_is_here():
    assert set(TOPICS) >= {"activations", "images", "norms", "optimisers", "random", "sequences"}
    assert all(_cuda.names(source) for source in SOURCES.values())


def signature(function):
    parameters = inspect.signature(getattr(function, "py_func", function)).parameters.values()
    return [(parameter.name, parameter.kind, parameter.default) for parameter in parameters]


@pytest.mark.parametrize("topic", TOPICS)
def test_twins_have_the_same_names_parameters_and_defaults(topic):
    """Those for the CPU have no ensembles yet: there only the number of leading axes may be missing."""
    reference = import_module(f"linfb.kernels.reference_{topic}")
    for device in ("cpu", "gpu"):
        twin = import_module(f"linfb.kernels.{device}_{topic}")
        assert sorted(twin.__all__) == sorted(reference.__all__)
        for name in reference.__all__:
            own, expected = (signature(getattr(module, name)) for module in (twin, reference))
            assert own in (expected, [entry for entry in expected if (device, entry[0]) != ("cpu", "leading")])


@pytest.mark.parametrize("columns", [0, 1, 3, 27, 32, 33, 192, 256, 257, 300, 576, 4608])
@pytest.mark.parametrize("most", [32, 256])
def test_blocks_cover_the_columns_and_waste_less_than_a_warp_beside_each_other(columns, most):
    across, along = _cuda.block(columns, most)
    beside = max(1, -(-columns // across))
    assert across <= most
    assert 128 < across * along <= 256 or columns > 32
    assert beside == max(1, -(-columns // most))
    assert beside * across - columns < max(32 * beside, 2)
    assert across % 32 == 0 or across in (1, 2, 4, 8, 16)


# ---- compiled for devices ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nvrtc():
    """The compiler of the nvidia-cuda-nvrtc package, and the folder of headers of nvidia-cuda-runtime."""
    try:
        import nvidia
    except ImportError:
        pytest.skip("NVIDIA's compiler is not installed: the extra linfb[nvrtc] has it")
    folders = [Path(folder) for folder in nvidia.__path__]
    libraries = [found for folder in folders for found in folder.glob("*/lib/libnvrtc.so.*[0-9]")]
    headers = [found.parent for folder in folders for found in folder.glob("*/include/cuda_fp16.h")]
    if not libraries or not headers:
        pytest.skip("NVIDIA's compiler or its headers are not installed: the extra linfb[nvrtc] has them")
    for builtins in libraries[0].parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins))  # where the compiler looks for it by name
    return ctypes.CDLL(str(libraries[0])), headers[0]


def compiled(nvrtc, source, expressions, arch):
    """Return the size of the machine code and the compiler's log."""
    library, headers = nvrtc
    program, size, code = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    options = [f"-arch={arch}", *_cuda.OPTIONS, "-ftz=true", f"-I{headers}", "--ptxas-options=-v"]  # as CuPy does
    texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    assert library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None) == 0
    for expression in expressions:
        assert library.nvrtcAddNameExpression(program, expression.encode()) == 0
    library.nvrtcCompileProgram(program, len(options), texts)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcGetCUBINSize(program, ctypes.byref(code))
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return code.value, log.value.decode()


def spills(log):
    return [
        tuple(map(int, numbers)) for numbers in re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    ]


@pytest.mark.nvrtc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("topic", TOPICS)
def test_every_kernel_compiles_for_every_precision_and_spills_no_register(nvrtc, topic, arch):
    expressions = [f"{name}<{type}>" for name in _cuda.names(SOURCES[topic]) for type in _cuda.TYPES.values()]
    code, log = compiled(nvrtc, _cuda.PRELUDE + SOURCES[topic], expressions, arch)
    assert code > 0, log
    assert "warning" not in log
    assert f"'{arch}'" in log
    assert spills(log) == [(0, 0)] * len(expressions)
    assert re.findall(r"(\d+) bytes stack frame", log) == ["0"] * len(expressions)


@pytest.mark.nvrtc
def test_the_compiler_sees_errors_and_spills(nvrtc):
    source = SOURCES["random"].replace("out[i] =", "nowhere[i] =")
    code, log = compiled(nvrtc, _cuda.PRELUDE + source, ["uniform<float>"], "sm_90")
    assert code == 0
    assert 'identifier "nowhere" is undefined' in log
    hungry = """
    extern "C" __global__ void __launch_bounds__(1024, 2) hungry(const float* x, float* y) {
        float kept[64];
        for (int k = 0; k < 64; k++) kept[k] = x[k * 1024 + threadIdx.x];
        __syncthreads();
        for (int k = 0; k < 64; k++) for (int l = 0; l < 64; l++) y[k * 64 + l] = kept[k] * kept[l];
    }"""
    assert spills(compiled(nvrtc, hungry, [], "sm_90")[1]) != [(0, 0)]


# ---- run on the host -----------------------------------------------------------------------------------------------


@pytest.fixture
def host(cuda_library, monkeypatch):
    """Let kernels run on the host."""
    monkeypatch.setattr(_cuda, "function", emulated(cuda_library, SOURCES))


class OnDevice:
    """A module of kernels that takes and returns NumPy arrays and works on a device."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        import cupy

        def call(*arguments, **settings):
            moved = [cupy.asarray(value) if isinstance(value, np.ndarray) else value for value in arguments]
            results = getattr(self.module, name)(*moved, **settings)
            return tuple(map(to_numpy, results)) if isinstance(results, tuple) else to_numpy(results)

        return call


@pytest.fixture(params=["host", pytest.param("device", marks=pytest.mark.gpu)])
def twins(request):
    """From a topic to its kernels for GPUs, run on the host or on a device, and to their plain twins."""
    if request.param == "host":
        request.getfixturevalue("host")

    def pair(topic):
        gpu, reference = (import_module(f"linfb.kernels.{kind}_{topic}") for kind in ("gpu", "reference"))
        return gpu if request.param == "host" else OnDevice(gpu), reference

    return pair


def close(got, expected, dtype, scale=1.0):
    """Whether all arrays of two results agree up to the rounding of a few operations on numbers of this size."""
    got, expected = (result if isinstance(result, tuple) else (result,) for result in (got, expected))
    return all(
        (a is None and b is None)
        or (
            a.shape == b.shape
            and a.dtype == b.dtype
            and np.allclose(a, b, rtol=0, atol=64 * scale * np.finfo(dtype).eps)
        )
        for a, b in zip(got, expected, strict=True)
    )


both = pytest.mark.parametrize("dtype", ["float32", "float64"])


@both
@pytest.mark.parametrize("shape", [(), (0,), (5,), (7, 100), (2, 3, 171)])
def test_random_numbers_have_the_same_bits(twins, dtype, shape):
    gpu, reference = twins("random")
    for state in (0, 12345, 2**64 - 2):
        numbers = gpu.uniform(state, shape, np.ones(1, dtype))
        assert numbers.dtype == dtype
        assert np.array_equal(numbers, reference.uniform(state, shape, np.ones(1, dtype)))
        assert numbers.size == 0 or not np.array_equal(numbers, gpu.uniform(state + 1, shape, np.ones(1, dtype)))
    with pytest.raises(TypeError, match=r"like must be an array.*int64"):
        gpu.uniform(0, (2,), np.ones(1, np.int64))


@both
def test_activations(twins, dtype):
    gpu, reference = twins("activations")
    x = np.linspace(-6, 6, 1203).astype(dtype).reshape(3, -1)[:, ::-1]
    assert close(gpu.relu(x), reference.relu(x), dtype, scale=0)
    assert np.isnan(gpu.relu(np.array([np.nan], dtype))[0][0])
    _, positive = reference.relu(x)
    assert close(gpu.relu_pull(x * x, positive), reference.relu_pull(x * x, positive), dtype, scale=0)
    for name in ("erf", "gelu"):
        assert close(getattr(gpu, name)(x), getattr(reference, name)(x), dtype)
        assert not close(getattr(gpu, name)(x + dtype_step(dtype)), getattr(reference, name)(x), dtype)


def dtype_step(dtype):
    """Return a change of inputs that results must show."""
    return np.array(1000 * np.finfo(dtype).eps, dtype)


@both
@pytest.mark.parametrize("shape", [(200, 5), (3, 50, 7), (1, 4, 4, 300), (70, 1), (2, 700, 3)])
def test_norms(twins, dtype, shape):
    gpu, reference = twins("norms")
    rng = np.random.default_rng(0)
    x, delta = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    gain, shift = (rng.standard_normal(shape[-1]).astype(dtype) for _ in range(2))
    size = float(np.sqrt(x.size))
    assert close(gpu.shifted(x, shift), reference.shifted(x, shift), dtype, scale=0)
    assert close(gpu.feature_sums(delta), reference.feature_sums(delta), dtype, size)
    assert close(gpu.norm_grad(delta, x), reference.norm_grad(delta, x), dtype, size)
    for kind in ("batch_norm", "layer_norm"):
        if (kind, shape[-1]) == ("layer_norm", 1):
            continue  # a row of one entry has no deviation
        forward = getattr(gpu, kind)
        expected = getattr(reference, kind)(x, gain, shift, 1e-5)
        assert close(forward(x, gain, shift, 1e-5), expected, dtype, 4)
        assert not close(forward(x, gain, shift, 1e-2), expected, dtype, 4)
        sums, down = way_back(reference, kind, delta, expected[1], expected[2], gain)
        found, error = way_back(gpu, kind, delta, expected[1], expected[2], gain)
        assert close(error, down, dtype, 8)
        assert close(found, sums, dtype, size)
        assert not close(way_back(gpu, kind, delta, x, expected[2], gain)[1], down, dtype, 8)


def way_back(kernels, kind, *arrays):
    """Return the gradients of gain and shift, if the kernel makes them, and the error at the input."""
    if kind == "layer_norm":
        return (), kernels.layer_norm_pull(*arrays)
    *gradients, error = kernels.batch_norm_grad_pull(*arrays)
    return tuple(gradients), error


@both
@pytest.mark.parametrize(("slice", "shape"), [(256, (3, 300, 5)), (4, (2, 70, 40)), (4, (3, 2, 9, 3))])
def test_norms_of_ensembles(twins, monkeypatch, dtype, slice, shape):
    """Each run has its own moments, sums and weights: what it has alone, and on a device the same bits."""
    gpu, reference = twins("norms")
    monkeypatch.setattr(gpu_norms, "SLICE", slice)
    rng = np.random.default_rng(0)
    x, delta = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    gain, shift = (rng.standard_normal((shape[0], shape[-1])).astype(dtype) for _ in range(2))
    size = float(np.sqrt(x.size))

    def held_together(call, factor, same=True):
        for kernels in (gpu, reference):
            together = call(kernels, x, delta, gain, shift)
            alone = [call(kernels, *(array[i] for array in (x, delta, gain, shift))) for i in range(shape[0])]
            together = together if isinstance(together, tuple) else (together,)
            alone = [result if isinstance(result, tuple) else (result,) for result in alone]
            stacked = tuple(np.stack(parts) for parts in zip(*alone, strict=True))
            assert close(together, stacked, dtype, 0 if kernels is gpu else factor)
            assert not close(together, tuple(part[::-1] for part in stacked), dtype, factor)
        assert close(call(gpu, x, delta, gain, shift), call(reference, x, delta, gain, shift), dtype, factor)

    held_together(lambda kernels, x, d, g, s: kernels.shifted(x, s), 1)
    held_together(lambda kernels, x, d, g, s: kernels.feature_sums(d, g.ndim - 1), size)
    held_together(lambda kernels, x, d, g, s: kernels.norm_grad(d, x, g.ndim - 1), size)
    for kind in ("batch_norm", "layer_norm"):
        held_together(lambda kernels, x, d, g, s, kind=kind: getattr(kernels, kind)(x, g, s, 1e-5), 8)

        def back(kernels, x, delta, gain, shift, kind=kind, part=1):
            _, normalised, inverse, *_ = getattr(reference, kind)(x, gain, shift, 1e-5)
            return way_back(kernels, kind, delta, normalised, inverse, gain)[part]

        held_together(back, 32)
        if kind == "batch_norm":
            held_together(partial(back, part=0), size)


@both
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("tokens", "heads", "width"), [(1, 1, 1), (5, 2, 3), (65, 2, 4)])
def test_attention(twins, dtype, causal, tokens, heads, width):
    gpu, reference = twins("sequences")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, tokens, 3 * heads * width)).astype(dtype)
    delta = rng.standard_normal((2, tokens, heads * width)).astype(dtype)
    expected = reference.attention(x, heads, causal)
    assert close(gpu.attention(x, heads, causal), expected, dtype)
    down = reference.attention_pull(delta, x, expected[1])
    assert close(gpu.attention_pull(delta, x, expected[1]), down, dtype)
    if tokens > 1:
        assert not close(gpu.attention(x, heads, not causal), expected, dtype)
        assert not close(gpu.attention_pull(delta, x, expected[1][:, :, ::-1]), down, dtype)


@both
def test_token_sums(twins, dtype):
    gpu, reference = twins("sequences")
    rng = np.random.default_rng(0)
    delta, tokens = rng.standard_normal((4, 30, 5)).astype(dtype), rng.integers(0, 9, (4, 30))
    expected = reference.token_sums(delta, tokens, 11)  # two tokens never occur
    assert close(gpu.token_sums(delta, tokens, 11), expected, dtype, 8)
    assert not close(gpu.token_sums(delta, tokens[:, ::-1], 11), expected, dtype, 8)


@both
@pytest.mark.parametrize(
    ("size", "stride", "padding"), [((3, 3), 1, 1), ((3, 3), 2, 1), ((1, 1), 1, 0), ((1, 1), 2, 0), ((5, 5), 2, 2),
                                    ((2, 2), 3, 1), ((2, 3), 1, 1), ((1, 1), 1, 1), ((3, 3), 1, 4)]
)  # fmt: skip
@pytest.mark.parametrize(("wide", "narrow"), [(5, 2), (2, 5)])
def test_convolutions(twins, monkeypatch, dtype, size, stride, padding, wide, narrow):
    gpu, reference = twins("images")
    if padding != 2:
        monkeypatch.setattr(gpu_images, "BUFFER", 16000)  # one or two images at a time
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 9, 8, wide)).astype(dtype)
    kernel, other = (rng.standard_normal((narrow, *size, wide)).astype(dtype) for _ in range(2))
    y = reference.convolve(x, kernel, stride, padding)
    assert close(gpu.convolve(x, kernel, stride, padding), y, dtype)
    assert not close(gpu.convolve(x, other, stride, padding), y, dtype)
    delta = rng.standard_normal(y.shape).astype(dtype)
    gradient = reference.convolve_grad(x, delta, size, stride, padding)
    assert close(gpu.convolve_grad(x, delta, size, stride, padding), gradient, dtype, 4)
    assert not close(gpu.convolve_grad(x, delta[:, ::-1], size, stride, padding), gradient, dtype, 4)
    down = reference.convolve_pull(delta, kernel, (9, 8), stride, padding)
    assert close(gpu.convolve_pull(delta, kernel, (9, 8), stride, padding), down, dtype)
    assert not close(gpu.convolve_pull(delta, other, (9, 8), stride, padding), down, dtype)


@both
@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (3, 1), (2, 3)])
@pytest.mark.parametrize("channels", [1, 3, 300])
def test_pooling(twins, dtype, size, stride, channels):
    gpu, reference = twins("images")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, (2, 7, 6, channels)).astype(dtype)  # with many equals
    x[0, 3:5] = np.nan
    y, choice = gpu.max_pool(x, size, stride)
    for got, expected in zip((y, choice), reference.max_pool(x, size, stride), strict=True):
        assert np.array_equal(got, expected, equal_nan=got.dtype != np.uint8)
    assert np.any(np.isnan(y))
    assert not np.all(np.isnan(y))
    assert choice.dtype == np.uint8
    delta = rng.standard_normal(y.shape).astype(dtype)
    down = reference.max_unpool(delta, choice, (7, 6), size, stride)
    assert close(gpu.max_unpool(delta, choice, (7, 6), size, stride), down, dtype)
    assert not close(gpu.max_unpool(delta, choice ^ 1, (7, 6), size, stride), down, dtype)


OPTIMISERS = {
    "sgd": (0, {"momentum": 0.0, "lookahead": 0.0}),
    "momentum": (1, {"momentum": 0.9, "lookahead": 0.0}),
    "nesterov": (1, {"momentum": 0.9, "lookahead": 0.9}),
    "rmsprop": (1, {"alpha": 0.9, "epsilon": 1e-3, "momentum": 0.0}),
    "rmsprop centred": (3, {"alpha": 0.9, "epsilon": 1e-3, "momentum": 0.8}),
    "adam": (2, {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3}),
    "amsgrad": (3, {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3}),
    "muon": (1, {"momentum": 0.9, "lookahead": 0.9, "steps": 5}),
}


@both
@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers(twins, dtype, name):
    gpu, reference = twins("optimisers")
    held, settings = OPTIMISERS[name]
    function = {"momentum": "sgd", "nesterov": "sgd", "rmsprop centred": "rmsprop"}.get(name, name)
    slots = len([p for p in signature(getattr(reference, function)) if p[0] in STATE])
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal((9, 40)).astype(dtype), rng.standard_normal((4, 9, 40)).astype(dtype)

    def run(kernels, coupled=0.1):
        value, state = start.copy(), [np.zeros_like(start) if i < held else None for i in range(slots)]
        more = {"step": 0} if function in ("adam", "amsgrad") else {}
        for number, gradient in enumerate(gradients, start=1):
            more = dict.fromkeys(more, number)
            value, *state = getattr(kernels, function)(
                value,
                gradient.T.copy().T,
                *state,
                learning_rate=0.01,
                coupled=coupled,
                decoupled=0.2,
                **settings,
                **more,
            )
        return value, *state

    assert close(run(gpu), run(reference), dtype)
    assert not close(run(gpu, 0.11), run(reference), dtype)


@both
@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers_of_ensembles(twins, dtype, name):
    """Runs with their own rates and decays: what each does alone, on a device with the same bits."""
    gpu, reference = twins("optimisers")
    held, settings = OPTIMISERS[name]
    function = {"momentum": "sgd", "nesterov": "sgd", "rmsprop centred": "rmsprop"}.get(name, name)
    slots = len([p for p in signature(getattr(reference, function)) if p[0] in STATE])
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal((3, 5, 8)).astype(dtype), rng.standard_normal((4, 3, 5, 8)).astype(dtype)
    numbers = {"learning_rate": [0.01, 0.02, 0.04], "coupled": [0.1, 0.0, 0.3], "decoupled": [0.2, 0.1, 0.0]}
    numbers = {key: np.array(values) for key, values in numbers.items()}

    def run(kernels, start, gradients, numbers):
        value, state = start.copy(), [np.zeros_like(start) if i < held else None for i in range(slots)]
        for number, gradient in enumerate(gradients, start=1):
            more = {"step": number} if function in ("adam", "amsgrad") else {}
            value, *state = getattr(kernels, function)(value, gradient, *state, **numbers, **settings, **more)
        return value, *state

    def alone(kernels, order=(0, 1, 2)):
        runs = [
            run(kernels, start[i], gradients[:, i], {key: float(values[j]) for key, values in numbers.items()})
            for i, j in enumerate(order)
        ]
        return tuple(None if parts[0] is None else np.stack(parts) for parts in zip(*runs, strict=True))

    together = run(gpu, start, gradients, numbers)
    assert close(together, alone(gpu), dtype, 4 if name == "muon" else 0)
    assert close(together, run(reference, start, gradients, numbers), dtype, 4)
    assert not close(together, alone(gpu, (1, 0, 2)), dtype, 4)
    if name != "muon":
        with pytest.raises(ValueError, match=r"numbers of 3 runs, but value has shape \(2, 5, 8\)"):
            run(gpu, start[:2], gradients[:, :2], numbers)


STATE = {"velocity", "second", "mean", "first", "largest", "average"}


def test_optimisers_overwrite_and_refuse_what_they_cannot(host):
    gpu = gpu_optimisers
    value, velocity = np.ones((3, 4)), np.zeros((3, 4))
    new, moved = gpu.sgd(value, np.ones((3, 4)), velocity, 0.1, 0.9, 0.0, 0.0, 0.0)
    assert new is value
    assert moved is velocity
    assert np.all(value == 0.9)
    for bad, message in ((np.zeros((4, 3)), "must agree"), (np.zeros((3, 4), "f4"), "must agree"),
                         (np.zeros((4, 3)).T, "C-contiguous")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            gpu.sgd(value, np.ones((3, 4)), bad, 0.1, 0.9, 0.0, 0.0, 0.0)


NETWORKS = {
    "dense": (lambda: mlp(12, (8, 6), 4), amsgrad(0.01), rules.low_rank(2)),
    "images": (lambda: vgg_like((8, 8, 2), 4, widths=(3, 4), dense=6), rmsprop(0.003), rules.low_rank(2)),
    "direct": (lambda: vgg_like((8, 8, 2), 4, widths=(3, 4), dense=6), sgd(0.1), rules.direct_low_rank(2)),
    "patches": (lambda: vit((8, 8, 2), 4, patch=4, width=6, depth=1, heads=2), adamw(0.01), rules.low_rank(2)),
    "tokens": (lambda: decoder(5, 7, width=6, depth=1, heads=2, dropout=0.1), muon(0.01), rules.backpropagation()),
}


def trained(name, seed=0):
    """Return all arrays of a small network after four steps of training."""
    model, optimiser, rule = NETWORKS[name][0](), *NETWORKS[name][1:]
    rng = np.random.default_rng(0)
    state, _ = initial_state(model, rule, Optimizers(optimiser), 0, lambda array: np.array(array, order="C"))
    for number in range(1, 5):
        x = rng.integers(0, 7, (6, 5)) if name == "tokens" else rng.standard_normal((6, *model.shape))
        labels = rng.integers(0, model.n_out, (6, 5) if name == "tokens" else 6)
        state, _, _ = step(
            model, rule, cross_entropy, Optimizers(optimiser), state, x, one_hot(labels, model.n_out, like=np.zeros(1)),
            number=number, key=Key(seed),
        )  # fmt: skip
    return flatten({"weights": state.weights, "buffers": state.buffers, "channels": state.channels})


@pytest.mark.parametrize("name", NETWORKS)
def test_training_through_all_of_them_is_that_of_the_cpu(host, monkeypatch, name):
    expected, other, called, module = trained(name), trained(name, seed=1), set(), linfb.kernels._module

    def found(device, topic):
        called.add(topic)
        return module(device.replace("cpu", "gpu"), topic)

    monkeypatch.setattr(linfb.kernels, "_module", found)
    got = trained(name)
    assert got.keys() == expected.keys()
    assert all(np.allclose(got[path], expected[path], rtol=0, atol=1e-9) for path in got)
    topics = {
        "dense": {"activations", "norms"},
        "images": {"activations", "norms", "images", "random"},
        "direct": {"activations", "norms", "images", "random"},
        "patches": {"activations", "norms", "sequences", "random"},
        "tokens": {"activations", "norms", "sequences", "random"},
    }
    assert called >= {"optimisers", *topics[name]}
    if "random" in called:
        assert not all(np.allclose(got[path], other[path], rtol=0, atol=1e-9) for path in got)


@pytest.mark.parametrize("images", [0, 1])
def test_nothing_to_do_is_no_trouble(twins, images):
    gpu, reference = twins("images")
    x, kernel = np.ones((images, 4, 4, 2)), np.ones((3, 3, 3, 2))
    for function, arguments in (
        ("convolve", (x, kernel, 1, 1)),
        ("convolve_grad", (x, np.ones((images, 4, 4, 3)), (3, 3), 1, 1)),
        ("convolve_pull", (np.ones((images, 2, 2, 3)), kernel, (4, 4), 2, 1)),
        ("max_pool", (x, 2, 2)),
    ):
        assert close(getattr(gpu, function)(*arguments), getattr(reference, function)(*arguments), "float64", 4)
    gpu, reference = twins("norms")
    assert close(gpu.feature_sums(x), reference.feature_sums(x), "float64")
    arguments = (x, np.ones(2), np.ones(2), 1e-3)
    assert close(gpu.layer_norm(*arguments), reference.layer_norm(*arguments), "float64")
    gpu, reference = twins("sequences")
    arguments = (np.ones((images, 4, 6)), 2, True)
    assert close(gpu.attention(*arguments), reference.attention(*arguments), "float64")


def test_what_kernels_cannot_take_is_refused(host):
    gpu = gpu_activations
    with pytest.raises(TypeError, match=r"kernels take arrays of dtype float16.*got int64"):
        gpu.relu(np.ones(2, dtype=np.int64))
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31 entries, got 2147483648"):
        _cuda.launch(gpu.SOURCE, "relu", np.dtype("float32"), 1, 1, 2**31)
    gain = np.ones(3)
    with pytest.raises(TypeError, match=r"arrays must agree.*float32.*float64"):
        gpu_norms.layer_norm(np.ones((2, 3), "float32"), gain, gain, 1e-5)
    with pytest.raises(ValueError, match=r"C-contiguous arrays, got one with strides \(16,\)"):
        gpu_norms.layer_norm(np.ones((2, 3)), np.ones(6)[::2], gain, 1e-5)


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """What runs the normalisation of rows by a kernel in which a text is replaced."""
    gpu = gpu_norms

    def run(before, after):
        assert gpu.SOURCE.count(before) == 1
        sources = {"norms": gpu.SOURCE.replace(before, after)}
        monkeypatch.setattr(_cuda, "function", emulated(build(tmp_path, sources), sources))
        monkeypatch.setattr(gpu, "SOURCE", sources["norms"])
        x, gain = np.random.default_rng(0).standard_normal((4, 40)), np.ones(40)
        return close(gpu.layer_norm(x, gain, gain, 1e-5), reference_norms.layer_norm(x, gain, gain, 1e-5), "float64")

    return run


def test_the_emulation_passes_a_right_kernel(changed):
    assert changed("int lane = 16", "int lane = 32 / 2")


def test_the_emulation_sees_half_of_a_sum(changed):
    assert not changed("int lane = 16", "int lane = 8")


def test_the_emulation_sees_a_step_outside(changed):
    with pytest.raises(IndexError, match="outside"):
        changed("normalised[start + c] = T(value)", "normalised[start + c + 1] = T(value)")
