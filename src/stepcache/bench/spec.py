"""What `stepcache bench` measures: the grid, and the names of variants and modes.

Imports no torch before a spec is made, so that `stepcache bench --help` answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InvalidSetting
from ..images.pipelines import DTYPES, default_device, dtype_named
from ..images.schedulers import SCHEDULERS
from ..reuse.schedule import Schedule
from ..values import positive_int

if TYPE_CHECKING:
    import torch

    from ..reuse.predict import Predict


# Name of a variant in `GridSpec.variants` and on the command line -> name in the rows.
LADDER = {
    "eager": "eager",
    "fewer-steps": "fewer steps",
    "deepcache": "DeepCache 0.1.1",
    "compile": "torch.compile",
    "compile+fewer-steps": "torch.compile + fewer steps",
    "compile+deepcache": "torch.compile + DeepCache 0.1.1",
    "stepcache-eager": "stepcache eager",
    "stepcache-compiled": "stepcache compiled",
    "stepcache-graphs": "stepcache compiled + CUDA graphs",
    "stepcache-triton": "stepcache compiled + CUDA graphs + Triton join",
}
MODES = ("default", "reduce-overhead", "max-autotune")

_PIXELS = 8  # the pipelines take multiples of it only


@dataclass(frozen=True)
class GridSpec:
    """What is measured.

    model: "demo", "sd15", "sd21", "sdxl", or a local pipeline's directory. sizes: (height, width) in pixels; empty: the
    model's own. reuse: (interval, branch) pairs. variants: keys of `LADDER`, the most important first, in case the run
    is cut short. modes: of torch.compile, for variants that have them. guidance: 1 is none. predict: as in
    `accelerate`, of stepcache's variants. dtype: None is float16 on CUDA, float32 on a CPU. device: "cpu", "cuda",
    "cuda:1"; None is the GPU if there is one. seed: of a call's first image. variant: of a directory's weight files.
    backend: of torch.compile. Errors name them as the command's options.
    """

    model: str = "demo"
    sizes: Sequence[tuple[int, int]] = ()
    batches: Sequence[int] = (1,)
    reuse: Sequence[tuple[int, int]] = ((3, 0), (5, 0), (5, 1))
    variants: Sequence[str] = tuple(LADDER)
    modes: Sequence[str] = MODES
    steps: int = 50
    guidance: float = 7.5
    repeats: int = 5
    scheduler: str = "ddim"
    predict: Predict = "hold"
    dtype: str | None = None
    device: str | None = None
    seed: int = 0
    variant: str | None = None
    backend: str = "inductor"

    def __post_init__(self) -> None:
        for name in ("sizes", "batches", "reuse", "variants", "modes"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        for name, values in (("batch", self.batches), ("reuse", self.reuse)):
            if not values:
                raise InvalidSetting(f"The grid has no {name}: name at least one.")
        for height, width in self.sizes:
            for pixels in (height, width):
                if positive_int("--size", pixels, at_least=2 * _PIXELS) % _PIXELS:
                    raise InvalidSetting(f"--size must be a multiple of {_PIXELS} pixels, got {height}x{width}.")
        for batch in self.batches:
            positive_int("--batch", batch)
        for interval, _ in self.reuse:
            Schedule.uniform(interval)
        from ..settings import Settings

        Settings.check(3, 0, predict=self.predict)
        positive_int("--steps", self.steps)
        positive_int("--repeats", self.repeats)
        _known("--variants", self.variants, LADDER)
        _known("--modes", self.modes, MODES)
        _known("--scheduler", [self.scheduler], SCHEDULERS)
        if self.dtype is not None:
            _known("--dtype", [self.dtype], DTYPES)
        if self.device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise InvalidSetting(f"--device must be cpu, cuda, or one such as cuda:1; got {self.device}.")
        if self.where == "cuda" and default_device() != "cuda":
            raise InvalidSetting(f"--device is {self.device}, but torch sees no CUDA device here. Use cpu.")

    @property
    def where(self) -> str:
        """The kind of device, "cuda" or "cpu"."""
        return (self.device or default_device()).partition(":")[0]

    @property
    def precision(self) -> torch.dtype:
        """The dtype of the whole pipeline."""
        auto = "float16" if self.where == "cuda" else "float32"
        return dtype_named(self.dtype or auto)


def _known(name: str, values: Sequence[str], known: Any) -> None:
    if not values or set(values) - set(known):
        raise InvalidSetting(f"{name} must be among {', '.join(known)}; got {', '.join(values) or 'none'}.")
