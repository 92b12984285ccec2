"""CUDA kernels as C++ on the host: a grid's threads one after the other, those of a block by turns at its barriers."""

import ctypes
import itertools
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import linfb.kernels
from linfb.kernels import _cuda

FOLDER = Path(linfb.kernels.__file__).parent
TOPICS = sorted(path.stem.removeprefix("gpu_") for path in FOLDER.glob("gpu_*.py"))
SOURCES = {topic: import_module(f"linfb.kernels.gpu_{topic}").SOURCE for topic in TOPICS}

EMULATION = r"""
#include <cmath>
#include <functional>
#include <ucontext.h>
#include <vector>
using std::sqrt; using std::exp; using std::erf; using std::erfc;

#define __global__ static
#define __device__
#define __shared__ static
#define __restrict__
struct Place { unsigned x, y, z; };
static Place threadIdx, blockIdx, blockDim, gridDim;

struct Thread { ucontext_t context; std::vector<char> stack; bool done; };
static ucontext_t scheduler;
static std::vector<Thread> block;
static unsigned current;
static std::function<void()> body;
static double lanes[1024];

static void barrier() { swapcontext(&block[current].context, &scheduler); }
static void start() { body(); block[current].done = true; }
#define __syncthreads barrier
#define __syncwarp(...) barrier()
template <typename V> V __shfl_xor_sync(unsigned, V value, int mask) {
    unsigned own = current;
    lanes[own] = double(value);
    barrier();
    V other = V(lanes[own ^ mask]);
    barrier();
    return other;
}

static void run(unsigned blocks, unsigned beside, unsigned across, unsigned along) {
    blockDim = {across, along, 1}; gridDim = {blocks, beside, 1};
    block.resize(across * along);
    for (unsigned b = 0; b < blocks * beside; b++) {
        for (auto& thread : block) {
            getcontext(&thread.context);
            thread.stack.resize(1 << 14);
            thread.context.uc_stack.ss_sp = thread.stack.data();
            thread.context.uc_stack.ss_size = thread.stack.size();
            thread.context.uc_link = &scheduler;
            thread.done = false;
            makecontext(&thread.context, start, 0);
        }
        for (bool waiting = true; waiting;) {
            waiting = false;
            for (current = 0; current < block.size(); current++) {
                if (block[current].done) continue;
                threadIdx = {current % across, current / across, 0}; blockIdx = {b % blocks, b / blocks, 0};
                swapcontext(&scheduler, &block[current].context);
                waiting |= !block[current].done;
            }
        }
    }
}
"""
HOST = ("float", "double")
FRAME = 4096


def parameters(source, name, type):
    """Return types and names of a kernel's parameters, as C++ has them for one precision."""
    text = re.search(rf"__global__ void {name}\((.*?)\)", source, re.DOTALL).group(1)
    pairs = [re.fullmatch(r"(.*?)(\w+)", part.strip(), re.DOTALL).groups() for part in text.split(",")]
    return [(re.sub(r"\bT\b", type, kind.strip()), parameter) for kind, parameter in pairs]


def program(sources):
    """Return C++ that has every kernel of the sources as a function of a grid, a block and its own arguments."""
    text = EMULATION + re.sub(r"#include <cuda_\w+.h>", "", _cuda.PRELUDE)
    for topic, source in sources.items():
        text += f"namespace gpu_{topic} {{\n{source}\n}}\n"
        for name, type in itertools.product(_cuda.names(source), HOST):
            own = parameters(source, name, type)
            declared = ", ".join(f"{kind} {parameter}" for kind, parameter in own)
            handed = ", ".join(parameter for _, parameter in own)
            text += (
                f'extern "C" void {topic}_{name}_{type}(unsigned blocks, unsigned beside, unsigned across, '
                f"unsigned along, {declared}) {{ body = [=] {{ gpu_{topic}::{name}<{type}>({handed}); }}; "
                f"run(blocks, beside, across, along); }}\n"
            )
    return text


def framed(value):
    """Return an argument for C, and what checks and copies back an array: it stands in a frame that must stay."""
    if not isinstance(value, np.ndarray):
        return np.ctypeslib.as_ctypes_type(value.dtype)(value.item()), lambda: None
    assert value.flags.c_contiguous
    frame = np.full(value.nbytes + 2 * FRAME, 0xFF, dtype=np.uint8)  # NaN in every precision
    inside = frame[FRAME : FRAME + value.nbytes]
    inside[:] = np.frombuffer(value.tobytes(), dtype=np.uint8)

    def back():
        if not (np.all(frame[:FRAME] == 0xFF) and np.all(frame[FRAME + value.nbytes :] == 0xFF)):
            raise IndexError("a kernel wrote outside of an array")
        after = np.frombuffer(inside.tobytes(), dtype=value.dtype).reshape(value.shape)
        if value.flags.writeable:
            value[...] = after
        else:  # kept for other calls
            assert np.array_equal(after, value)

    return inside.ctypes.data_as(ctypes.c_void_p), back


def build(folder, sources):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    (folder / "kernels.cpp").write_text(program(sources))
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-o", "kernels.so", "kernels.cpp"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return ctypes.CDLL(str(folder / "kernels.so"))


def emulated(library, sources):
    """Return what takes the place of `_cuda.function`."""
    topics = {source: topic for topic, source in sources.items()}

    def function(source, name, type):
        kernel = getattr(library, f"{topics[source]}_{name}_{type}")

        def call(grid, block, arguments):
            assert len(arguments) == len(parameters(source, name, type))
            for (kind, parameter), value in zip(parameters(source, name, type), arguments, strict=True):
                assert matches(kind, value, type), (name, kind, parameter, value)
            assert np.prod(block) <= 1024
            handed, backs = zip(*map(framed, arguments), strict=True)
            kernel(*grid, *block, *handed)
            for back in backs:
                back()

        return call

    return function


def matches(kind, value, type):
    """Whether an argument has the type that the kernel's parameter has."""
    names = {
        "float": "float32", "double": "float64", "unsigned char": "uint8", "bool": "bool", "int": "int32",
        "unsigned long long": "uint64",
    }  # fmt: skip
    plain = kind.replace("const ", "").replace(f"wide<{type}>", type)
    if plain.endswith("*"):
        null = isinstance(value, np.uintp) and value == 0
        return null or (isinstance(value, np.ndarray) and value.dtype == names[plain[:-1].strip()])
    return value.dtype == names.get(plain)
