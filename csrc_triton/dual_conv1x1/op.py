"""`dual_conv1x1`: the registered op and the bare launcher, with the signature of the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from .._common import (
    HAS_TRITON,
    cdiv,
    check_join,
    check_kernel_dtype,
    device_of,
    interpreting,
    joint_format,
    require_triton,
)
from .reference import dual_conv1x1_reference

if HAS_TRITON:
    from .kernel import CONFIGS, dual_conv1x1_kernel

# The longest K step (128 bytes of 16-bit channels), of which EVEN_K promises multiples, and the largest block.
MAX_BLOCK_K = 64
MAX_BLOCK = 128


def _check(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    h2: Tensor | None,
    h3: Tensor | None,
    mix: Tensor | None,
) -> None:
    check_join(h, skip, h2, h3, mix)
    batch, c1, height, width = h.shape
    c2 = skip.shape[1]
    if weight.dim() != 4 or weight.shape[1:] != (c1 + c2, 1, 1):
        raise ValueError(f"weight must be [O, {c1} + {c2}, 1, 1], got {tuple(weight.shape)}")
    if weight.dtype != h.dtype:
        raise ValueError(f"weight ({weight.dtype}) and h ({h.dtype}) must agree in dtype")
    out_channels = weight.shape[0]
    if bias is not None and bias.shape != (out_channels,):
        raise ValueError(f"bias must be ({out_channels},), got {tuple(bias.shape)}")
    if residual is not None and residual.shape != (batch, out_channels, height, width):
        raise ValueError(f"residual must be {(batch, out_channels, height, width)}, got {tuple(residual.shape)}")


def _launch(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    h2: Tensor | None,
    h3: Tensor | None,
    mix: Tensor | None,
) -> tuple[Callable[[dict[str, int]], tuple[int]], dict[str, Any], Tensor]:
    """The grid of the launch, as a function of the configuration, its arguments, and the tensor that it fills."""
    check_kernel_dtype(h)
    memory_format = joint_format(h, skip)
    channels_last = memory_format == torch.channels_last
    h, skip = h.contiguous(memory_format=memory_format), skip.contiguous(memory_format=memory_format)
    images, c1, height, width = h.shape
    c2, out_channels = skip.shape[1], weight.shape[0]
    out = torch.empty(
        (images, out_channels, height, width), dtype=h.dtype, device=h.device, memory_format=memory_format
    )
    batch, pixels = (1, images * height * width) if channels_last else (images, height * width)
    arguments: dict[str, Any] = {
        "h": h,
        # Pointers that the flags say are not read; any tensor does.
        "h2": h if h2 is None else h2.contiguous(memory_format=memory_format),
        "h3": h if h3 is None else h3.contiguous(memory_format=memory_format),
        "mix": h if mix is None else mix.contiguous(),
        "skip": skip,
        # One pixel each: contiguous and channels_last are the same [O, C1 + C2] in memory.
        "weight": weight if weight.is_contiguous(memory_format=torch.channels_last) else weight.contiguous(),
        "bias": h if bias is None else bias.contiguous(),
        "residual": h if residual is None else residual.contiguous(memory_format=memory_format),
        "out": out,
        "N": batch,
        "P": pixels,
        "C1": c1,
        "C2": c2,
        "C_OUT": out_channels,
        "NUM_MIX": 0 if mix is None else mix.shape[0],
        "CHANNELS_LAST": channels_last,
        # The longest row of a tile, times the most rows, that any configuration has.
        "WIDE": MAX_BLOCK * max(c1 + c2, out_channels, 0 if channels_last else pixels) >= 2**31,
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "EVEN_K": c1 % MAX_BLOCK_K == 0 and c2 % MAX_BLOCK_K == 0,
        "PRECISION": "tf32" if torch.backends.cudnn.allow_tf32 else "ieee",
        "UPCAST": False,
    }

    def grid(config: dict[str, int]) -> tuple[int]:
        return (batch * cdiv(pixels, config["BLOCK_P"]) * cdiv(out_channels, config["BLOCK_O"]),)

    return grid, arguments, out


@custom_op("stepcache::dual_conv1x1", mutates_args=())
def dual_conv1x1(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    mix: Tensor | None = None,
) -> Tensor:
    """conv2d(cat([h, skip], 1), weight, bias) + residual without the concat: the op for torch.compile and export.

    Args:
        h: [N, C1, H, W], in float32, float16 or bfloat16; CPU tensors may be float64.
        skip: [N, C2, H, W], of h's dtype and device.
        weight: [O, C1 + C2, 1, 1] as nn.Conv2d holds it, of h's dtype.
        bias: [O], in h's dtype or in float32, or None.
        residual: [N, O, H, W], added in float32 before the result is rounded.
        h2: a second buffer like h. Then h + h2 (+ h3) stand for mix[0] h + mix[1] h2 (+ mix[2] h3).
        h3: a third one.
        mix: float32 [number of buffers] on h's device, read by the kernel, so a CUDA graph sees new values.

    Returns:
        [N, O, H, W] in h's dtype; channels_last if h or skip is, else contiguous (`joint_format`).

    No autograd. On CUDA and ROCm one Triton launch (kernel.py), elsewhere the reference. To a compiler it is one opaque
    call (README.md, "Why the ops are opaque").
    """
    if h.device.type != "cuda":
        _check(h, skip, weight, bias, residual, h2, h3, mix)
        out = dual_conv1x1_reference(h, skip, weight, bias, residual, h2, h3, mix)
        return out.contiguous(memory_format=joint_format(h, skip))
    return dual_conv1x1_triton(h, skip, weight, bias, residual, h2, h3, mix)


@dual_conv1x1.register_fake
def _(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    mix: Tensor | None = None,
) -> Tensor:
    _check(h, skip, weight, bias, residual, h2, h3, mix)
    batch, _, height, width = h.shape
    sizes = (batch, weight.shape[0], height, width)
    return torch.empty(sizes, dtype=h.dtype, device=h.device, memory_format=joint_format(h, skip))


def dual_conv1x1_triton(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    h2: Tensor | None = None,
    h3: Tensor | None = None,
    mix: Tensor | None = None,
) -> Tensor:
    """`dual_conv1x1` as a bare launch, without the dispatcher; takes CPU tensors if TRITON_INTERPRET=1."""
    require_triton()
    _check(h, skip, weight, bias, residual, h2, h3, mix)
    grid, arguments, out = _launch(h, skip, weight, bias, residual, h2, h3, mix)
    if interpreting():
        # The interpreter has no device to autotune on; the smallest tile wastes the least on the tests' small shapes.
        arguments |= CONFIGS[-1].kwargs | {"UPCAST": True}
        dual_conv1x1_kernel.fn[grid](**arguments)
    else:
        with device_of(h):
            dual_conv1x1_kernel[grid](**arguments)
    return out
