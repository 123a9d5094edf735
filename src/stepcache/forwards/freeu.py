"""FreeU (arXiv 2309.11497) on the two inputs of a join."""

from __future__ import annotations

from torch import Tensor, nn

from .blend import Blend, value_of


def freeu(
    block: nn.Module, hidden: Tensor | Blend, skip: Tensor, is_skip: bool = False
) -> tuple[Tensor | Blend, Tensor]:
    """Apply FreeU to `hidden` [N, C1, H, W] and `skip` [N, C2, H, W] if `pipe.enable_freeu` has set it on the block.

    Returns both in the same shapes. diffusers scales half of `hidden` in place; this scales a copy, because `hidden`
    may be the cached feature.

    is_skip: in diffusers both are one tensor (without a mid block, the down path's last output), so that what scales
    `hidden` in place scales `skip` as well.
    """
    # This runs at every join, and looking up a missing attribute of a module costs a microsecond, so look up one first.
    if not getattr(block, "s1", None):
        return hidden, skip
    factors = {name: getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")}
    # FreeU changes the first two up blocks only.
    if not all(factors.values()) or block.resolution_idx not in (0, 1):
        return hidden, skip
    from diffusers.utils.torch_utils import apply_freeu

    if is_skip:
        skip, _ = apply_freeu(block.resolution_idx, skip.clone(), skip, **factors)
    return apply_freeu(block.resolution_idx, value_of(hidden).clone(), skip, **factors)
