"""Buffers of what is kept from full steps: allocated once, at one address for as long as their bucket lives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..forwards.blend import Blend
from ..reuse.predict import Predictor


class Value:
    """One value that is kept from full steps: a tensor, and with extrapolation those of the full steps before it.

    depth: how many tensors are held, newest first. They are allocated at the first write, with the value's shape,
    dtype, device and strides, and stay where they are, since a CUDA graph writes to one address: `age` moves their
    contents on. weights: float32 [depth] on their device where blends are asked for, else None.
    """

    __slots__ = ("_set", "blends", "tensors", "weights")

    def __init__(self, depth: int, blends: bool) -> None:
        self.blends = blends
        self.tensors: tuple[Tensor | None, ...] = (None,) * depth
        self.weights: Tensor | None = None
        self._set: tuple[float, ...] = ()

    def reserve(self, like: Tensor) -> bool:
        """Allocate where there is nothing of this shape, dtype, device and strides yet; whether it had to."""
        held = self.tensors[0]
        if held is not None and _spec(held) == _spec(like):
            return False
        # Not inference tensors even under torch.inference_mode(): the next run, outside of it, writes them too.
        with torch.inference_mode(False):
            self.tensors = tuple(
                torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
                for _ in self.tensors
            )
            if self.blends:
                self.weights = torch.ones(len(self.tensors), dtype=torch.float32, device=like.device)
        self._set = ()
        return True

    def age(self) -> None:
        """Make room for a new value: each moves on to the place of the one before it, and the oldest one goes."""
        for older, newer in zip(self.tensors[:0:-1], self.tensors[-2::-1], strict=True):
            if older is not None:
                older.copy_(newer)

    def level(self, known: int) -> None:
        """Fill all but the `known` newest with the newest: what an earlier run left there may be no number at all."""
        for older in self.tensors[known:]:
            older.copy_(self.tensors[0])  # type: ignore[union-attr]

    def weigh(self, weights: tuple[float, ...]) -> None:
        """Set the weights, newest first; those that are not given are 0. The host does not wait for the device."""
        weights += (0.0,) * (len(self.tensors) - len(weights))
        if weights != self._set:
            for i, weight in enumerate(weights):
                self.weights[i].fill_(weight)  # type: ignore[index]  # a launch; a copy from the host would wait
            self._set = weights

    @property
    def current(self) -> Tensor | Blend:
        """What a partial step is given: the newest tensor, or the blend of all."""
        newest = self.tensors[0]
        assert newest is not None
        return newest if self.weights is None else Blend(self.tensors, self.weights)

    @property
    def nbytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors if tensor is not None)


class Kept:
    """What one slot of one bucket keeps between steps: its values, and who wrote them and when.

    The first value is the feature [B, C, H, W]; with guidance reuse it is that of the conditional half, and the second
    one is the difference of the two halves' outputs.
    """

    __slots__ = ("_before", "run", "stamp", "steps", "values")

    def __init__(self, values: int = 1, depth: int = 1, blends: bool = False) -> None:
        self.values = tuple(Value(depth, blends) for _ in range(values))
        self.stamp: object | None = None
        self.run: object | None = None
        # Steps of `run` that the tensors are of, newest first; and while a full step is under way, those it found.
        self.steps: tuple[int, ...] = ()
        self._before: tuple[int, ...] = ()

    def begin(self, run: object) -> None:
        """A full step of `run` comes. Where it fails, nothing here is valid any more."""
        self._before = self.steps if self.run is run else ()
        self.steps, self.stamp, self.run = (), None, run
        if self._before:
            for value in self.values:
                value.age()

    def write(self, values: Sequence[Tensor]) -> None:
        """Copy in what a full step has made. Captured, this is part of the graph, and so may run more than once.

        Allocates at the first write, and where a value has another shape than before (it depends on more than the
        bucket's key: autocast switched on, for example).
        """
        for held, value in zip(self.values, values, strict=True):
            if held.reserve(value):
                self._before = ()
            held.tensors[0].copy_(value.detach())  # type: ignore[union-attr]

    def mark(self, stamp: object, step: int) -> None:
        """The full step is over: what is here is of `step`, stamped with `stamp` (an object, compared by identity)."""
        self.stamp = stamp
        self.steps = (step, *self._before)[: len(self.values[0].tensors)]
        if len(self._before) < len(self.values[0].tensors) - 1:
            for value in self.values:
                value.level(len(self.steps))

    def weigh(self, predictor: Predictor, step: int) -> None:
        """Weights for a partial step at `step`."""
        for i, value in enumerate(self.values):
            if value.blends:
                value.weigh(predictor.weights(i, step, self.steps))

    @property
    def current(self) -> tuple[Tensor | Blend, ...]:
        """What a partial step is given."""
        return tuple(value.current for value in self.values)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All tensors held, for a captured graph to see whether they are still those that it works on."""
        return tuple(tensor for value in self.values for tensor in (*value.tensors, value.weights))

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.values)


def _spec(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.stride()
