"""Times concat -> GroupNorm -> SiLU of every join: stepcache's one or two launches against PyTorch's ways.

    python -m benchmarks.kernels.cat_group_norm_silu             # on a machine with a CUDA GPU
    python -m benchmarks.kernels.cat_group_norm_silu --dry-run   # anywhere

Variants: `triton`, stepcache's kernels; `eager`, the three stock operations; `inductor`, torch.compile of the part of
the stock join that reads the concat (norm and shortcut, so that the concat is materialised as in the ResNet);
`inductor split`, the same with the shortcut split in two, so that no concat is needed. The last two include the
shortcut, so they compare with `triton + shortcut` (`triton` followed by `dual_conv1x1`). Aim: `triton` reaches at least
80 % of the speed of a copy of the same size, counting two reads and one write of the concat's elements, and
`triton + shortcut` is faster than both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from stepcache.kernels.cat_group_norm_silu import cat_group_norm_silu
from stepcache.kernels.dual_conv1x1 import dual_conv1x1
from torch import Tensor

from benchmarks.kernels.bench import JoinCase, OpCase, activations, compiled, main, split_weight

EPS = 1e-5


def make_case(join: JoinCase, dtype: torch.dtype, device: str) -> OpCase:
    """All variants of one join, in channels_last."""
    torch.manual_seed(join.index)
    channels = join.hidden + join.skip
    weight, bias = torch.randn(2, channels, device=device, dtype=dtype).unbind()
    shortcut = torch.randn(join.out, channels, 1, 1, device=device, dtype=dtype) / channels**0.5
    shortcut = shortcut.to(memory_format=torch.channels_last)
    w1, w2 = split_weight(shortcut, join)

    def eager(h: Tensor, skip: Tensor) -> Tensor:
        return F.silu(F.group_norm(torch.cat([h, skip], 1), join.groups, weight, bias, EPS))

    def with_shortcut(h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([h, skip], 1)
        w, b, s = (tensor.to(x.dtype) for tensor in (weight, bias, shortcut))
        return F.silu(F.group_norm(x, join.groups, w, b, EPS)), F.conv2d(x, s)

    def split(h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([h, skip], 1)
        return F.silu(F.group_norm(x, join.groups, weight, bias, EPS)), F.conv2d(h, w1) + F.conv2d(skip, w2)

    def ours(h: Tensor, skip: Tensor) -> Tensor:
        return cat_group_norm_silu(h, skip, weight, bias, join.groups, EPS)

    def ours_with_shortcut(h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        return ours(h, skip), dual_conv1x1(h, skip, shortcut, None)

    norm_bytes = 3 * dtype.itemsize * join.concat_elements
    shortcut_bytes = dtype.itemsize * (join.batch * join.out * join.height * join.width + shortcut.numel())
    return OpCase(
        join=join,
        dtype=dtype,
        inputs=activations(join, (join.hidden, join.skip), dtype, device),
        variants={
            "triton": compiled(ours, device),
            "eager": eager,
            "triton + shortcut": compiled(ours_with_shortcut, device),
            "inductor": compiled(with_shortcut, device),
            "inductor split": compiled(split, device),
        },
        stock=with_shortcut,
        # The concat's elements are read twice and written once; the shortcut reads them with the norm.
        bytes_needed={"triton": norm_bytes, "eager": norm_bytes}
        | dict.fromkeys(("triton + shortcut", "inductor", "inductor split"), norm_bytes + shortcut_bytes),
    )


if __name__ == "__main__":
    main("cat_group_norm_silu", make_case)
