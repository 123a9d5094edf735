"""The shapes that the kernels are tested on, each with its reason, and how close results must be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.bench import MODELS, joins

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Shape:
    """Sizes of one case; `mix` is the number of buffers that make up h, 0 for h itself.

    halves: each half of the batch takes from the other half's buffers too.
    """

    why: str
    batch: int
    hidden: int
    skip: int
    out: int
    groups: int
    height: int
    width: int
    mix: int = 0
    halves: bool = False


def _real_joins() -> list[Shape]:
    """Every distinct pair of channels of SD 1.5 and SDXL, at 4 x 4 pixels."""
    pairs = {(j.hidden, j.skip, j.out, j.groups) for model in MODELS for j in joins(model)}
    return [Shape(f"join {h}+{s} to {o}", 1, h, s, o, g, 4, 4) for h, s, o, g in sorted(pairs)]


REAL = _real_joins()
EDGES = [
    Shape("a group across the seam, several chunks, the last one shorter", 1, 40, 20, 24, 2, 15, 19),
    Shape("30 channels a group across the seam, as 640+320 has them", 1, 64, 32, 32, 32, 9, 9),
    Shape("one pixel, so the variance is over channels alone", 3, 5, 7, 3, 4, 1, 1),
    Shape("one channel a group and one pixel: the variance is 0", 2, 3, 2, 2, 5, 1, 1),
    Shape("one group of all channels", 2, 33, 31, 17, 1, 3, 5),
    Shape("more groups than a block of 16 channels holds", 1, 70, 58, 9, 64, 5, 3),
    Shape("odd in everything, three images", 3, 5, 7, 11, 4, 7, 3),
    Shape("one channel beside many", 2, 1, 95, 20, 8, 6, 2),
    Shape("a row of pixels just above a tile of 256", 1, 16, 16, 16, 4, 1, 257),
    Shape("full tiles of all kernels", 1, 64, 64, 24, 8, 16, 32),
    Shape("a group of 80 channels, as 1280+1280 has them, across the seam", 1, 100, 60, 24, 2, 15, 17),
    Shape("an image just below it", 2, 8, 24, 16, 4, 15, 17),
]
MIXES = [
    Shape("one buffer with a weight", 2, 40, 20, 24, 6, 5, 7, mix=1),
    Shape("two buffers", 2, 40, 20, 24, 6, 5, 7, mix=2),
    Shape("three buffers", 2, 40, 20, 24, 6, 5, 7, mix=3),
    Shape("the last join's channels from three buffers", 1, 320, 320, 320, 32, 4, 4, mix=3),
]
HALVES = [
    Shape("halves of one buffer, a group across the seam", 2, 40, 20, 24, 2, 5, 7, mix=1, halves=True),
    Shape("halves of two buffers, four images", 4, 40, 20, 24, 6, 5, 7, mix=2, halves=True),
    Shape("halves of three buffers, odd channels", 4, 5, 7, 11, 4, 7, 3, mix=3, halves=True),
    Shape("halves of two buffers, full tiles", 2, 64, 32, 32, 4, 8, 16, mix=2, halves=True),
    Shape("halves of one pixel", 2, 16, 16, 16, 4, 1, 1, mix=2, halves=True),
]
SHAPES = REAL + EDGES + MIXES + HALVES


def numeric_cases(*more: Shape) -> list:
    """(shape, dtype, layout) of the tests in the interpreter.

    Two combinations have each dtype size and each layout. The others are slow, and so are the real joins, the longest
    cases, in what pipelines run: what is special about a dtype in a layout shows at the other shapes.
    """
    cases = []
    for shape in [*SHAPES, *more]:
        for dtype, layout in product(DTYPES, LAYOUTS):
            piped = (dtype, layout) == ("bf16", "channels_last")
            main = piped or (dtype, layout) == ("fp32", "contiguous")
            if piped or shape not in REAL:
                marks = [pytest.mark.slow] if shape in REAL or not main else []
                cases.append(pytest.param(shape, dtype, layout, id=f"{shape.why}-{dtype}-{layout}", marks=marks))
    return cases


def gpu_cases() -> list:
    """(shape, dtype, layout) at full size on a GPU: first what pipelines run, then the rest."""
    sizes = {(j.hidden, j.skip, j.out, j.groups, j.height, j.width): str(j) for model in MODELS for j in joins(model)}
    shapes = [Shape(name, 2, *size) for size, name in sizes.items()]
    ways = [*product(("fp16", "bf16"), ("channels_last", "contiguous")), *product(("fp32",), LAYOUTS)]
    ways.sort(key=lambda way: way[1] == "contiguous")
    halves = [replace(shape, why=f"{shape.why}, halves", mix=2, halves=True) for shape in compiled_cases()]
    return [
        pytest.param(shape, dtype, layout, id=f"{shape.why}-{dtype}-{layout}")
        for dtype, layout in ways
        for shape in (*shapes, *(halves if dtype == "fp16" else ()))
    ]


def compiled_cases() -> list[Shape]:
    """The joins that are compiled on a GPU, at full size: with a group across the seam, without one, the smallest."""
    all_joins = [j for model in MODELS for j in joins(model)]
    few = [next(j for j in all_joins if (j.hidden, j.skip) == pair) for pair in ((640, 320), (320, 320), (1280, 1280))]
    return [Shape(str(j), 2, j.hidden, j.skip, j.out, j.groups, j.height, j.width) for j in few]


def activations(shape: Shape, dtype: torch.dtype, layout: torch.memory_format, seed: int = 0) -> dict[str, Tensor]:
    """h, skip and, with a mix, h2, h3 and mix. Means differ from 0 by at least the deviation."""
    generator = torch.Generator().manual_seed(seed)

    def make(channels: int, mean: float) -> Tensor:
        x = torch.randn(shape.batch, channels, shape.height, shape.width, generator=generator) + mean
        # Each channel has its own mean.
        x = x + torch.linspace(-1, 1, channels)[:, None, None]
        return x.to(dtype).contiguous(memory_format=layout)

    made = {"h": make(shape.hidden, 2.0), "skip": make(shape.skip, -1.0)}
    made |= {name: make(shape.hidden, 1.0) for name in ("h2", "h3")[: max(shape.mix - 1, 0)]}
    if shape.mix:
        weights = torch.tensor([[2.0, -1.25, 0.25], [-0.5, 0.75, 1.5]])[:, : shape.mix]
        made["mix"] = (weights if shape.halves else weights[0]).contiguous()
    return made


def norm_arguments(shape: Shape, dtype: torch.dtype, layout: torch.memory_format) -> dict:
    """The arguments of `cat_group_norm_silu`."""
    channels = shape.hidden + shape.skip
    generator = torch.Generator().manual_seed(1)
    affine = {name: torch.randn(channels, generator=generator).to(dtype) for name in ("weight", "bias")}
    return activations(shape, dtype, layout) | affine | {"num_groups": shape.groups, "eps": 1e-5}


def conv_arguments(shape: Shape, dtype: torch.dtype, layout: torch.memory_format, residual: bool = True) -> dict:
    """The arguments of `dual_conv1x1`."""
    generator = torch.Generator().manual_seed(1)
    channels = shape.hidden + shape.skip
    weight = torch.randn(shape.out, channels, 1, 1, generator=generator) / channels**0.5
    made: dict = activations(shape, dtype, layout) | {
        "weight": weight.to(dtype).contiguous(memory_format=layout),
        "bias": torch.randn(shape.out, generator=generator).to(dtype),
    }
    if residual:
        x = torch.randn(shape.batch, shape.out, shape.height, shape.width, generator=generator)
        made["residual"] = x.to(dtype).contiguous(memory_format=layout)
        made["residual_bias"] = torch.randn(shape.out, generator=generator).to(dtype)
    return made


def on_the_gpu(arguments: dict) -> dict:
    """The same arguments on the current CUDA device."""
    return {k: v.cuda() if isinstance(v, Tensor) else v for k, v in arguments.items()}


def widened(arguments: dict) -> dict:
    """The same arguments in float64, except for `mix`, which is always float32."""
    return {k: v.double() if isinstance(v, Tensor) and k != "mix" else v for k, v in arguments.items()}


def stock_h(arguments: dict) -> Tensor:
    """h, or its mix as a tensor in h's dtype: the concat's input without our op."""
    if "mix" not in arguments:
        return arguments["h"]
    buffers, weights = [arguments[name] for name in ("h", "h2", "h3") if name in arguments], arguments["mix"]
    if weights.dim() == 2:
        buffers += [torch.cat(buffer.chunk(2)[::-1]) for buffer in buffers]
    weights = weights.flatten().to(buffers[0].dtype)
    total = weights[0] * buffers[0]
    for weight, buffer in zip(weights[1:], buffers[1:], strict=True):
        total = total + weight * buffer
    return total


def stock_norm(arguments: dict) -> Tensor:
    """concat, GroupNorm and SiLU as diffusers runs them, in the dtype of the arguments."""
    x = torch.cat([stock_h(arguments), arguments["skip"]], 1)
    return F.silu(F.group_norm(x, *(arguments[name] for name in ("num_groups", "weight", "bias", "eps"))))


def stock_conv(arguments: dict) -> Tensor:
    """concat, 1x1 convolution and residual add as diffusers runs them, in the dtype of the arguments."""
    y = F.conv2d(torch.cat([stock_h(arguments), arguments["skip"]], 1), arguments["weight"], arguments["bias"])
    if "residual" not in arguments:
        return y
    return y + (arguments["residual"] + arguments["residual_bias"][:, None, None])


def assert_as_good_as_stock(result: Tensor, stock: Tensor, exact: Tensor) -> None:
    """No NaN, and at most twice the error of the stock operations in the same dtype, plus 1e-6, against float64."""
    assert result.shape == exact.shape and result.dtype == stock.dtype
    error = (result.double() - exact).abs().max().item()
    stock_error = (stock.double() - exact).abs().max().item()
    assert error <= 2 * stock_error + 1e-6, f"error {error:.3g}, stock operations {stock_error:.3g}"
