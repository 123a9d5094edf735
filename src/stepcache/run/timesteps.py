"""Scheduler steps that do not wait for the device.

DDIM, PNDM, DDPM, LCM and TCD look timesteps up in tables that lie on the host (`alphas_cumprod[timestep]`) and compare
them. With timesteps on the device the host waits in each step, several times, until all that it has queued is done. In
a run, `step` of these schedulers is given the same timestep on the host, and sees its own `timesteps` there, from one
copy a run. Results are the same bit for bit: what is computed with, and where, is not changed.

The timestep of a loop is recognised as a view into `scheduler.timesteps`: the same storage, and the offset tells which
one, without a look at its value. Anything else (another tensor, a batch of timesteps, a number, timesteps that lie on
the host already, a scheduler or a `step` of somebody's own) goes to the scheduler's own `step` as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

# Classes of diffusers whose `step` waits each time, and does nothing with timesteps but look up and compare: which
# device they are on changes no result. With each, the methods that do compute with the timestep, and so get the
# device's: LCM multiplies the sample by numbers made of it, and in half precision a product with a scalar on the device
# rounds the scalar first, one with a scalar on the host does not.
# Not here, since they look for their place at the first step and count from there, one wait a run: Euler, Heun, KDPM2,
# LMS, DPM++, UniPC, DEIS, SA and so on. Not here, since no pipeline with a U-Net of ours uses them: RePaint, UnCLIP,
# those of transformers.
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
    """`stock`, the scheduler's `step`, so that it does not wait for the device; `stock` itself where that is unknown.

    What is returned takes and gives what `stock` does. Its first call on timesteps of the device waits for them once.
    """
    cls: Any = type(scheduler)
    known = cls.__name__ in ON_HOST and cls.__module__.startswith("diffusers.schedulers.")
    if not known or getattr(stock, "__func__", None) is not cls.step:
        return stock
    return _HostStep(scheduler, stock)


class _HostStep:
    """`step` of one scheduler, on timesteps of the host."""

    def __init__(self, scheduler: object, stock: Callable[..., Any]) -> None:
        self._scheduler, self._stock = scheduler, stock
        cls: Any = type(scheduler)
        self._view = _view_class(cls)
        # The scheduler's timesteps that were copied, their version, the copy, and its elements.
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
        """The copy, made anew where the scheduler was given other timesteps, or these were changed in place.

        An inference tensor does not tell that it was changed in place; for those, the same tensor has the same values.
        """
        version = None if timesteps.is_inference() else timesteps._version
        copied, then, copy, elements = self._copy
        if copy is None or copied is not timesteps or then != version:
            copy = timesteps.to("cpu", copy=True)
            elements = copy.unbind()
            self._copy = timesteps, version, copy, elements
        return copy, elements


class _View:
    """A scheduler seen through another object: the same attributes (the very dict), but for `timesteps`.

    So nobody else, another thread's run for example, ever finds timesteps on another device than he put them on.
    """

    __slots__ = ("device_timestep", "host_timesteps")
    device_timestep: Tensor
    host_timesteps: Tensor

    @property
    def timesteps(self) -> Tensor:
        return self.host_timesteps


@functools.cache
def _view_class(cls: Any) -> Any:
    """The class of views of `cls`: its methods are those of `cls`, but for those that compute with the timestep."""

    def computes(name: str) -> Callable[..., Any]:
        stock = getattr(cls, name)

        def method(self: Any, timestep: object, *args: Any, **kwargs: Any) -> Any:
            return stock(self, self.device_timestep, *args, **kwargs)

        return method

    methods = {name: computes(name) for name in ON_HOST[cls.__name__]}
    return type(cls)(cls.__name__, (_View, cls), {"__slots__": (), "__module__": cls.__module__, **methods})


def _position(timestep: object, timesteps: object) -> int | None:
    """Which of `timesteps` (1-d, on a device) the 0-d `timestep` is a view of; None where it is none of them."""
    if not (isinstance(timestep, Tensor) and isinstance(timesteps, Tensor)) or not _waits(timesteps):
        return None
    if timestep.dim() != 0 or timesteps.dim() != 1 or timestep.dtype != timesteps.dtype or timesteps.stride(0) == 0:
        return None
    if timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    at, between = divmod(timestep.storage_offset() - timesteps.storage_offset(), timesteps.stride(0))
    return at if not between and 0 <= at < len(timesteps) else None


def _waits(tensor: Tensor) -> bool:
    """Whether the host waits for a device when it reads the tensor."""
    return tensor.device.type != "cpu"
