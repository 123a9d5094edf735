"""What runs cost in MACs of the U-Net, and the sizes it was called at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedUNet
from ..forwards.macs import branch_macs, calls_by_cost, meta_unet

Latents = tuple[int, int]
"""Height and width of a U-Net's latents."""


@dataclass(frozen=True)
class Cost:
    """MACs of a U-Net call in a full step, and for each branch in a partial one, summed over a comparison's prompts."""

    full: int
    partial: Mapping[int, int]

    def of(self, full: int, partial: int = 0, branch: int = 0) -> int:
        """MACs of runs with so many full and partial calls each."""
        return full * self.full + (partial * self.partial[branch] if partial else 0)

    def in_calls(self, kinds: str, branch: int = 0) -> float:
        """What the U-Net calls of a run, `RunRecord.kinds`, cost in full calls."""
        return self.of(*calls_by_cost(kinds), branch) / self.full


def is_dearer(fewer: float, reuse: float) -> bool:
    """Whether fewer steps cost more than the reuse that they were chosen for, beyond rounding."""
    return fewer > reuse * (1 + 1e-9)


def count(unet: Any, latents: Sequence[Latents], branches: Iterable[int]) -> Cost:
    """The cost of one call for each of `latents`, which may repeat: large ones count for more.

    Counted on the meta device, from the U-Net's config, with a batch of 1: guidance doubles all of them. Price: seconds
    for each distinct size. UnsupportedUNet for a conditioning without example inputs, and without latents.
    """
    if not latents:
        raise UnsupportedUNet("No call of the U-Net was seen: the pipeline does not call it as a module.")
    sizes, full, partial = Counter(latents), 0, dict.fromkeys(branches, 0)
    structure = meta_unet(unet.config)
    for (height, width), times in sizes.items():
        for i, macs in enumerate(branch_macs(structure, height, width, branches=list(partial))):
            full += times * macs.full_macs if i == 0 else 0
            partial[macs.branch] += times * macs.partial_macs
    return Cost(full, partial)


@contextmanager
def calls_seen(unet: Any) -> Iterator[list[Latents]]:
    """A list to which each call of `unet`, which is not accelerated, adds the size of its latents, within the block."""
    seen: list[Latents] = []

    def see(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        *_, height, width = (kwargs["sample"] if "sample" in kwargs else args[0]).shape
        seen.append((height, width))

    hook = unet.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()
