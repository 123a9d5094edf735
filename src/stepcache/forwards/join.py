"""One up-path layer's join: the hidden state meets its skip and goes through the ResNet.

Two ways to the same result. `reference_join` calls the ResNet on the concat, as diffusers does, bit for bit.
`fused_join` never writes the concat: concat -> GroupNorm -> SiLU is one op of one or two launches, and the 1x1 shortcut
one two-input GEMM that also adds the residual and its bias (csrc_triton/README.md). Where a ResNet or its inputs are
not what the ops are made for, it is the reference again. What decides is known when a graph is traced, so a graph holds
one of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..graphs.verdicts import JoinShape


class Blend(NamedTuple):
    """A tensor that is a weighted sum of others, summed where it is needed.

    buffers: one to three tensors of one shape and dtype. weights: float32 [len(buffers)], on their device: a graph is
    traced or captured once, and sees the weights of each step.
    """

    buffers: tuple[Tensor, ...]
    weights: Tensor

    def value(self) -> Tensor:
        """The sum, in float32 (float64 for float64 buffers), rounded to the buffers' dtype."""
        wide = torch.promote_types(self.buffers[0].dtype, torch.float32)
        terms = [weight * buffer.to(wide) for weight, buffer in zip(self.weights, self.buffers, strict=True)]
        return sum(terms[1:], terms[0]).to(self.buffers[0].dtype)


def value_of(tensor: Tensor | Blend) -> Tensor:
    """The tensor itself, or a blend's sum."""
    return tensor.value() if isinstance(tensor, Blend) else tensor


def layout_of(*tensors: Tensor) -> torch.memory_format:
    """channels_last where one of the [N, C, H, W] tensors is so and not contiguous as well, else contiguous."""
    for x in tensors:
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format


def shape_of(resnet: nn.Module, hidden: Tensor | Blend, skip: Tensor) -> JoinShape:
    """All that the time of a join depends on; `resnet` is one that `fusable` lets pass.

    The layout is the one in which the ResNet convolves, which is that of its weights where they are in channels_last.
    """
    h = hidden.buffers[0] if isinstance(hidden, Blend) else hidden
    sampler = "up" if resnet.upsample else "down" if resnet.downsample else ""
    shortcut = "no shortcut" if resnet.conv_shortcut is None else f"{type(resnet.conv_shortcut).__name__} shortcut"
    return JoinShape(
        dtype=str(h.dtype).removeprefix("torch."),
        layout="channels_last" if _layout(resnet, h, skip) is torch.channels_last else "contiguous",
        batch=h.shape[0],
        hidden=h.shape[1],
        skip=skip.shape[1],
        out=resnet.out_channels,
        groups=resnet.norm1.num_groups,
        height=h.shape[2],
        width=h.shape[3],
        buffers=len(hidden.buffers) if isinstance(hidden, Blend) else 0,
        resnet=" ".join(filter(None, (resnet.time_embedding_norm, sampler, shortcut))),
    )


def _layout(resnet: nn.Module, *inputs: Tensor) -> torch.memory_format:
    weight = getattr(resnet.conv1, "weight", None)  # of a quantised layer it may be anything
    return layout_of(*inputs, *([weight] if isinstance(weight, Tensor) and weight.dim() == 4 else []))


