"""Read an ONNX teacher's graph and its external weights, if the exporter stored them in a second file.

An ONNX graph can name any file on the machine as its external data, and the runtime would read it. Here only a plain
file name in the graph's own folder is accepted; histill's storage reads it and passes the bytes to the runtime.
"""

import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from google.protobuf.message import DecodeError, Message

from histill.config.common import Storage
from histill.errors import InputError
from histill.storage.control import read_bytes
from histill.storage.filesystems import control_filesystem, storage_errors
from histill.storage.uris import beside, is_remote, local_path

MOST_BYTES = 16 * 2**30
"""Largest weights file, which is held in memory while the runtime loads it."""
_PLAIN_NAME = re.compile(r"(?!\.{1,2}$)[^/\\:\x00-\x1f\x7f]{1,255}")
_KEYS = {"location", "offset", "length", "checksum"}
_MEND = "export it again with the weights inside, or in one file beside it"


@dataclass(frozen=True)
class Graph:
    """The bytes of an ONNX file and of its external weights (file name -> content), if there are any."""

    data: bytes
    weights: Mapping[str, bytes]


def read_graph(uri: str, storage: Storage) -> Graph:
    """Read the `.onnx` file at `uri` and its weights.

    Raises:
        FileNotFoundError: there is no file at `uri`.
        InputError: it is not an ONNX file; its weights are not all inside or in one file with a plain name in the same
            folder; that file is missing, links out of the folder, is larger than 16 GiB or shorter than the graph says.
    """
    data = read_bytes(uri, storage)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise InputError(f"{uri} is not an ONNX file; other formats are not loaded.", code="onnx-unusable") from None
    outside = [tensor for tensor in model.graph.initializer if _is_outside(tensor)]
    for tensor in _tensors(model):
        if _is_outside(tensor) and not any(tensor is each for each in outside):
            raise InputError(
                f"{uri} keeps the weights {tensor.name!r} of a node in another file, which is not loaded; {_MEND}.",
                code="onnx-weights-outside",
            )
    if not outside:
        return Graph(data, {})
    parts = [_part(uri, tensor) for tensor in outside]
    if len(names := sorted({name for name, _, _ in parts})) > 1:
        raise InputError(f"{uri} keeps its weights in {len(names)} other files; {_MEND}.", code="onnx-weights-outside")
    where = beside(uri, names[0])
    size = _size_of(uri, where, storage)
    for (_, offset, length), tensor in zip(parts, outside, strict=True):
        if offset + length > size:
            raise InputError(
                f"{where} has {size} bytes, and {uri} looks for the weights {tensor.name!r} at {offset} to "
                f"{offset + length}; it was cut short or is another model's, so export the teacher again.",
                code="onnx-unusable",
            )
    return Graph(data, {names[0]: read_bytes(where, storage)})


def _is_outside(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data) > 0


def _part(uri: str, tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """The file, offset and length in bytes of one tensor's weights."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "")
    numbers = [entries.get(key, str(otherwise)) for key, otherwise in (("offset", 0), ("length", _bytes_of(tensor)))]
    if len(entries) < len(tensor.external_data) or not entries.keys() <= _KEYS or not all(map(_is_number, numbers)):
        raise InputError(
            f"{uri} does not say validly where the weights {tensor.name!r} are stored; export it again.",
            code="onnx-unusable",
        )
    if _PLAIN_NAME.fullmatch(name) is None:
        raise InputError(
            f"{uri} keeps the weights {tensor.name!r} in another file, {name!r}, which is not loaded, since it is no "
            f"plain name in the same folder; {_MEND}.",
            code="onnx-weights-outside",
        )
    return name, int(numbers[0]), int(numbers[1])


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,18}", text) is not None


def _bytes_of(tensor: onnx.TensorProto) -> int:
    """Bytes from the tensor's shape and type; an upper bound for types below a byte, which count as one."""
    try:
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        itemsize = 1
    return math.prod(tensor.dims) * itemsize


def _size_of(uri: str, where: str, storage: Storage) -> int:
    """Size of the weights file in bytes. Raises InputError when it is missing, too large or outside the folder."""
    try:
        size = _size_of_object(where, storage) if is_remote(where) else _size_in_folder(where)
    except FileNotFoundError:
        raise InputError(
            f"{where} is missing, where {uri} keeps its weights; copy it there as well.", code="onnx-weights-outside"
        ) from None
    if size > MOST_BYTES:
        raise InputError(
            f"{where} has {size} bytes, and {MOST_BYTES} are the most that are loaded; use a smaller one.",
            code="onnx-unusable",
        )
    return size


def _size_of_object(where: str, storage: Storage) -> int:
    filesystem, path = control_filesystem(where, storage)
    with storage_errors(where, storage):
        return int(filesystem.info(path)["size"])


def _size_in_folder(where: str) -> int:
    path = local_path(where)
    folder, real = os.path.realpath(os.path.dirname(path)), os.path.realpath(path)
    if os.path.dirname(real) != folder:
        raise InputError(
            f"{where} leads out of its folder, to {real}, which is not loaded; copy the file there.",
            code="onnx-weights-outside",
        )
    found = os.stat(real)
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{where} is no file with weights; export the teacher again.", code="onnx-weights-outside")
    return found.st_size


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model: in graphs, subgraphs, attributes and functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for below in (value,) if isinstance(value, Message) else value:
                yield from _tensors(below)
