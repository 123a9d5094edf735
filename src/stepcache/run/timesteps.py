"""Scheduler steps that do not wait for the device.

DDIM, PNDM, DDPM, LCM and TCD compare timesteps and look them up in tables on the host (`alphas_cumprod[timestep]`). If
timesteps are on the device, the host waits several times in each step until all queued work is done. In a run we give
`step` of these schedulers the same timestep on the host, and let it see its `timesteps` there, copied once per run.
Results are the same bit for bit, because the computation keeps its values and devices.

We recognise a loop's timestep as a view into `scheduler.timesteps`: the storage is the same, and the offset gives the
index without reading the value. Anything else (another tensor, a batch of timesteps, a number, timesteps already on the
host, a custom scheduler or `step`) goes to the scheduler's own `step` unchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

# diffusers classes whose `step` waits each time, and only looks timesteps up and compares them, so their device changes
# no result. For each, the methods that do compute with the timestep, and so get it on the device: LCM multiplies the
# sample by numbers made from it, and in half precision a product with a scalar on the device rounds the scalar first,
# while one with a scalar on the host does not.
# Not here, because they look up their position at the first step and count from there, one wait per run: Euler, Heun,
# KDPM2, LMS, DPM++, UniPC, DEIS, SA and so on. Not here, because no pipeline with a supported U-Net uses them: RePaint,
# UnCLIP, those for transformers.
ON_HOST: dict[str, tuple[str, ...]] = {
    "DDIMScheduler": (),
    "DDIMInverseScheduler": (),
    "DDIMParallelScheduler": (),
    "DDPMScheduler": (),
    "DDPMParallelScheduler": (),
    "LCMScheduler": ("get_scalings_for_boundary_condition_discrete",),
    "PNDMScheduler": (),
    "TCDScheduler": (),
}


def without_waits(scheduler: object, stock: Callable[..., Any]) -> Callable[..., Any]:
    """The scheduler's `step`, made to not wait for the device; `stock` itself for an unknown scheduler.

    Takes and returns what `stock` does. Its first call waits once, for a copy of the timesteps on the device.
    """
    cls: Any = type(scheduler)
    known = cls.__name__ in ON_HOST and cls.__module__.startswith("diffusers.schedulers.")
    if not known or getattr(stock, "__func__", None) is not cls.step:
        return stock
    return _HostStep(scheduler, stock)


class _HostStep:
    """`step` of one scheduler, with timesteps on the host."""

    def __init__(self, scheduler: object, stock: Callable[..., Any]) -> None:
        self._scheduler, self._stock = scheduler, stock
        cls: Any = type(scheduler)
        self._view = _view_class(cls)
        # The scheduler's timesteps that we copied, their version, the copy, and its elements.
        self._copy: tuple[Tensor | None, int | None, Tensor | None, tuple[Tensor, ...]] = (None, None, None, ())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = args[1] if len(args) > 1 else kwargs.get("timestep")
        timesteps: Any = getattr(self._scheduler, "timesteps", None)
        at = _position(given, timesteps)
        if at is None:
            return self._stock(*args, **kwargs)
        copy, elements = self._on_host(timesteps)
        if len(args) > 1:
            args = (args[0], elements[at], *args[2:])
        else:
            kwargs["timestep"] = elements[at]
        view = self._view.__new__(self._view)
        view.__dict__ = vars(self._scheduler)
        view.host_timesteps, view.device_timestep = copy, given
        return self._stock.__func__(view, *args, **kwargs)  # type: ignore[attr-defined]

    def _on_host(self, timesteps: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The copy, renewed if the scheduler has other timesteps or they were changed in place.

        An inference tensor has no version, so the same inference tensor is taken to have the same values.
        """
        version = None if timesteps.is_inference() else timesteps._version
        copied, then, copy, elements = self._copy
        if copy is None or copied is not timesteps or then != version:
            copy = timesteps.to("cpu", copy=True)
            elements = copy.unbind()
            self._copy = timesteps, version, copy, elements
        return copy, elements


class _View:
    """Another object with the same attributes as the scheduler (the same dict), except `timesteps`.

    So no other user of the scheduler, such as another thread's run, sees timesteps moved to another device.
    """

    __slots__ = ("device_timestep", "host_timesteps")
    device_timestep: Tensor
    host_timesteps: Tensor

    @property
    def timesteps(self) -> Tensor:
        return self.host_timesteps


@functools.cache
def _view_class(cls: Any) -> Any:
    """A subclass of `cls` for views; methods that compute with the timestep get it on the device."""

    def computes(name: str) -> Callable[..., Any]:
        stock = getattr(cls, name)

        def method(self: Any, timestep: object, *args: Any, **kwargs: Any) -> Any:
            return stock(self, self.device_timestep, *args, **kwargs)

        return method

    methods = {name: computes(name) for name in ON_HOST[cls.__name__]}
    return type(cls)(cls.__name__, (_View, cls), {"__slots__": (), "__module__": cls.__module__, **methods})


def _position(timestep: object, timesteps: object) -> int | None:
    """The index in `timesteps` (1-d, on a device) that the 0-d `timestep` is a view of; None if it is no such view."""
    if not (isinstance(timestep, Tensor) and isinstance(timesteps, Tensor)) or not _waits(timesteps):
        return None
    if timestep.dim() != 0 or timesteps.dim() != 1 or timestep.dtype != timesteps.dtype or timesteps.stride(0) == 0:
        return None
    if timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    at, between = divmod(timestep.storage_offset() - timesteps.storage_offset(), timesteps.stride(0))
    return at if not between and 0 <= at < len(timesteps) else None


def _waits(tensor: Tensor) -> bool:
    """Whether reading the tensor makes the host wait."""
    return tensor.device.type != "cpu"
