"""Reader of files in PyTorch's format before version 1.6, without PyTorch.

Such a file is a sequence of pickles: a magic number, the version of the protocol, a description of the machine, the
named tensors, and the keys of their storages. The storages follow: the number of elements of each, then its elements. A
tensor is a view of a storage, by offset, shape and strides. (torch/serialization.py, `_legacy_save`.)

A pickle can run any code. Here it can use only the four names of `_ALLOWED`; any other name is refused.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


class TorchFileError(Exception):
    """A file that is not of this format, is damaged, or contains more than tensors."""


class _View(NamedTuple):
    """A tensor as its pickle describes it; offset and strides count elements."""

    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> _View:
    """Stand in for `torch._utils._rebuild_tensor_v2`, whose further arguments concern gradients."""
    return _View(storage, offset, shape, strides)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.dtypes: dict[str, np.dtype[Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise TorchFileError(f"it uses {module}.{name}, which is not allowed in a file of weights")
        return _ALLOWED[module, name]

    def persistent_load(self, saved: Any) -> str:
        """Note the type of a storage, which is read later, and return its key."""
        _, dtype, key, *_ = saved
        self.dtypes[key] = dtype
        return str(key)


def read_tensors(content: bytes) -> dict[str, NDArray[Any]]:
    """Read the tensors of a file by name, each with its elements in the order of its shape.

    Raises:
      TorchFileError: if the file is not of this format, is damaged, or contains anything but tensors.
    """
    try:
        return _tensors(io.BytesIO(content))
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise TorchFileError(f"it is damaged, or not in the format of PyTorch before 1.6: {error}") from error


def _tensors(file: io.BytesIO) -> dict[str, NDArray[Any]]:
    magic, protocol, _ = (_Unpickler(file).load() for _ in range(3))
    if (magic, protocol) != (_MAGIC, _PROTOCOL):
        raise TorchFileError("it is not in the format of PyTorch before 1.6")
    unpickler = _Unpickler(file)
    views: dict[str, _View] = unpickler.load()
    storages = {}
    for key in _Unpickler(file).load():
        dtype = unpickler.dtypes[key]
        num_elements = int.from_bytes(file.read(8), "little")
        storages[key] = np.frombuffer(file.read(num_elements * dtype.itemsize), dtype, num_elements)
    return {name: _array(view, storages[view.storage]) for name, view in views.items()}


def _array(view: _View, storage: NDArray[Any]) -> NDArray[Any]:
    last = view.offset + sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    if min((view.offset, *view.shape, *view.strides)) < 0 or last >= len(storage):
        raise TorchFileError("a tensor reaches beyond its storage")
    strides = [stride * storage.itemsize for stride in view.strides]
    return np.lib.stride_tricks.as_strided(storage[view.offset :], view.shape, strides).copy()
