"""A variant's measurements in one cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..forwards.macs import BranchMacs
from ..reuse.schedule import Schedule
from .calls import Timed, UNetClock
from .variants import Variant


@dataclass
class Entry:
    """A variant in a cell: its pipeline while it runs, and what has been measured."""

    variant: Variant
    status: str = ""  # why it is not, or no longer, measured
    steps: int | None = None  # instead of the request's
    pipe: Any = None
    clock: UNetClock | None = None
    shares: bool = False  # the pipeline of another variant, so it compiled nothing
    first_call_s: float = 0.0
    graphs: int = 0
    graphs_cached: int = 0
    peak_memory_mib: float | None = None
    kinds: str = ""
    repeats: list[Timed] = field(default_factory=list)

    @property
    def measured(self) -> bool:
        return not self.status and bool(self.repeats)

    @property
    def seconds(self) -> list[float]:
        """Seconds of the call in each repeat."""
        return [run.seconds for run in self.repeats]

    @property
    def unet_seconds(self) -> list[float]:
        """Seconds of the U-Net in each repeat."""
        return [run.unet_seconds for run in self.repeats]

    @property
    def images(self) -> np.ndarray:
        """[N, H, W, 3] in 0..1, of the last repeat, when all other variants have run in between."""
        return self.repeats[-1].images

    def drop(self) -> None:
        """Release the pipeline."""
        self.pipe = self.clock = None

    def bound(self, counts: Mapping[int, BranchMacs], calls: int | None) -> float | None:
        """The original's MACs over this run's; None if they cannot be counted. calls: of the U-Net in the original."""
        variant = self.variant
        if variant.interval is None:
            return 1.0
        if variant.shortens:
            return calls / self.repeats[-1].unet_calls if calls else None
        macs = counts.get(variant.branch or 0)
        if macs is None:
            return None
        # DeepCache keeps no record. It counts timesteps: one per call, except with Heun and the like.
        kinds = self.kinds or Schedule.uniform(variant.interval).kinds(self.repeats[-1].unet_calls)
        return macs.full_macs * len(kinds) / macs.spent(kinds)
