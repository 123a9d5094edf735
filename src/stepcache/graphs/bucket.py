"""Buckets: one per set of static shapes, with its programs, their capture, and the kept values of each slot."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..forwards.autocast import autocasts
from ..forwards.nested import tensors_of
from ..packages.spec import without_contents
from .capture import Capture
from .kept import Kept
from .program import Program

VARIANTS = 8
"""How many kinds of other inputs (prompt lengths, for example) one size may have."""
RETURNS = 3
"""How many times a dropped bucket must come back before it is said."""
REMEMBERED = 64
"""How many dropped buckets are remembered."""


class Bucket:
    """Programs by name, and their capture (None: not captured).

    eager: the same programs run eager, for calls that must (default: `programs`). make_kept: makes a slot's `Kept`.
    is_packaged: whether a program may run from a package. For packages to be made: examples, inputs that ran, without
    contents, and whether guidance was reused; device, theirs.
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
        self.is_packaged = False
        self.examples: dict[Hashable, tuple[dict[str, Any], bool]] = {}
        self.device = torch.device("cpu")

    @property
    def is_plain(self) -> bool:
        """Whether the programs are the eager ones."""
        return self.programs is self.eager

    def kept(self, slot: int) -> Kept:
        """The kept values of `slot`, counted from 0."""
        while len(self.slots) <= slot:
            self.slots.append(self._make_kept())
        return self.slots[slot]

    def note(self, inputs: dict[str, Any], reuse_guidance: bool = False) -> None:
        """Remember what kind of inputs this is. Those of plain buckets differ, by the length of prompts for example."""
        if self.examples and not self.is_plain:
            return
        kind, self.device = signature(inputs), tensors_of(inputs)[0].device
        if kind in self.examples or len(self.examples) >= VARIANTS or autocasts(self.device.type):
            return  # packages are made without autocast
        self.examples[kind] = without_contents(inputs), reuse_guidance

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
    """Buckets by key, of up to `limit` sizes, and up to `VARIANTS` of each size.

    Beyond that, the least recently used size or variant is dropped and its memory freed. say: warns with a text, once,
    if what is dropped keeps coming back.
    """

    def __init__(self, limit: int, say: Callable[[str], None] = lambda text: None) -> None:
        self.limit, self._say = limit, say
        self.held: OrderedDict[Hashable, Bucket] = OrderedDict()
        self._sizes: dict[Hashable, Hashable] = {}  # of the held keys, and of those dropped of late
        self._dropped: OrderedDict[Hashable, None] = OrderedDict()
        self._returned = 0

    def get(self, key: Hashable, make: Callable[[], Bucket], size: Hashable = None) -> Bucket:
        """The bucket of `key`, made if missing; it becomes the most recently used. size: by default the key itself."""
        bucket = self.held.get(key)
        if bucket is None:
            size = key if size is None else size
            bucket = make()  # if it fails, nothing is dropped for it
            self._make_room(size)
            self.held[key] = bucket
            self._sizes[key] = size
            if key in self._dropped:
                del self._dropped[key]
                self._returned += not bucket.is_plain  # an eager one costs a buffer only
                if self._returned == RETURNS:
                    self._say(self._advice(size))
        self.held.move_to_end(key)
        return bucket

    def clear(self) -> None:
        while self.held:
            self.held.popitem()[1].free()
        self._sizes.clear()
        self._dropped.clear()

    @property
    def nbytes(self) -> int:
        return sum(bucket.nbytes for bucket in self.held.values())

    @property
    def static_nbytes(self) -> int:
        return sum(bucket.static_nbytes for bucket in self.held.values())

    def _make_room(self, size: Hashable) -> None:
        """Drop what must go for a new bucket of `size`."""
        variants = [key for key in self.held if self._sizes[key] == size]
        for key in variants[: max(0, len(variants) - VARIANTS + 1)]:
            self._drop(key)
        sizes = dict.fromkeys(self._sizes[key] for key in reversed(self.held))  # most recently used first
        sizes.pop(size, None)
        for other in list(sizes)[self.limit - 1 :]:
            for key in [key for key in self.held if self._sizes[key] == other]:
                self._drop(key)

    def _drop(self, key: Hashable) -> None:
        self.held.pop(key).free()
        self._dropped[key] = None
        if len(self._dropped) > REMEMBERED:
            self._sizes.pop(self._dropped.popitem(last=False)[0])

    def _advice(self, size: Hashable) -> str:
        """What is short: places for sizes, or for variants of one size."""
        count = sum(other == size for other in self._sizes.values())
        if count > VARIANTS:
            return (
                f"{count} kinds of inputs (prompt lengths, for example) take turns at one size, and stepcache keeps "
                f"{VARIANTS}: the others are captured at each return. Pad prompts to fewer lengths."
            )
        count = len(set(self._sizes.values()))
        return (
            f"{count} sizes take turns, and max_buckets={self.limit} keeps fewer: the others are captured at each "
            f"return. Use accelerate(..., max_buckets={count})."
        )


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
