"""Times the shortcut of every join, with its residual add: one two-input GEMM against PyTorch's ways.

    python -m benchmarks.kernels.dual_conv1x1             # on a machine with a CUDA GPU
    python -m benchmarks.kernels.dual_conv1x1 --dry-run   # anywhere

Variants: `triton`, stepcache's kernel; `eager`, concat, convolution, add; `inductor`, torch.compile of the same;
`inductor split`, torch.compile of two convolutions and the adds, which needs no concat but writes and reads a partial
result. The bytes count one read of both inputs, the weight and the residual, and one write. These GEMMs are near the
ridge of the roofline, so the share of a copy's speed shows how far memory is the limit; it is not an aim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from stepcache.kernels.dual_conv1x1 import dual_conv1x1
from torch import Tensor

from benchmarks.kernels.bench import JoinCase, OpCase, activations, compiled, main, split_weight


def make_case(join: JoinCase, dtype: torch.dtype, device: str) -> OpCase:
    """All variants of one join, in channels_last."""
    torch.manual_seed(join.index)
    channels = join.hidden + join.skip
    weight = torch.randn(join.out, channels, 1, 1, device=device, dtype=dtype) / channels**0.5
    weight = weight.to(memory_format=torch.channels_last)
    bias = torch.randn(join.out, device=device, dtype=dtype)
    w1, w2 = split_weight(weight, join)

    def stock(h: Tensor, skip: Tensor, residual: Tensor) -> Tensor:
        x = torch.cat([h, skip], 1)
        return F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype)) + residual

    def split(h: Tensor, skip: Tensor, residual: Tensor) -> Tensor:
        return F.conv2d(h, w1, bias) + F.conv2d(skip, w2) + residual

    def ours(h: Tensor, skip: Tensor, residual: Tensor) -> Tensor:
        return dual_conv1x1(h, skip, weight, bias, residual)

    out_elements = join.batch * join.out * join.height * join.width
    needed = dtype.itemsize * (join.concat_elements + weight.numel() + 2 * out_elements)
    variants = {
        "triton": compiled(ours, device),
        "eager": stock,
        "inductor": compiled(stock, device),
        "inductor split": compiled(split, device),
    }
    return OpCase(
        join=join,
        dtype=dtype,
        inputs=activations(join, (join.hidden, join.skip, join.out), dtype, device),
        variants=variants,
        stock=stock,
        bytes_needed=dict.fromkeys(variants, needed),
    )


if __name__ == "__main__":
    main("dual_conv1x1", make_case)
