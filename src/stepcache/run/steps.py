"""Steps and slots of a run, counted on the host from what scheduler and U-Net are asked to do."""

from __future__ import annotations

from torch import Tensor


class StepCounter:
    """Where a run is: `step` of the present denoising loop, and `slot`, the number of U-Net calls in it so far.

    A step is an iteration of the loop: it ends with the first U-Net call after scheduler.step.
    """

    def __init__(self) -> None:
        self.step = self.slot = 0
        self.new_loop = True  # the next U-Net call is the first one of a loop
        self._earlier = 0  # steps of earlier loops
        # scheduler.step was called, with that timestep, and no U-Net call has followed yet.
        self._stepped = False
        self._timestep: object = None

    @property
    def total(self) -> int:
        """Steps of all loops."""
        return self._earlier + self.step + self._stepped

    def advance(self, timestep: object) -> None:
        """The scheduler has stepped, at `timestep` where that is known."""
        if self._stepped:
            self._next()
        self._stepped, self._timestep = True, timestep

    def begin_loop(self) -> None:
        """The scheduler's timesteps were set: another loop follows."""
        if self._stepped:
            self._next()
        self.slot, self._stepped, self._timestep, self.new_loop = 0, False, None, True

    def enter_loop(self) -> None:
        """The first U-Net call of a loop has come."""
        self._earlier, self.step = self._earlier + self.step, 0

    def call(self, timestep: object) -> None:
        """A U-Net call has come, for `timestep`.

        Panorama pipelines step each view on its own: where the call gets the very tensor that the scheduler stepped
        with, the loop is still in the same iteration.
        """
        if self._stepped:
            if timestep is not self._timestep or not isinstance(timestep, Tensor):
                self._next()
            self._stepped, self._timestep = False, None

    def _next(self) -> None:
        self.step += 1
        self.slot = 0