# (resnet, hidden [N, C1, H, W], skip [N, C2, H, W], temb [N, D]) -> [N, C, H, W]
Join = Callable[[nn.Module, Tensor | Blend, Tensor, Tensor], Tensor]

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def freeu(block: nn.Module, hidden: Tensor | Blend, skip: Tensor) -> tuple[Tensor | Blend, Tensor]:
    """FreeU (arXiv 2309.11497) on a join's two inputs, where `pipe.enable_freeu` has set it on the block.

    hidden: [N, C1, H, W], skip: [N, C2, H, W]; returned in the same shapes. diffusers scales half of `hidden` in
    place; here it is a copy that is scaled, since `hidden` may be the cached feature.
    """
    # Asked first and alone: a missing attribute of a module costs a microsecond, and this is asked at every join.
    if not getattr(block, "s1", None):
        return hidden, skip
    factors = {name: getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")}
    # Only the first two up blocks are touched; elsewhere diffusers' own function does nothing either.
    if not all(factors.values()) or block.resolution_idx not in (0, 1):
        return hidden, skip
    from diffusers.utils.torch_utils import apply_freeu

    return apply_freeu(block.resolution_idx, value_of(hidden).clone(), skip, **factors)


def reference_join(resnet: nn.Module, hidden: Tensor | Blend, skip: Tensor, temb: Tensor) -> Tensor:
    """`resnet` on the concat of `hidden` [N, C1, H, W] and `skip` [N, C2, H, W], with time embedding `temb` [N, D]."""
    return resnet(torch.cat([value_of(hidden), skip], dim=1), temb)


def fused_join(wanted: Callable[[JoinShape], bool]) -> Join:
    """A join on the Triton ops where its shape is `wanted`, and the reference for all others.

    Imports Triton. On devices without it the ops run their own references, fp32 inside: the same up to rounding.
    """
    from stepcache.kernels.cat_group_norm_silu import cat_group_norm_silu
    from stepcache.kernels.dual_conv1x1 import dual_conv1x1

    def join(resnet: nn.Module, hidden: Tensor | Blend, skip: Tensor, temb: Tensor) -> Tensor:
        buffers, weights = hidden if isinstance(hidden, Blend) else ((hidden,), None)
        h = buffers[0]
        if not fusable(resnet, h, skip) or not wanted(shape_of(resnet, hidden, skip)):
            return reference_join(resnet, hidden, skip, temb)
        layout = _layout(resnet, *buffers, skip)
        h, *further = [_in_memory(buffer, layout) for buffer in buffers]
        skip = _in_memory(skip, layout)
        # What the ops take in the place of one hidden state: its further buffers, and the weights of all.
        blend = (*further, *(None,) * (2 - len(further)), weights)
        norm, sampler = resnet.norm1, resnet.upsample or resnet.downsample
        x = cat_group_norm_silu(h, skip, norm.weight, norm.bias, norm.num_groups, norm.eps, *blend)
        x = _between_convolutions(resnet, resnet.conv1(x if sampler is None else sampler(x)), temb)
        shortcut, scale = resnet.conv_shortcut, resnet.output_scale_factor
        if sampler is None and type(shortcut) is nn.Conv2d:
            # A bias would be a launch of its own behind the convolution.
            x, bias = _without_bias(resnet.conv2, x)
            y = dual_conv1x1(h, skip, shortcut.weight, shortcut.bias, x, *blend, bias)
        else:
            x = resnet.conv2(x)
            # A resampled or an identity shortcut needs the concat itself, and so does one that an adapter wraps.
            y = torch.cat([value_of(hidden), skip], dim=1)
            y = y if sampler is None else sampler(y)
            y = (y if shortcut is None else shortcut(y)) + x
        return y if scale == 1.0 else y / scale

    return join


def _in_memory(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """The tensor [N, C, H, W] in that layout: here, where a compiler can make it so as it computes it, not in the ops.

    In a compiled graph it is in memory, once, for all that read it. Inductor writes what it has not written yet for
    each argument of an opaque op anew, but the input of as_strided, which does nothing here, once.
    """
    tensor = tensor.contiguous(memory_format=layout)
    return torch.as_strided(tensor, tensor.shape, tensor.stride()) if torch.compiler.is_compiling() else tensor


def fusable(resnet: nn.Module, hidden: Tensor, skip: Tensor) -> bool:
    """Whether the ops compute what `resnet` would: a plain ResnetBlock2D with GroupNorm and SiLU, in evaluation."""
    from diffusers.models.resnet import ResnetBlock2D

    # The function itself and not its name: Dynamo knows no names of methods, and would say no to every ResNet.
    if type(resnet).forward is not ResnetBlock2D.forward:
        return False
    norm, shortcut = resnet.norm1, resnet.conv_shortcut
    return (
        type(norm) is nn.GroupNorm
        and norm.affine
        and isinstance(resnet.nonlinearity, nn.SiLU)
        # Dropout is random, and the ops have no gradients.
        and not (resnet.training and resnet.dropout.p > 0)
        and not (torch.is_grad_enabled() and (hidden.requires_grad or norm.weight.requires_grad))
        # Under autocast diffusers would normalise in fp32 and convolve in half precision.
        and not autocasts(hidden.device.type)
        and hidden.dtype == skip.dtype
        and hidden.dtype in KERNEL_DTYPES
        and norm.weight.dtype in (hidden.dtype, torch.float32)
        # The ops read weights and do not call these layers: what hooks on them do would be left out.
        and not any(hooked(module) for module in (norm, shortcut) if module is not None)
        and (type(shortcut) is not nn.Conv2d or shortcut.weight.dtype == hidden.dtype)
    )


def autocasts(device: str) -> bool:
    """Whether autocast is on for a type of device; the meta device has none to ask about."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _without_bias(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A convolution's output without its bias, and the bias; of what is no plain convolution the output, and None."""
    if type(conv) is nn.Conv2d and not hooked(conv) and (conv.bias is None or conv.bias.dtype == x.dtype):
        return conv._conv_forward(x, conv.weight, None), conv.bias
    return conv(x), None


def hooked(module: nn.Module) -> bool:
    """Whether hooks are on it, which a call of its parts would leave out."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _between_convolutions(resnet: nn.Module, x: Tensor, temb: Tensor) -> Tensor:
    """The ResNet's main path from its first convolution to its second, as ResnetBlock2D.forward has it."""
    if resnet.time_emb_proj is not None:
        temb = temb if resnet.skip_time_act else resnet.nonlinearity(temb)
        temb = resnet.time_emb_proj(temb)[:, :, None, None]
    if resnet.time_embedding_norm == "scale_shift":
        scale, shift = temb.chunk(2, dim=1)
        x = resnet.norm2(x) * (1 + scale) + shift
    else:
        x = resnet.norm2(x + temb if resnet.time_emb_proj is not None else x)
    return resnet.dropout(resnet.nonlinearity(x))
