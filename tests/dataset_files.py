"""Small files in the formats of MNIST, CIFAR and SVHN, and damaged copies of them; for the tests of linfb.datasets."""

import gzip
import io
import lzma
import struct

import numpy as np
from hypothesis import strategies as st
from scipy.io import savemat

PACK = {"": bytes, ".gz": lambda data: gzip.compress(data, mtime=0), ".xz": lzma.compress}


# What Python 2 wrote, instruction by instruction -------------------------------------------------------------------
def string(text):
    text = text if isinstance(text, bytes) else text.encode()
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text


def integer(value):
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def sequence(items):
    return b"](" + b"".join(items) + b"e"


def array(content, shape, *, function=b"cnumpy.core.multiarray\n_reconstruct\n", kind="u1", order=b"\x89"):
    constructor = function + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\n" + string(kind) + b"K\x00K\x01\x87R(K\x03U\x01|NNN" + integer(-1) * 2 + b"K\x00tb"
    sizes = b"".join(map(integer, shape)) + (b"\x86" if len(shape) == 2 else b"\x85")
    return constructor + b"(K\x01" + sizes + dtype + order + string(content) + b"tb"


def dictionary(entries):
    return b"\x80\x02}q\x01(" + b"".join(string(key) + value for key, value in entries.items()) + b"u."


def entries(images, labels):
    """The pickled entries of a CIFAR-10 batch; images (sample, 32, 32, 3)."""
    rows = np.asarray(images, np.uint8).transpose(0, 3, 1, 2).reshape(len(images), -1)
    return {
        "batch_label": string("training batch 1 of 1"),
        "labels": sequence(integer(int(label)) for label in labels),
        "data": array(rows.tobytes(), rows.shape),
        "filenames": sequence(string(f"image_{i}.png") + b"q\x05" for i in range(len(images))),
    }


def batch(images, labels):
    return dictionary(entries(images, labels))


def idx(values):
    values = np.asarray(values, np.uint8)
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def mat(**variables):
    buffer = io.BytesIO()
    savemat(buffer, variables, do_compression=True)
    return buffer.getvalue()


def mutations(data):
    """Strategy: `data` with a byte changed, a piece cut out, cut short, or bytes put in."""
    place = st.integers(0, len(data) - 1)
    changed = st.tuples(place, st.integers(1, 255)).map(
        lambda at: data[: at[0]] + bytes([data[at[0]] ^ at[1]]) + data[at[0] + 1 :]
    )
    short = place.map(lambda at: data[:at])
    cut = st.tuples(place, st.integers(1, 40)).map(lambda at: data[: at[0]] + data[at[0] + at[1] :])
    more = st.tuples(place, st.binary(min_size=1, max_size=20)).map(lambda at: data[: at[0]] + at[1] + data[at[0] :])
    return st.one_of(changed, short, cut, more)


def result_or_refusal(read):
    """What `read()` returns, or the message of its ValueError; any other error passes on."""
    try:
        return read()
    except ValueError as error:
        return str(error)
