"""concat -> GroupNorm -> SiLU without the concat: the op, its specification and its bare launcher."""

from .op import cat_group_norm_silu, cat_group_norm_silu_triton
from .reference import cat_group_norm_silu_reference

__all__ = ["cat_group_norm_silu", "cat_group_norm_silu_reference", "cat_group_norm_silu_triton"]
