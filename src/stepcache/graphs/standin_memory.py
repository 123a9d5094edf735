"""Memory as a captured graph of the stand-in sees it: addresses, which outlive the tensors that were there."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.multiprocessing.reductions import StorageWeakRef


class StandInError(RuntimeError):
    """Something that a CUDA graph would refuse, or silently get wrong."""


class Outside:
    """Memory outside the pool, by its address. It holds no storage."""

    def __init__(self, storage: UntypedStorage) -> None:
        self._weak, self._address = StorageWeakRef(storage), storage.data_ptr()

    def storage(self) -> UntypedStorage | None:
        """What is there now: the storage of the capture or, if it was freed, a weight's. None if neither."""
        storage = _alive(self._weak)
        if storage is None:
            storage = _weight_at(self._address)
            if storage is not None:
                self._weak = StorageWeakRef(storage)
        return storage


def _alive(weak: StorageWeakRef | None) -> UntypedStorage | None:
    return None if weak is None else UntypedStorage._new_with_weak_ptr(weak.cdata)


_weights: dict[int, StorageWeakRef] = {}  # by address, as of the last search


def _weight_at(address: int) -> UntypedStorage | None:
    """The storage at that address of a parameter, of any model. Moving one away and back often puts it there again."""
    storage = _alive(_weights.get(address))
    if storage is None:
        _weights.clear()
        for value in gc.get_objects():  # a third of a second, so all are noted
            if issubclass(type(value), nn.Parameter) and value.device.type == "cpu":
                _weights[value.untyped_storage().data_ptr()] = StorageWeakRef(value.untyped_storage())
        storage = _alive(_weights.get(address))
    return storage


class Place:
    """A tensor as a kernel sees it: memory (the graph's n-th allocation, or outside memory) and layout."""

    __slots__ = ("dtype", "memory", "offset", "shape", "strides")

    def __init__(self, tensor: Tensor, memory: int | Outside | UntypedStorage) -> None:
        self.memory, self.dtype, self.offset = memory, tensor.dtype, tensor.storage_offset()
        self.shape, self.strides = tensor.shape, tensor.stride()

    def tensor(self, allocated: dict[int, UntypedStorage]) -> Tensor:
        """The tensor in that memory now. Raises StandInError if the memory was freed."""
        storage: Any = self.memory
        if isinstance(storage, int):
            storage = allocated[storage]
        elif isinstance(storage, Outside):
            storage = storage.storage()
            if storage is None:
                raise StandInError(
                    f"A tensor {tuple(self.shape)} that the captured graph reads or writes was freed: a CUDA graph "
                    "would use that memory anyway, with its current contents."
                )
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.shape, self.strides)
