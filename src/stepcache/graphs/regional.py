"""compile="regional": compile a U-Net's repeated blocks; the rest runs eager.

Only one block of each shape is compiled (SD: 4, SDXL: 2) instead of the whole U-Net. ResNets stay eager, and capture
takes care of the launches between blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from ..forwards.guidance import Compute, KeptValues, Values
from .compiled import Compilations
from .progress import Costs

# (block, its class's forward, args, kwargs) -> result: how the current program runs repeated blocks.
_run: ContextVar[Callable[..., Any] | None] = ContextVar("stepcache_run_block", default=None)


def repeated_blocks(unet: nn.Module) -> list[nn.Module]:
    """The blocks to compile one by one."""
    # Video U-Nets do not name theirs.
    names = getattr(unet, "_repeated_blocks", None) or ("BasicTransformerBlock", "TemporalBasicTransformerBlock")
    return [module for module in unet.modules() if type(module).__name__ in names]


def regional(
    compute: Compute, what: str, options: dict[str, Any], costs: Costs, compilations: Compilations, key: Hashable
) -> Compute:
    """`compute` with its repeated blocks compiled.

    The first call of a kind of block and shape compiles it. Programs of one `key` share compilations.
    """

    def run_block(module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        def block(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return forward(module, *args, **kwargs)

        shape = args[0].shape
        name = f"block {type(module).__name__} {tuple(shape)} of {what}"
        return compilations.get((forward, shape, key), block, options, name)(costs, module, args, kwargs)

    def run(module: nn.Module, kept: KeptValues, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
        token = _run.set(run_block)
        try:
            return compute(module, kept, inputs)
        finally:
            _run.reset(token)

    return run


def call_block(block: nn.Module, stock: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """One call of a repeated block: compiled inside a regional program, else `stock`."""
    run, forward = _run.get(), getattr(stock, "__func__", None)
    return stock(*args, **kwargs) if run is None or forward is None else run(block, forward, args, kwargs)
