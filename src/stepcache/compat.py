"""`DeepCacheSDHelper` of the DeepCache package, with the same arguments and defaults, on top of stepcache.

stepcache fixes quirks of the original. The differences:

| original | here |
|---|---|
| finds the step by looking the timestep up in `scheduler.timesteps` (waits for the GPU; wrong for Heun, PNDM, Karras tails, a changed strength) | counts calls of `scheduler.step` in this pipeline call |
| state lives from enable() to disable(), across runs | each pipeline call starts anew |
| also caches in a hand-written loop, at any time | only inside `with stepcache.denoising(pipe):` |
| a cache_branch_id that the U-Net does not have silently runs something else (12 and more: all but the mid block; -1: only conv_in and conv_out) | BranchOutOfRange |
| layers_per_block other than 2 cuts in the wrong place; mid_block=None fails | cut derived from the U-Net's own blocks |
| any skip_mode but "uniform" fails with KeyError at the first step | InvalidSetting at set_params |
| cache_interval=0 fails with ZeroDivisionError in the first step | InvalidSetting at set_params |
| enable() before set_params() fails at the first step | uses the defaults of set_params (interval 1) |
| enable(pipe) ignores its argument | accelerates that pipe |
| enable() twice breaks the U-Net; disable() before enable() fails | both harmless |
| disable() leaves `forward` attributes on every block | nothing is left |
| keeps every wrapped layer's output (108 MB for SD 1.5 at 512 px with guidance) | keeps one feature (5 MB) |
"""

from __future__ import annotations

from typing import Any

from .api import accelerate, restore
from .errors import InvalidSetting, UnsupportedPipeline
from .settings import Settings
from .values import is_one_of, shown


class DeepCacheSDHelper:
    """Drop-in for `DeepCache.DeepCacheSDHelper`: set_params, enable, disable. Differences: in the module's docstring."""

    def __init__(self, pipe: object = None) -> None:
        self.pipe = pipe
        self._enabled = False
        self.set_params()

    def set_params(self, cache_interval: int = 1, cache_branch_id: int = 0, skip_mode: str = "uniform") -> None:
        """Set interval (default 1: no reuse) and branch (default 0), at once if enabled. skip_mode: "uniform" only."""
        if not is_one_of(skip_mode, ("uniform",)):
            raise InvalidSetting(
                f'skip_mode={shown(skip_mode)}: DeepCache knows only "uniform". For other schedules call '
                "stepcache.accelerate(pipe, schedule=...)."
            )
        Settings.check(cache_interval, cache_branch_id)
        params: dict[str, Any] = {"interval": cache_interval, "branch": cache_branch_id}
        if self._enabled:
            accelerate(self.pipe, **params)
        self.params = params

    def enable(self, pipe: object = None) -> None:
        """Accelerate the pipe given here or at construction. Errors as `stepcache.accelerate`."""
        pipe = self.pipe if pipe is None else pipe
        if pipe is None:
            raise UnsupportedPipeline("There is no pipe: use DeepCacheSDHelper(pipe) or enable(pipe).")
        accelerate(pipe, **self.params)
        if pipe is not self.pipe:
            self.disable()  # one helper, one pipe
        self.pipe, self._enabled = pipe, True

    def disable(self) -> None:
        """Restore the pipe."""
        if self._enabled:
            restore(self.pipe)
        self._enabled = False
