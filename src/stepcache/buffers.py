"""Buffers of the cached feature: allocated once, at one address for as long as their bucket lives."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor


class Feature:
    """The feature of one slot of one bucket: a tensor [B, C, H, W], and a stamp of who wrote it and when.

    The tensor is allocated at the first write, with the value's shape, dtype, device and strides, and kept. A write of
    another shape (the feature depends on more than the bucket's key: autocast switched on, for example) allocates anew.
    """

    __slots__ = ("stamp", "tensor")

    def __init__(self) -> None:
        self.tensor: Tensor | None = None
        self.stamp: object | None = None

    def write(self, value: Tensor, stamp: object) -> None:
        """Copy `value` in, stamped with `stamp` (any object; compared by identity)."""
        self.reserve(value).copy_(value.detach())
        self.stamp = stamp

    def reserve(self, like: Tensor) -> Tensor:
        """The tensor, allocated where there is none of this shape, dtype, device and strides yet."""
        held = self.tensor
        if held is None or _spec(held) != _spec(like):
            # Not an inference tensor even under torch.inference_mode(): the next run, outside of it, writes it too.
            with torch.inference_mode(False):
                held = self.tensor = torch.empty_strided(
                    like.shape, like.stride(), dtype=like.dtype, device=like.device
                )
            self.stamp = None
        return held

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 0 if self.tensor is None else self.tensor.untyped_storage().nbytes()


def _spec(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.stride()


class Graphs(Protocol):
    """What a bucket's graphs must answer here."""

    @property
    def nbytes(self) -> int:
        """Bytes held beside the features."""

    def free(self) -> None:
        """Give their memory back."""


G = TypeVar("G", bound=Graphs)


class Bucket(Generic[G]):
    """One set of static shapes: its pair of graphs, and a feature for each slot (U-Net call of a step)."""

    def __init__(self, graphs: G) -> None:
        self.graphs = graphs
        self.features: list[Feature] = []

    def feature(self, slot: int) -> Feature:
        """The feature of `slot`, counted from 0."""
        while len(self.features) <= slot:
            self.features.append(Feature())
        return self.features[slot]

    @property
    def nbytes(self) -> int:
        """Bytes of features held."""
        return sum(feature.nbytes for feature in self.features)


class Buckets(Generic[G]):
    """Up to `limit` buckets by key; beyond it the least recently used one is dropped, with its memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held: OrderedDict[Hashable, Bucket[G]] = OrderedDict()

    def get(self, key: Hashable, make_graphs: Callable[[], G]) -> Bucket[G]:
        """The bucket of `key`, made with new graphs where there is none, now the most recently used."""
        bucket = self.held.get(key)
        if bucket is None:
            while len(self.held) >= self.limit:
                self.held.popitem(last=False)[1].graphs.free()
            bucket = self.held[key] = Bucket(make_graphs())
        self.held.move_to_end(key)
        return bucket

    def clear(self) -> None:
        """Drop all buckets."""
        while self.held:
            self.held.popitem()[1].graphs.free()

    @property
    def nbytes(self) -> int:
        """Bytes of features held in all buckets."""
        return sum(bucket.nbytes for bucket in self.held.values())

    @property
    def static_nbytes(self) -> int:
        """Bytes of static inputs and outputs of captured graphs in all buckets."""
        return sum(bucket.graphs.nbytes for bucket in self.held.values())
