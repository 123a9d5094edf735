"""Arguments of torch.compile: stepcache's defaults, and the user's."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ..errors import InvalidSetting

# Inductor options for CUDA if the user gives neither mode nor options; passed to torch.compile, never set globally.
# Each kernel is compiled once, in the first configuration of Inductor's heuristics (benchmarks/engine/gpu_code.py
# counts them). Inductor's default tries 1 to 6 configurations per kernel, max-autotune more. Coordinate descent, as in
# the "diffusion-fast" recipe of PyTorch and Hugging Face, tries some 10 in sequence: minutes before the first image.
CUDA_OPTIONS = {
    "conv_1x1_as_mm": True,
    "triton.autotune_pointwise": False,
    "test_configs.force_filter_reduction_configs": True,
    "dynamic_scale_rblock": False,
}

FIXED = {"fullgraph": True, "dynamic": False}


def cuda_options() -> dict[str, Any]:
    """The entries of `CUDA_OPTIONS` that this torch knows. Imports Inductor."""
    return {name: value for name, value in CUDA_OPTIONS.items() if name in _inductors_options()}


@functools.cache
def _inductors_options() -> frozenset[str]:
    # torch copies its whole configuration to list it, and each run asks.
    from torch._inductor import list_options

    return frozenset(list_options())


def check_options(options: dict[str, Any]) -> None:
    """Raise InvalidSetting for torch.compile arguments that this torch rejects. Imports Dynamo."""
    unknown = sorted(set(options) - {"backend", "mode", "options"})
    if unknown:
        fixed = " (fullgraph=True and dynamic=False are fixed)" if set(unknown) & set(FIXED) else ""
        raise InvalidSetting(f"compile takes backend, mode and options for torch.compile, got {unknown}{fixed}.")
    mode, backend = options.get("mode"), options.get("backend", "inductor")
    if mode is not None and backend == "inductor":
        from torch._inductor import list_mode_options

        if mode not in list_mode_options():
            raise InvalidSetting(f"compile mode {mode!r} is unknown; torch has {', '.join(list_mode_options())}.")
    try:
        torch.compile(lambda: None, **FIXED, **options)
    except Exception as error:  # torch may raise anything for a bad backend or option, or on this Python
        raise InvalidSetting(f"torch.compile refuses compile={options!r}: {error}") from error


def own_copy(options: dict[str, Any]) -> dict[str, Any]:
    """A copy for torch.compile, which removes entries from the `options` it is given."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}


def captures_itself(options: dict[str, Any]) -> bool:
    """Whether torch captures CUDA graphs itself with these arguments (CUDA graph trees)."""
    inductor = options.get("backend", "inductor") == "inductor"
    by_option = bool((options.get("options") or {}).get("triton.cudagraphs"))
    return options.get("backend") == "cudagraphs" or (
        inductor and (options.get("mode") == "reduce-overhead" or by_option)
    )
