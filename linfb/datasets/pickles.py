"""Reads the pickles of CIFAR-10 and CIFAR-100 with a machine that knows two dozen harmless instructions.

A pickle is a program, and :func:`pickle.load` runs it. The CIFAR files need very little of that language: strings,
small integers, lists, one dictionary and one array of unsigned bytes. :func:`read_pickle` carries out just this
and refuses every other instruction, so no name is ever looked up and nothing is ever called. The three names that
the originals mention (NumPy's array, its constructor and dtype) become tokens, accepted in the one arrangement
that spells "an array of unsigned bytes of this shape".
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

__all__ = ["read_pickle"]

_MAX_OPERATIONS = 1_000_000  # the largest original, CIFAR-100's train, needs about 202,000
_MAX_MARKS = 4


class _Token(enum.Enum):
    RECONSTRUCT = b"numpy.core.multiarray\n_reconstruct\n"
    NDARRAY = b"numpy\nndarray\n"
    DTYPE = b"numpy\ndtype\n"
    EMPTY_ARRAY = "an array without content"
    BARE_UINT8 = "the unsigned-byte type without byte order"
    UINT8 = "the unsigned-byte type"


_GLOBALS = {token.value: token for token in (_Token.RECONSTRUCT, _Token.NDARRAY, _Token.DTYPE)}
_CALLS = (
    (_Token.RECONSTRUCT, (_Token.NDARRAY, (0,), b"b"), _Token.EMPTY_ARRAY),
    (_Token.DTYPE, (b"u1", 0, 1), _Token.BARE_UINT8),
)
_UINT8_STATE = (3, b"|", None, None, None, -1, -1, 0)


class _Reader:
    """The state of one reading: position, stack, marks and remembered strings."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # what lies under each mark
        self.memo: dict[int, bytes] = {}

    def refuse(self, reason: str) -> NoReturn:
        raise ValueError(f"refused as a CIFAR file: {reason} (before byte {self.position} of {len(self.data)})")

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.position:
            self.refuse(f"{count} bytes announced, {len(self.data) - self.position} left")
        self.position += count
        return self.data[self.position - count : self.position]

    def unsigned(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def signed(self) -> int:
        return int.from_bytes(self.take(4), "little", signed=True)

    def pop(self) -> Any:
        if not self.stack:
            self.refuse("an instruction finds too little on the stack")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            self.refuse(f"an instruction needs a {kind.__name__}")
        return self.stack[-1]

    def mark(self) -> None:
        if len(self.below) == _MAX_MARKS:
            self.refuse("nested too deeply")
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        if not self.below:
            self.refuse("a mark is missing")
        items, self.stack = self.stack, self.below.pop()
        return items

    def put(self, key: int) -> None:
        if not self.stack:
            self.refuse("nothing to remember")
        if type(self.stack[-1]) is bytes:
            self.memo[key] = self.stack[-1]

    def get(self, key: int) -> None:
        if key not in self.memo:
            self.refuse("only strings can be recalled")
        self.stack.append(self.memo[key])

    def protocol(self) -> None:
        if self.position != 1 or self.unsigned(1) != 2:
            self.refuse("not pickle protocol 2")

    def token(self) -> None:
        end = self.position
        for _ in range(2):
            end = self.data.find(b"\n", end, self.position + 64) + 1
            if end == 0:
                self.refuse("a global name without end")
        name = self.take(end - self.position)
        if name not in _GLOBALS:
            self.refuse(f"global name {name!r} is not allowed")
        self.stack.append(_GLOBALS[name])

    def tuple_of(self, items: list[Any]) -> None:
        for item in items:
            flat = type(item) in (int, bool, bytes, type(None), _Token)
            if not flat and not (type(item) is tuple and all(type(inner) is int for inner in item)):
                self.refuse(f"a tuple may not hold a {type(item).__name__}")
        self.stack.append(tuple(items))

    def append(self, items: list[Any]) -> None:
        if not all(type(item) in (int, bytes) for item in items):
            self.refuse("a list may hold only integers and strings")
        self.top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        if len(items) % 2:
            self.refuse("a key without value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not bytes or type(value) not in (int, bytes, list, np.ndarray):
                self.refuse(f"an entry {type(key).__name__}: {type(value).__name__} is not allowed")
            if key in target:
                self.refuse("a key comes twice")
            target[key] = value

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        for allowed, expected, result in _CALLS:
            if function is allowed and type(arguments) is tuple and arguments == expected:
                self.stack.append(result)
                return
        self.refuse("a call other than that of an array of unsigned bytes")

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        if target is _Token.BARE_UINT8 and type(state) is tuple and state == _UINT8_STATE:
            self.stack.append(_Token.UINT8)
        elif target is _Token.EMPTY_ARRAY and type(state) is tuple and len(state) == 5:
            self.stack.append(self.array(*state))
        else:
            self.refuse("a state other than that of an array of unsigned bytes")

    def array(self, version: Any, shape: Any, dtype: Any, fortran: Any, content: Any) -> np.ndarray:
        if version != 1 or dtype is not _Token.UINT8 or fortran is not False or type(content) is not bytes:
            self.refuse("an array that is not of unsigned bytes in C order")
        if type(shape) is not tuple or len(shape) != 2 or min(shape) < 0 or shape[0] * shape[1] != len(content):
            self.refuse("an array whose shape does not fit its content")
        return np.frombuffer(content, np.uint8).reshape(shape)


_INSTRUCTIONS: dict[int, Callable[[_Reader], Any]] = {
    0x80: _Reader.protocol,
    ord("}"): lambda r: r.stack.append({}),
    ord("]"): lambda r: r.stack.append([]),
    ord(")"): lambda r: r.stack.append(()),
    ord("("): _Reader.mark,
    ord("q"): lambda r: r.put(r.unsigned(1)),
    ord("r"): lambda r: r.put(r.unsigned(4)),
    ord("h"): lambda r: r.get(r.unsigned(1)),
    ord("j"): lambda r: r.get(r.unsigned(4)),
    ord("U"): lambda r: r.stack.append(r.take(r.unsigned(1))),
    ord("T"): lambda r: r.stack.append(r.take(r.signed())),
    ord("K"): lambda r: r.stack.append(r.unsigned(1)),
    ord("M"): lambda r: r.stack.append(r.unsigned(2)),
    ord("J"): lambda r: r.stack.append(r.signed()),
    ord("N"): lambda r: r.stack.append(None),
    0x89: lambda r: r.stack.append(False),
    ord("t"): lambda r: r.tuple_of(r.since_mark()),
    0x85: lambda r: r.tuple_of([r.pop()]),
    0x86: lambda r: r.tuple_of([r.pop(), r.pop()][::-1]),
    0x87: lambda r: r.tuple_of([r.pop(), r.pop(), r.pop()][::-1]),
    ord("a"): lambda r: r.append([r.pop()]),
    ord("e"): lambda r: r.append(r.since_mark()),
    ord("s"): lambda r: r.set_items([r.pop(), r.pop()][::-1]),
    ord("u"): lambda r: r.set_items(r.since_mark()),
    ord("c"): _Reader.token,
    ord("R"): _Reader.call,
    ord("b"): _Reader.build,
}


def read_pickle(data: bytes) -> dict[bytes, Any]:
    r"""Return the dictionary of a CIFAR pickle without running it.

    Parameters
    ----------
    data : bytes
        The whole file: pickle protocol 2 as Python 2 wrote it.

    Returns
    -------
    dict
        From strings (bytes) to integers, strings, lists of these, or one (rows, columns) array of uint8.

    Raises
    ------
    ValueError
        If the file holds any instruction, name, type or nesting beyond those of the originals, or ends early or late.

    Examples
    --------
    >>> read_pickle(b"\x80\x02}U\x04sizeK\x07s.")
    {b'size': 7}
    >>> import pickle
    >>> read_pickle(pickle.dumps(print, protocol=2))
    Traceback (most recent call last):
    ...
    ValueError: refused as a CIFAR file: global name b'__builtin__\nprint\n' is not allowed (before byte 21 of 24)
    """
    reader = _Reader(data)
    for _ in range(_MAX_OPERATIONS):
        code = reader.unsigned(1)
        if code == ord("."):
            break
        if code not in _INSTRUCTIONS:
            reader.refuse(f"pickle instruction {bytes([code])!r} is not allowed")
        if reader.position == 1 and code != 0x80:
            reader.refuse("not pickle protocol 2")
        _INSTRUCTIONS[code](reader)
    else:
        reader.refuse(f"more than {_MAX_OPERATIONS} instructions")
    return _result(reader)


def _result(reader: _Reader) -> dict[bytes, Any]:
    if reader.below or len(reader.stack) != 1 or type(reader.stack[0]) is not dict:
        reader.refuse("its content is not one dictionary")
    if reader.position != len(reader.data):
        reader.refuse("bytes after the end")
    return reader.stack[0]
