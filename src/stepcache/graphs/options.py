"""Arguments of torch.compile: stepcache's defaults, and the user's."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch

from ..errors import InvalidSetting
from ..values import as_items, as_word, is_a, is_one_of, reason_of, shown

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


def options_of(items: Iterable[tuple[object, object]]) -> dict[str, Any]:
    """torch.compile arguments from the items of a dict of anything, copied, their words plain.

    Raises InvalidSetting for names and types that torch.compile does not take.
    """
    given = list(items)
    unknown = [name for name, _ in given if not is_one_of(name, ("backend", "mode", "options"))]
    if unknown:
        fixed = " (fullgraph=True and dynamic=False are fixed)" if any(is_one_of(n, FIXED) for n in unknown) else ""
        raise InvalidSetting(f"compile takes backend, mode and options for torch.compile, got {shown(unknown)}{fixed}.")
    found: dict[str, Any] = {str(as_word(name)): value for name, value in given}
    for name in ("backend", "mode"):
        if is_a(found.get(name), str):
            found[name] = as_word(found[name])
    if "backend" in found and not (is_a(found["backend"], str) or callable(found["backend"])):
        raise InvalidSetting(f"compile's backend must be a name or a function, got {shown(found['backend'])}.")
    if not is_a(found.get("mode"), str, type(None)):
        raise InvalidSetting(f"compile mode {shown(found['mode'])} is unknown: it must be a name.")
    if found.get("options") is not None:
        entries = as_items(found["options"])
        if entries is None or not all(is_a(name, str) for name, _ in entries):
            raise InvalidSetting(f"compile's options must be a dict of names, got {shown(found['options'])}.")
        found["options"] = {as_word(name): value for name, value in entries}
    return found


def check_options(options: dict[str, Any]) -> None:
    """Raise InvalidSetting for torch.compile arguments (of `options_of`) that this torch rejects. Imports Dynamo."""
    mode = options.get("mode")
    if mode is not None and by_inductor(options):
        from torch._inductor import list_mode_options

        if mode not in list_mode_options():
            raise InvalidSetting(f"compile mode {shown(mode)} is unknown; torch has {', '.join(list_mode_options())}.")
    try:
        torch.compile(lambda: None, **FIXED, **options)
    except Exception as error:  # torch may raise anything for a bad backend or option, or on this Python
        raise InvalidSetting(f"torch.compile refuses compile={shown(options)}: {reason_of(error)}") from error


def by_inductor(options: dict[str, Any]) -> bool:
    """Whether Inductor compiles with these arguments. A backend may be any callable object."""
    return is_one_of(options.get("backend", "inductor"), ("inductor",))


def own_copy(options: dict[str, Any]) -> dict[str, Any]:
    """A copy for torch.compile, which removes entries from the `options` it is given."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}


def captures_itself(options: dict[str, Any]) -> bool:
    """Whether torch captures CUDA graphs itself with these arguments (CUDA graph trees)."""
    if not by_inductor(options):
        return is_one_of(options["backend"], ("cudagraphs",))
    by_option = (options.get("options") or {}).get("triton.cudagraphs") is True
    return options.get("mode") == "reduce-overhead" or by_option
