"""stepcache makes diffusers' U-Net pipelines fast by reusing deep features between denoising steps.

>>> from stepcache import accelerate, restore
>>> accelerate(pipe, interval=3, branch=0)
>>> image = pipe("a photo of an astronaut").images[0]
>>> restore(pipe)
"""

from ._version import __version__
from .api import accelerate, denoising, last_run, restore, save_compiled, warmup
from .compat import DeepCacheSDHelper
from .errors import StepCacheError
from .reuse.schedule import Schedule
from .run.record import RunRecord

__all__ = [
    "DeepCacheSDHelper",
    "RunRecord",
    "Schedule",
    "StepCacheError",
    "__version__",
    "accelerate",
    "denoising",
    "last_run",
    "restore",
    "save_compiled",
    "warmup",
]
