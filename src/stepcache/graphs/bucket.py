"""Buckets: each is one set of static shapes, with its programs, their capture, and what each slot keeps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..forwards.autocast import autocasts
from .capture import Capture
from .kept import Kept
from .program import Program


class Bucket:
    """Programs by name, and one capture of them (None: they are not captured).

    eager: the same programs through the modules, for calls that must run so (default: these are). make_kept: what a
    slot keeps.
    """

    def __init__(
        self,
        programs: Mapping[str, Program],
        capture: Capture | None,
        eager: Mapping[str, Program] | None = None,
        make_kept: Callable[[], Kept] = Kept,
    ) -> None:
        self.programs, self.capture, self._make_kept = programs, capture, make_kept
        self.eager = programs if eager is None else eager
        self.slots: list[Kept] = []

    @property
    def is_plain(self) -> bool:
        """Whether its programs are eager anyway."""
        return self.programs is self.eager

    def kept(self, slot: int) -> Kept:
        """What `slot`, counted from 0, keeps."""
        while len(self.slots) <= slot:
            self.slots.append(self._make_kept())
        return self.slots[slot]

    def run(self, name: str, module: nn.Module, inputs: dict[str, Any], kept: Kept, slot: int) -> Tensor:
        """The output of that program, captured where that is possible. kept: that of `slot`, read or written."""
        program, capture = self.programs[name], self.capture
        if capture is None or capture.failed or capture.fallback.is_uncaptured():
            return program(module, inputs, kept)
        return capture.run(name, program, module, inputs, kept, slot)

    def free(self) -> None:
        """Give the captured graphs' memory back."""
        if self.capture is not None:
            self.capture.free()

    @property
    def nbytes(self) -> int:  # of kept values
        return sum(kept.nbytes for kept in self.slots)

    @property
    def static_nbytes(self) -> int:  # of captured graphs' inputs and output
        return 0 if self.capture is None else self.capture.nbytes


class Buckets:
    """Up to `limit` buckets by key; beyond it the least recently used one is dropped, with its memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held: OrderedDict[Hashable, Bucket] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Bucket]) -> Bucket:
        """The bucket of `key`, made where there is none, now the most recently used."""
        bucket = self.held.get(key)
        if bucket is None:
            while len(self.held) >= self.limit:
                self.held.popitem(last=False)[1].free()
            bucket = self.held[key] = make()
        self.held.move_to_end(key)
        return bucket

    def clear(self) -> None:
        """Drop all buckets."""
        while self.held:
            self.held.popitem()[1].free()

    @property
    def nbytes(self) -> int:
        return sum(bucket.nbytes for bucket in self.held.values())

    @property
    def static_nbytes(self) -> int:
        return sum(bucket.static_nbytes for bucket in self.held.values())


def key_of(inputs: dict[str, Any], device: torch.device) -> Hashable:
    """What a compiled or captured graph depends on: inputs with equal keys share a bucket."""
    autocast = torch.get_autocast_dtype(device.type) if autocasts(device.type) else None
    return signature(inputs), torch.is_inference_mode_enabled(), autocast


def signature(value: Any) -> Hashable:
    """Shapes, dtypes, devices and strides of all tensors in `value`, and all else as it is."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device, value.stride()
    if isinstance(value, dict):
        return tuple((key, signature(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(signature(item) for item in value)
    return value if isinstance(value, Hashable) else _Same(value)


class _Same:
    """Equal to the very same object only: what has no hash is another input each time it is another object."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
