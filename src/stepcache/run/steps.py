"""Counts a run's steps and slots on the host, from calls of the scheduler and the U-Net."""

from __future__ import annotations

from torch import Tensor

from .passes import Pass, version_of


class StepCounter:
    """A run's position: the `step` of the current denoising loop, and the `slot`, the U-Net calls so far in that step.

    A step is one iteration of the loop. It ends at the first U-Net call after scheduler.step.
    """

    def __init__(self) -> None:
        self.step = self.slot = 0
        self.new_loop = True  # the next U-Net call is the first of a loop
        self._earlier = 0  # steps of earlier loops
        # Whether scheduler.step was called, with `_timestep`, and no U-Net call has followed yet.
        self._stepped = False
        self._timestep: object = None
        self._version: int | None = None  # of `_timestep`, if it is a tensor
        self._pass = Pass()

    @property
    def total(self) -> int:
        """Steps of all loops."""
        return self._earlier + self.step + self._stepped

    def advance(self, timestep: object) -> None:
        """Called when the scheduler steps. timestep: None if unknown."""
        if self._stepped:
            self._next()
        self._stepped, self._timestep, self._version = True, timestep, version_of(timestep)

    def begin_loop(self) -> None:
        """Called when the scheduler's timesteps are set: a new loop follows."""
        if self._stepped:
            self._next()
        self.slot, self._stepped, self._timestep, self.new_loop = 0, False, None, True
        self._pass = Pass()

    def enter_loop(self) -> None:
        """Called at the first U-Net call of a loop."""
        self._earlier, self.step = self._earlier + self.step, 0

    def call(self, timestep: object) -> None:
        """Called at each U-Net call, with its timestep.

        Panorama pipelines step the scheduler once per view. If the call gets the same tensor object that the scheduler
        stepped with, and nothing has been written to it since, the loop is still in the same iteration.

        A loop may go over its timesteps again without setting them (DemoFusion, SDEdit by hand): a step that goes back
        in them is the first of a new loop.
        """
        if self._stepped:
            same = isinstance(timestep, Tensor) and timestep is self._timestep
            if not same or version_of(timestep) != self._version:
                self._next()
            self._stepped, self._timestep = False, None
        if self.slot == 0 and self._pass.goes_back(timestep):
            self.begin_loop()
            self._pass.goes_back(timestep)

    def _next(self) -> None:
        self.step += 1
        self.slot = 0
