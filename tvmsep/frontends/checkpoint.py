"""PyTorch checkpoints without PyTorch, and without running what is in them.

A checkpoint is a pickle, and a pickle may run any code. This reader knows four names (the ordered
dictionary, the tensor rebuilder and two storage types) and refuses every other.

The layout is that of `torch.save` before 1.6, in which older published checkpoints still come:
three small pickles (magic number, protocol, sizes of the writer's types), the pickled object, the
pickled list of storage keys, then each storage as an element count (int64) and raw little-endian
data.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from tvmsep.contracts import ModelError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_STORAGES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


class _Tensor:
    """A view of a storage whose data comes later in the file."""

    def __init__(self, key: str, dtype: str, offset: int, shape: tuple[int, ...]) -> None:
        self.key, self.dtype, self.offset, self.shape = key, dtype, offset, shape


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise ModelError(f"the checkpoint asks for {module}.{name}: only plain tensors are read")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        """A storage is named by (`storage`, type, key, device, elements, view)."""
        tag, dtype, key, _, _, view = pid
        if tag != "storage" or view is not None:
            raise ModelError("the checkpoint holds storage views: only plain tensors are read")
        return str(key), dtype


class _Dict(OrderedDict[str, Any]):
    """State dicts carry version marks beside their entries; nothing here needs them."""

    def __setstate__(self, state: Any) -> None:
        """Drop the marks."""


def _rebuild(
    storage: tuple[str, str], offset: int, shape: Any, stride: Any, grad: Any, hooks: Any
) -> _Tensor:
    dense = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    if tuple(stride) != dense:
        raise ModelError("the checkpoint holds a transposed tensor: only dense ones are read")
    return _Tensor(storage[0], storage[1], offset, tuple(shape))


def read_state_dict(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a state dict, by name.

    Raises:
        ModelError: `data` is no such checkpoint, is cut off, or asks for anything but tensors.
    """
    stream = io.BytesIO(data)
    load: Callable[[], Any] = lambda: _Restricted(stream).load()  # noqa: E731
    try:
        if load() != MAGIC or load() != PROTOCOL:
            raise ModelError("this is no PyTorch checkpoint of the layout before 1.6")
        load()  # the writer's type sizes: the storages below have fixed ones
        entries = load()
        keys = load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"the checkpoint is damaged: {error}; fetch it again") from error
    if not isinstance(entries, dict) or not all(isinstance(t, _Tensor) for t in entries.values()):
        raise ModelError("the checkpoint is no state dict: it holds more than named tensors")
    dtypes = {tensor.key: np.dtype(tensor.dtype) for tensor in entries.values()}
    storages = {}
    for key in keys:
        count = int.from_bytes(stream.read(8), "little")
        size = count * dtypes[key].itemsize
        raw = stream.read(size)
        if len(raw) != size:
            raise ModelError("the checkpoint is cut off: fetch it again")
        storages[key] = np.frombuffer(raw, dtypes[key])
    return {
        name: storages[t.key][t.offset : t.offset + int(np.prod(t.shape))].reshape(t.shape)
        for name, t in entries.items()
    }
