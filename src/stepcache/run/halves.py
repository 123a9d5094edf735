"""Guidance reuse where the halves come in separate U-Net calls, as in modular pipelines.

The guider names them. A partial step runs the conditional half; the unconditional half's output is that minus the
difference of the last full step(s), and no U-Net runs for it. In one batch, forwards/guidance.py does the same.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from ..reuse.predict import Predictor

# The names that diffusers' guiders give them.
CONDITIONAL, UNCONDITIONAL = "pred_cond", "pred_uncond"

# A branch, and the number of the call there.
Place = tuple[Hashable, int]


class Halves:
    """The differences [B, C, H, W] of a loop's halves, conditional minus unconditional, for each call of a branch."""

    def __init__(self) -> None:
        self._conditional: dict[int, Tensor] = {}  # outputs of this step
        self._differences: dict[int, list[tuple[int, Tensor]]] = {}  # with their steps, newest first

    def begin_loop(self) -> None:
        """Called at the first U-Net call of a loop: nothing of an earlier one is read."""
        self._differences.clear()

    def begin_step(self) -> None:
        """Called at the first U-Net call of a step."""
        self._conditional.clear()

    def ran(self, place: Place, output: Tensor, step: int, full: bool, order: int) -> None:
        """Called with the output of a U-Net call. order: of how many full steps differences are kept."""
        branch, call = place
        if branch == CONDITIONAL:
            self._conditional[call] = output
        elif branch == UNCONDITIONAL and full and call in self._conditional:
            kept = self._differences.setdefault(call, [])
            kept[:] = [(step, self._conditional[call] - output), *kept][:order]

    def output(self, place: Place, step: int, predictor: Predictor) -> Tensor | None:
        """The output of the unconditional half in a partial step; None if the U-Net must run for it."""
        branch, call = place
        conditional, kept = self._conditional.get(call), self._differences.get(call)
        if branch != UNCONDITIONAL or conditional is None or not kept:
            return None
        steps, differences = zip(*kept, strict=True)
        if predictor.holds:
            return conditional - differences[0]
        wide = torch.promote_types(conditional.dtype, torch.float32)
        weighted = zip(predictor.weights(1, step, steps), differences, strict=True)
        return conditional - sum(weight * difference.to(wide) for weight, difference in weighted).to(conditional.dtype)
