"""stepcache makes diffusers' U-Net pipelines fast by reusing deep features between denoising steps.

>>> from stepcache import accelerate, restore
>>> accelerate(pipe, interval=3, branch=0)
>>> image = pipe("a photo of an astronaut").images[0]
>>> restore(pipe)
"""

from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .api import accelerate, denoising, last_run, restore, save_compiled, warmup
    from .compat import DeepCacheSDHelper
    from .errors import StepCacheError
    from .reuse.schedule import Schedule
    from .run.record import RunRecord
else:
    # A name's module is imported when the name is first used: torch takes seconds, and the `stepcache` command should
    # parse its arguments and answer Ctrl-C before that. Type checkers would take any name for one of a module that has
    # a __getattr__.
    _MODULES = {
        "accelerate": "api",
        "denoising": "api",
        "last_run": "api",
        "restore": "api",
        "save_compiled": "api",
        "warmup": "api",
        "DeepCacheSDHelper": "compat",
        "StepCacheError": "errors",
        "Schedule": "reuse.schedule",
        "RunRecord": "run.record",
    }
    # After `import stepcache` alone these could be used before it was lazy, and all that is in them.
    _ROOMS = ("api", "compat", "errors", "forwards", "graphs", "packages", "pipes", "plans", "reuse", "run", "settings")

    def __getattr__(name):
        from importlib import import_module

        if name in _ROOMS:
            if name != "errors":
                import_module(".compat", __name__)
            return import_module(f".{name}", __name__)
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__, *_ROOMS})


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
