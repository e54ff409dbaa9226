"""Files of PyTorch are read without running what is in them."""

import io
import os
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest

from easyrec_mm.weights.torch_file import TorchFileError, read_tensors


class Storage:
    """What a pickle of a tensor refers to."""

    def __init__(self, key, kind, values):
        self.key, self.kind, self.values = key, kind, values


class Tensor:
    """A view of a storage, pickled as PyTorch does."""

    def __init__(self, *view):
        self.view = view

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (*self.view, False, OrderedDict())


@pytest.fixture
def torch(monkeypatch):
    """Modules with the names that a pickle of tensors refers to."""
    package, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage", "HalfStorage"):
        setattr(package, name, type(name, (), {"__module__": "torch"}))

    def rebuild():
        """Named here, run by nobody."""

    rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = "torch._utils", *["_rebuild_tensor_v2"] * 2
    utils._rebuild_tensor_v2 = rebuild
    monkeypatch.setitem(sys.modules, "torch", package)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return package


def torch_file(tensors, storages, magic=0x1950A86A20F9469CFC6C):
    file = io.BytesIO()
    for part in (magic, 1001, {"little_endian": True}):
        pickle.dump(part, file, protocol=2)
    pickler = pickle.Pickler(file, protocol=2)
    pickler.persistent_id = lambda part: (
        ("storage", part.kind, part.key, "cpu", len(part.values), None) if isinstance(part, Storage) else None
    )
    pickler.dump(tensors)
    pickle.dump([storage.key for storage in storages], file, protocol=2)
    for storage in storages:
        file.write(len(storage.values).to_bytes(8, "little") + storage.values.tobytes())
    return file.getvalue()


def test_tensors_are_views_of_storages(torch):
    """Transposed, from the middle, of no dimension, empty, and of integers."""
    numbers = Storage("n", torch.FloatStorage, np.arange(12, dtype="<f4"))
    counts = Storage("c", torch.LongStorage, np.array([7, 8], "<i8"))
    content = torch_file(
        OrderedDict(
            plain=Tensor(numbers, 0, (3, 4), (4, 1)),
            transposed=Tensor(numbers, 0, (4, 3), (1, 4)),
            part=Tensor(numbers, 5, (2, 2), (4, 1)),
            count=Tensor(counts, 1, (), ()),
        ),
        [counts, numbers],
    )
    tensors = read_tensors(content)
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(tensors["plain"], matrix)
    np.testing.assert_array_equal(tensors["transposed"], matrix.T)
    np.testing.assert_array_equal(tensors["part"], matrix[1:, 1:3])
    assert tensors["count"] == 8
    assert tensors["count"].dtype == np.int64
    assert all(value.flags.owndata for value in tensors.values())


def test_a_file_that_would_run_code_is_refused(torch, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    with pytest.raises(TorchFileError, match=r"it uses \w+\.mkdir, which is not allowed in a file of weights"):
        read_tensors(torch_file(OrderedDict(a=Trap()), []))
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("view", [(1, (2, 2), (2, 1)), (0, (5,), (1,)), (-1, (2,), (1,)), (3, (2,), (-1,))])
def test_a_tensor_beyond_its_storage_is_refused(torch, view):
    storage = Storage("n", torch.FloatStorage, np.zeros(4, "<f4"))
    with pytest.raises(TorchFileError, match="a tensor reaches beyond its storage"):
        read_tensors(torch_file({"a": Tensor(storage, *view)}, [storage]))


def test_other_and_damaged_files_are_refused(torch):
    storage = Storage("n", torch.FloatStorage, np.zeros(4, "<f4"))
    content = torch_file({"a": Tensor(storage, 0, (4,), (1,))}, [storage])
    assert read_tensors(content)["a"].shape == (4,)
    for end in range(len(content)):
        with pytest.raises(TorchFileError):
            read_tensors(content[:end])
    half = Storage("n", torch.HalfStorage, np.zeros(4, "<f2"))
    with pytest.raises(TorchFileError, match=r"it uses torch\.HalfStorage"):
        read_tensors(torch_file({"a": Tensor(half, 0, (4,), (1,))}, [half]))
    with pytest.raises(TorchFileError, match=r"is not in the format of PyTorch before 1\.6"):
        read_tensors(torch_file({}, [], magic=1))
    with pytest.raises(TorchFileError, match="is damaged, or not in the format of PyTorch"):
        read_tensors(b"PK\x03\x04")
