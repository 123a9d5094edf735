"""Buckets: one per set of static shapes, with its programs, their capture, and the kept values of each slot."""

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
    """Programs by name, and their capture (None: not captured).

    eager: the same programs run eager, for calls that must (default: `programs`). make_kept: makes a slot's `Kept`.
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
        """Whether the programs are the eager ones."""
        return self.programs is self.eager

    def kept(self, slot: int) -> Kept:
        """The kept values of `slot`, counted from 0."""
        while len(self.slots) <= slot:
            self.slots.append(self._make_kept())
        return self.slots[slot]

    def run(self, name: str, module: nn.Module, inputs: dict[str, Any], kept: Kept, slot: int) -> Tensor:
        """The output of program `name`, captured if possible. kept: that of `slot`, read or written."""
        program, capture = self.programs[name], self.capture
        if capture is None or capture.failed or capture.freshness.fallback.is_uncaptured():
            return program(module, inputs, kept)
        if not capture.freshness.check(name, program.what):
            return program(module, inputs, kept)
        if capture.freshness.fallback.is_eager(module):  # a callback has put hooks onto layers
            return self.eager[name](module, inputs, kept)
        return capture.run(name, program, module, inputs, kept, slot)

    def free(self) -> None:
        """Free the captured graphs' memory."""
        if self.capture is not None:
            self.capture.free()

    @property
    def nbytes(self) -> int:  # of kept values
        return sum(kept.nbytes for kept in self.slots)

    @property
    def static_nbytes(self) -> int:  # of captured graphs' inputs and output
        return 0 if self.capture is None else self.capture.nbytes


class Buckets:
    """Up to `limit` buckets by key. Beyond that, the least recently used one is dropped and its memory freed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held: OrderedDict[Hashable, Bucket] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Bucket]) -> Bucket:
        """The bucket of `key`, made if missing; it becomes the most recently used."""
        bucket = self.held.get(key)
        if bucket is None:
            while len(self.held) >= self.limit:
                self.held.popitem(last=False)[1].free()
            bucket = self.held[key] = make()
        self.held.move_to_end(key)
        return bucket

    def clear(self) -> None:
        while self.held:
            self.held.popitem()[1].free()

    @property
    def nbytes(self) -> int:
        return sum(bucket.nbytes for bucket in self.held.values())

    @property
    def static_nbytes(self) -> int:
        return sum(bucket.static_nbytes for bucket in self.held.values())


def key_of(inputs: dict[str, Any], device: torch.device) -> Hashable:
    """What a compiled or captured graph depends on. Inputs with equal keys share a bucket."""
    autocast = torch.get_autocast_dtype(device.type) if autocasts(device.type) else None
    return signature(inputs), torch.is_inference_mode_enabled(), autocast


def signature(value: Any) -> Hashable:
    """`value` with each tensor replaced by its shape, dtype, device and strides, as something hashable."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device, value.stride()
    if isinstance(value, dict):
        return tuple((key, signature(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(signature(item) for item in value)
    return value if isinstance(value, Hashable) else _Same(value)


class _Same:
    """Wraps an unhashable value and compares it by identity: each object counts as a different input."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
