"""Arguments of torch.compile: ours, and those of the user."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import InvalidSetting

# Inductor options for CUDA, where the user gives neither mode nor options; handed to torch.compile, never set globally.
# Each kernel is compiled once, as Inductor's heuristics have it at first (their number: benchmarks/engine/gpu_code.py).
# Inductor's own default tries 1 to 6 configurations a kernel, max-autotune more, and coordinate descent, as in the
# "diffusion-fast" recipe of PyTorch and Hugging Face, some 10, one after the other: minutes before the first image.
CUDA_OPTIONS = {
    "conv_1x1_as_mm": True,
    "triton.autotune_pointwise": False,
    "test_configs.force_filter_reduction_configs": True,
    "dynamic_scale_rblock": False,
}

FIXED = {"fullgraph": True, "dynamic": False}


def cuda_options() -> dict[str, Any]:
    """Those of `CUDA_OPTIONS` that this torch knows. Imports Inductor."""
    from torch._inductor import list_options

    known = set(list_options())
    return {name: value for name, value in CUDA_OPTIONS.items() if name in known}


def check_options(options: dict[str, Any]) -> None:
    """Raise InvalidSetting for torch.compile arguments that torch, here, does not take. Imports Dynamo."""
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
    except Exception as error:  # whatever torch finds wrong with them: a backend, an option, this Python
        raise InvalidSetting(f"torch.compile refuses compile={options!r}: {error}") from error


def own_copy(options: dict[str, Any]) -> dict[str, Any]:
    """A copy for torch.compile, which takes entries out of the `options` that it is given."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}


def captures_itself(options: dict[str, Any]) -> bool:
    """Whether with these arguments torch captures CUDA graphs by itself (CUDA graph trees)."""
    inductor = options.get("backend", "inductor") == "inductor"
    by_option = bool((options.get("options") or {}).get("triton.cudagraphs"))
    return options.get("backend") == "cudagraphs" or (
        inductor and (options.get("mode") == "reduce-overhead" or by_option)
    )
