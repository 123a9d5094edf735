"""Buffers of values kept from full steps: allocated once, at addresses that stay the same while their bucket lives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..forwards.blend import Blend
from ..reuse.predict import DIFFERENCE, Predictor, Weights, of_halves


class Value:
    """One value kept from full steps: the last full step's tensor, and with extrapolation those of the ones before.

    depth: how many tensors are held, newest first. The first write allocates them, with the value's shape, dtype,
    device and strides. A CUDA graph writes to a fixed address, so `age` moves contents, not tensors. weights: float32
    [depth] on their device if blends are asked for, else None; [2, depth] if `apart` (forwards.blend.Blend).
    """

    __slots__ = ("_set", "apart", "blends", "tensors", "weights")

    def __init__(self, depth: int, blends: bool, apart: bool = False) -> None:
        self.blends, self.apart = blends, apart
        self.tensors: tuple[Tensor | None, ...] = (None,) * depth
        self.weights: Tensor | None = None
        self._set: tuple[float, ...] = ()

    def reserve(self, like: Tensor) -> bool:
        """Allocate unless what is held has this shape, dtype, device and strides; returns whether it allocated."""
        held = self.tensors[0]
        if held is not None and spec_of(held) == spec_of(like):
            return False
        # No inference tensors, even under torch.inference_mode(): a later run outside of it writes them too.
        with torch.inference_mode(False):
            self.tensors = tuple(
                torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
                for _ in self.tensors
            )
            if self.blends:
                rows = (2,) if self.apart else ()
                self.weights = torch.ones(*rows, len(self.tensors), dtype=torch.float32, device=like.device)
        self._set = ()
        return True

    def age(self) -> None:
        """Make room for a new value: copy each tensor into the next older one. The oldest value is lost."""
        for older, newer in zip(self.tensors[:0:-1], self.tensors[-2::-1], strict=True):
            if older is not None:
                older.copy_(newer)

    def level(self, known: int) -> None:
        """Fill all but the `known` newest tensors with the newest value: what is left there may hold NaN."""
        for older in self.tensors[known:]:
            older.copy_(self.tensors[0])  # type: ignore[union-attr]

    def weigh(self, own: Weights, other: Weights = ()) -> None:
        """Set the weights, newest first; missing ones are 0. The host does not wait for the device.

        other: of the samples in the other half of the batch; only if `apart`.
        """
        rows = (own, other) if self.apart else (own,)
        weights = tuple(w for row in rows for w in (*row, *(0.0,) * (len(self.tensors) - len(row))))
        if weights != self._set:
            for place, weight in zip(self.weights.view(-1), weights, strict=True):  # type: ignore[union-attr]
                place.fill_(weight)  # a launch; a copy from the host would wait
            self._set = weights

    @property
    def current(self) -> Tensor | Blend:
        """What a partial step reads: the newest tensor, or the blend of all."""
        newest = self.tensors[0]
        assert newest is not None
        return newest if self.weights is None else Blend(self.tensors, self.weights)

    @property
    def nbytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors if tensor is not None)


class Kept:
    """The values that one slot of a bucket keeps between steps, with the run and steps that wrote them.

    The first value is the feature [B, C, H, W]. With guidance reuse it is the conditional half's feature, and the
    second value is the difference of the two halves' outputs. apart: whether the feature's halves may get weights of
    their own.
    """

    __slots__ = ("_before", "run", "stamp", "steps", "values")

    def __init__(self, values: int = 1, depth: int = 1, blends: bool = False, apart: bool = False) -> None:
        self.values = tuple(Value(depth, blends, apart) for _ in range(values))
        self.stamp: object | None = None
        self.run: object | None = None
        # The steps of `run` that wrote the tensors, newest first; and, during a full step, those before it.
        self.steps: tuple[int, ...] = ()
        self._before: tuple[int, ...] = ()

    def begin(self, run: object) -> None:
        """Called before a full step of `run`. If the step fails, nothing here is valid."""
        self._before = self.steps if self.run is run else ()
        self.steps, self.stamp, self.run = (), None, run
        if self._before:
            for value in self.values:
                value.age()

    def write(self, values: Sequence[Tensor]) -> None:
        """Copy in a full step's values. Captured, this is part of the graph, so it may run more than once per step.

        Allocates at the first write, and when a value's shape, dtype, device or strides change (they can within a
        bucket, for example when autocast is switched on).
        """
        for held, value in zip(self.values, values, strict=True):
            if held.reserve(value):
                self._before = ()
            held.tensors[0].copy_(value.detach())  # type: ignore[union-attr]

    def mark(self, stamp: object, step: int) -> None:
        """Called after a full step: the newest values are those of `step`. stamp: compared by identity."""
        self.stamp = stamp
        self.steps = (step, *self._before)[: len(self.values[0].tensors)]
        if len(self._before) < len(self.values[0].tensors) - 1:
            for value in self.values:
                value.level(len(self.steps))

    def weigh(self, predictor: Predictor, step: int, halves: bool = False) -> None:
        """Set the weights for a partial step at `step`. halves: whether the batch is [unconditional, conditional]."""
        for i, value in enumerate(self.values):
            if not value.blends:
                continue
            weights = predictor.weights(i, step, self.steps)
            if value.apart and halves:
                value.weigh(*of_halves(weights, predictor.weights(DIFFERENCE, step, self.steps)))
            else:
                value.weigh(weights)

    @property
    def is_written(self) -> bool:
        """Whether a full step has ever written the values."""
        return all(value.tensors[0] is not None for value in self.values)

    @property
    def current(self) -> tuple[Tensor | Blend, ...]:
        """What a partial step reads."""
        return tuple(value.current for value in self.values)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All tensors held. A captured graph is valid only while they are the same objects."""
        return tuple(tensor for value in self.values for tensor in (*value.tensors, value.weights))

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values)


def spec_of(tensor: Tensor) -> tuple[object, ...]:
    """Shape, dtype, device and strides."""
    return tensor.shape, tensor.dtype, tensor.device, tensor.stride()
