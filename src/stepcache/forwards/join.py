"""A join: the hidden state meets its skip and goes through an up-path ResNet.

There are two ways to the same result. `reference_join` calls the ResNet on the concat, bit for bit as diffusers does.
`fused_join` never writes the concat: concat -> GroupNorm -> SiLU is one op of one or two launches, and the 1x1 shortcut
is one two-input GEMM that also adds the residual and its bias (csrc_triton/README.md). It falls back to the reference
where the ops do not fit the ResNet or its inputs. The choice depends only on what is known when a graph is traced, so a
graph holds one of the two.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .autocast import autocasts
from .blend import Blend, value_of
from .join_shape import JoinShape, join_format, shape_of

# (resnet, hidden [N, C1, H, W], skip [N, C2, H, W], temb [N, D]) -> [N, C, H, W]
JoinFunction = Callable[[nn.Module, Tensor | Blend, Tensor, Tensor], Tensor]

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference_join(resnet: nn.Module, hidden: Tensor | Blend, skip: Tensor, temb: Tensor) -> Tensor:
    """`resnet` on the concat of `hidden` [N, C1, H, W] and `skip` [N, C2, H, W], with time embedding `temb` [N, D]."""
    return resnet(torch.cat([value_of(hidden), skip], dim=1), temb)


def fused_join(wanted: Callable[[JoinShape], bool]) -> JoinFunction:
    """A join function that uses the Triton ops for `wanted` shapes, and the reference for all others.

    Imports Triton. On devices without it the ops run their own references, in fp32: the same result up to rounding.
    """
    from stepcache.kernels.cat_group_norm_silu import cat_group_norm_silu
    from stepcache.kernels.dual_conv1x1 import dual_conv1x1

    def join(resnet: nn.Module, hidden: Tensor | Blend, skip: Tensor, temb: Tensor) -> Tensor:
        buffers, weights = hidden if isinstance(hidden, Blend) else ((hidden,), None)
        h = buffers[0]
        if not fusable(resnet, h, skip) or not wanted(shape_of(resnet, hidden, skip)):
            return reference_join(resnet, hidden, skip, temb)
        memory_format = join_format(resnet, *buffers, skip)
        h, *further = [_in_memory(buffer, memory_format) for buffer in buffers]
        skip = _in_memory(skip, memory_format)
        # The ops take a blend as its further buffers and the weights of all.
        blend = (*further, *(None,) * (2 - len(further)), weights)
        norm, sampler = resnet.norm1, resnet.upsample or resnet.downsample
        x = cat_group_norm_silu(h, skip, norm.weight, norm.bias, norm.num_groups, norm.eps, *blend)
        x = _between_convolutions(resnet, resnet.conv1(x if sampler is None else sampler(x)), temb)
        shortcut, scale = resnet.conv_shortcut, resnet.output_scale_factor
        if sampler is None and type(shortcut) is nn.Conv2d:
            # Added by the convolution, the bias would be a launch of its own.
            x, bias = _without_bias(resnet.conv2, x)
            y = dual_conv1x1(h, skip, shortcut.weight, shortcut.bias, x, *blend, bias)
        else:
            x = resnet.conv2(x)
            # A resampled, identity or adapter-wrapped shortcut needs the concat itself.
            y = torch.cat([value_of(hidden), skip], dim=1)
            y = y if sampler is None else sampler(y)
            y = (y if shortcut is None else shortcut(y)) + x
        return y if scale == 1.0 else y / scale

    return join


def _in_memory(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """The tensor [N, C, H, W] in that memory format, converted here so that a compiler can fuse the conversion.

    In a compiled graph, as_strided (a no-op here) makes Inductor write the tensor once for all its readers. Otherwise
    Inductor would write a tensor that is not in memory yet again for each argument of an opaque op.
    """
    tensor = tensor.contiguous(memory_format=memory_format)
    return torch.as_strided(tensor, tensor.shape, tensor.stride()) if torch.compiler.is_compiling() else tensor


def fusable(resnet: nn.Module, hidden: Tensor, skip: Tensor) -> bool:
    """Whether the ops compute what `resnet` would: a plain ResnetBlock2D with GroupNorm and SiLU, in eval mode."""
    from diffusers.models.resnet import ResnetBlock2D

    # Compare the function, not its name: Dynamo cannot read names of methods, and would reject every ResNet.
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
        # The ops read the weights and do not call these layers, so their hooks would not run.
        and not any(_hooked(module) for module in (norm, shortcut) if module is not None)
        and (type(shortcut) is not nn.Conv2d or shortcut.weight.dtype == hidden.dtype)
    )


def _without_bias(conv: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A plain convolution's output without its bias, and the bias; for any other module, its output and None."""
    if type(conv) is nn.Conv2d and not _hooked(conv) and (conv.bias is None or conv.bias.dtype == x.dtype):
        return conv._conv_forward(x, conv.weight, None), conv.bias
    return conv(x), None


def _hooked(module: nn.Module) -> bool:
    """Whether the module has forward hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _between_convolutions(resnet: nn.Module, x: Tensor, temb: Tensor) -> Tensor:
    """The ResNet's main path from its first convolution to its second, as in ResnetBlock2D.forward."""
    if resnet.time_emb_proj is not None:
        temb = temb if resnet.skip_time_act else resnet.nonlinearity(temb)
        temb = resnet.time_emb_proj(temb)[:, :, None, None]
    if resnet.time_embedding_norm == "scale_shift":
        scale, shift = temb.chunk(2, dim=1)
        x = resnet.norm2(x) * (1 + scale) + shift
    else:
        x = resnet.norm2(x + temb if resnet.time_emb_proj is not None else x)
    return resnet.dropout(resnet.nonlinearity(x))
