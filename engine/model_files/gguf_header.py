"""The header of a GGUF file, read in place: whether the file is whole, and whether it is one of several parts.

The library's own reader makes an array of every string of the vocabulary, which takes seconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from math import prod
from typing import BinaryIO, NamedTuple

_STRING, _ARRAY = 8, 9

#: ``struct`` formats of the types of values that are numbers.
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class GgufHeader(NamedTuple):
    """What a header says.

    Attributes:
        parts: files that the model is cut into; 1 for a whole model.
        num_bytes: of the file with all the tensors that the header lists.
    """

    parts: int
    num_bytes: int


def read_gguf_header(path: str) -> GgufHeader:
    """Read the header of a file whose bytes are in little-endian order.

    Raises:
        ValueError: it ends inside the header, or what is in it is no header.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        _, version, num_tensors, num_values = _read(file, "4sIQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version} of GGUF is not known")
        values = dict(_values(file, num_values))
        ends = [_end_of_tensor(file) for _ in range(num_tensors)]
        alignment = int(values.get("general.alignment", 32))
        begin = -(-file.tell() // alignment) * alignment
    return GgufHeader(int(values.get("split.count", 1)) or 1, begin + max(ends, default=0))


def _values(file: BinaryIO, count: int) -> Iterator[tuple[str, float]]:
    """The values that are single numbers, by name."""
    for _ in range(count):
        [length] = _read(file, "Q")
        name = _take(file, length).decode("utf8", errors="replace")
        [kind] = _read(file, "I")
        if kind in _FORMATS:
            yield name, _read(file, _FORMATS[kind])[0]
        else:
            _skip(file, kind)


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        [length] = _read(file, "Q")
        _take(file, length)
    elif kind == _ARRAY:
        inner, length = _read(file, "IQ")
        if inner in _FORMATS:
            _take(file, length * struct.calcsize(_FORMATS[inner]))
            return
        for _ in range(length):
            _skip(file, inner)
    else:
        raise ValueError(f"a value of type {kind}")


def _end_of_tensor(file: BinaryIO) -> int:
    """Where a tensor ends, after the header."""
    from gguf import GGML_QUANT_SIZES

    [length] = _read(file, "Q")
    name = _take(file, length).decode("utf8", errors="replace")
    [num_dimensions] = _read(file, "I")
    if num_dimensions > 8:
        raise ValueError(f"tensor {name} has {num_dimensions} dimensions")
    *dimensions, kind, begin = _read(file, f"{num_dimensions}QIQ")
    if kind not in GGML_QUANT_SIZES:
        raise ValueError(f"tensor {name} has numbers of the unknown type {kind}")
    block, size = GGML_QUANT_SIZES[kind]
    return begin + prod(dimensions) // block * size


def _read(file: BinaryIO, form: str) -> tuple:
    return struct.unpack(f"<{form}", _take(file, struct.calcsize(f"<{form}")))


def _take(file: BinaryIO, count: int) -> bytes:
    data = file.read(count) if count < 2**40 else b""
    if len(data) < count:
        raise ValueError("it ends inside its header")
    return data
