"""Whether a loop goes back in its timesteps, found on the host without reading a device tensor."""

from __future__ import annotations

from numbers import Real
from typing import Any

from torch import Tensor


class Pass:
    """One pass of a loop over its timesteps.

    `for t in scheduler.timesteps` gives views of one tensor, so their places in it tell where the loop is. Plain
    numbers and tensors on the host tell it by their values, which fall in a denoising loop and rise in an inversion.
    Tensors on a device that are no views of one tensor tell nothing.
    """

    def __init__(self) -> None:
        self._storage: object = None
        self._offset = 0
        self._value: float | None = None
        # Whether values fall and places rise; None before the second step.
        self._falls: bool | None = None
        self._onward: bool | None = None

    def goes_back(self, timestep: object) -> bool:
        """Whether this step's timestep is not further on in the loop than the last one's. Called once a step."""
        storage, offset = _place_of(timestep)
        before, self._storage = self._storage, storage
        earlier, self._offset = self._offset, offset
        value, self._value = self._value, _value_of(timestep)
        turned = False
        if value is not None and self._value is not None and value != self._value:
            turned, self._falls = _turned(self._falls, self._value < value)
        if storage is not None and storage == before and offset != earlier:
            # The place decides where it can: the values of PNDM's first timesteps fall and rise in one loop.
            turned, self._onward = _turned(self._onward, earlier < offset)
        return turned


def _turned(before: bool | None, now: bool) -> tuple[bool, bool]:
    """Whether a direction has changed, and the direction now."""
    return before is not None and before is not now, now


def version_of(timestep: object) -> int | None:
    """How often a tensor has been written to. None for other objects, and for inference tensors, which do not count."""
    return timestep._version if isinstance(timestep, Tensor) and not timestep.is_inference() else None


def _place_of(timestep: object) -> tuple[object, int]:
    """The memory that a tensor is in, and its place there; (None, 0) for other objects."""
    if not isinstance(timestep, Tensor) or timestep.is_meta:
        return None, 0
    return (timestep.untyped_storage().data_ptr(), timestep.device), timestep.storage_offset()


def _value_of(timestep: Any) -> float | None:
    if isinstance(timestep, Tensor):
        return float(timestep.reshape(-1)[0]) if timestep.is_cpu and timestep.numel() else None
    return float(timestep) if isinstance(timestep, Real) else None  # numpy's too
