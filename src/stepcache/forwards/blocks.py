"""How each type of block in diffusers' 2D U-Nets (models/unets/unet_2d_blocks.py) calls its layers and samplers.

A layer is a ResNet and its attention, if it has one. Most down blocks keep one skip after each layer and one after
their downsampler, and up blocks have a join at each layer. K blocks keep one skip per block and have one join. NCSN++
blocks ("Skip" in diffusers) carry an image beside the hidden state, which unet_2d.py handles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets import unet_2d_blocks
from torch import Tensor, nn

from ..errors import UnsupportedUNet
from ..reuse.cut import Cut, Layout
from .freeu import freeu
from .join import JoinFunction
from .join_shape import memory_format_of
from .stock import check_stock
from .touched import check_untouched

# (attention, hidden [B, C, H, W], temb [B, E], its other arguments) -> [B, C, H, W]. The arguments are
# encoder_hidden_states, attention_mask, encoder_attention_mask and cross_attention_kwargs, all of them optional.
Attend = Callable[[nn.Module, Tensor, Tensor, dict[str, Any]], Tensor]


def transformer(attention: nn.Module, hidden: Tensor, temb: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Call a Transformer2DModel."""
    return attention(hidden, **arguments, return_dict=False)[0]


def self_attention(attention: nn.Module, hidden: Tensor, temb: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Call an Attention over the image alone."""
    return attention(hidden)


def added_text(attention: nn.Module, hidden: Tensor, temb: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Call an Attention over the keys of image and text together, with one mask. unCLIP's is `attention_mask`."""
    text, mask = arguments["encoder_hidden_states"], arguments["attention_mask"]
    if mask is None and text is not None:
        mask = arguments["encoder_attention_mask"]
    options = arguments["cross_attention_kwargs"] or {}
    return attention(hidden, encoder_hidden_states=text, attention_mask=mask, **options)


def k_attention(attention: nn.Module, hidden: Tensor, temb: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Call a KAttentionBlock."""
    return attention(hidden, emb=temb, **arguments)


class Kind(NamedTuple):
    """What differs between types of blocks."""

    attend: Attend | None = None  # how a layer's attention is called; None: layers are ResNets alone
    freeu: bool = False  # its forward applies FreeU
    sized: bool = False  # its upsamplers are told their output size
    by_block: bool = False  # a K block
    image: bool = False  # a block of NCSN++


DOWN = {
    "DownBlock2D": Kind(),
    "CrossAttnDownBlock2D": Kind(transformer),
    "AttnDownBlock2D": Kind(self_attention),
    "ResnetDownsampleBlock2D": Kind(),
    "SimpleCrossAttnDownBlock2D": Kind(added_text),
    "KDownBlock2D": Kind(by_block=True),
    "KCrossAttnDownBlock2D": Kind(k_attention, by_block=True),
    "SkipDownBlock2D": Kind(image=True),
    "AttnSkipDownBlock2D": Kind(self_attention, image=True),
}
UP = {
    "UpBlock2D": Kind(freeu=True, sized=True),
    "CrossAttnUpBlock2D": Kind(transformer, freeu=True, sized=True),
    "AttnUpBlock2D": Kind(self_attention),
    "ResnetUpsampleBlock2D": Kind(),
    "SimpleCrossAttnUpBlock2D": Kind(added_text),
    "KUpBlock2D": Kind(by_block=True),
    "KCrossAttnUpBlock2D": Kind(k_attention, by_block=True),
    "SkipUpBlock2D": Kind(image=True),
    "AttnSkipUpBlock2D": Kind(image=True),  # its one attention comes after all layers
}
KINDS = {**DOWN, **UP}
_BY_FORWARD = {getattr(unet_2d_blocks, name).forward: kind for name, kind in KINDS.items()}

# Why the other blocks in that file are refused.
_ENCODER = "It is a block of a VAE, which keeps no skips."
REFUSED = {
    "AutoencoderTinyBlock": _ENCODER,
    "DownEncoderBlock2D": _ENCODER,
    "AttnDownEncoderBlock2D": _ENCODER,
    "UpDecoderBlock2D": _ENCODER,
    "AttnUpDecoderBlock2D": _ENCODER,
}


def kind_of(block: nn.Module) -> Kind:
    """The kind of a block that `check` accepts, by its forward, which subclasses share and torch.compile can trace."""
    return _BY_FORWARD[type(block).forward]


def check(unet: nn.Module, own: type[nn.Module], refused: dict[str, str] = REFUSED) -> None:
    """Raise UnsupportedUNet, naming the place, if a forward is not a known one.

    own: diffusers' class whose forward the U-Net must have. refused: block type -> why it is refused.
    """
    check_stock("the U-Net", unet, (own,))
    for path, kinds in (("down_blocks", DOWN), ("up_blocks", UP)):
        known = [getattr(unet_2d_blocks, name) for name in kinds if name not in refused]
        for i, block in enumerate(getattr(unet, path)):
            cls = check_stock(f"{path}.{i}", block, known, refused)
            # Missing if a patch that has been undone since was on the class when this file was imported.
            _BY_FORWARD.setdefault(cls.forward, kinds[cls.__name__])
            check_untouched(f"{path}.{i}", block)
    names: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for block in (*unet.down_blocks, *unet.up_blocks):
        names[kind_of(block).by_block][type(block).__name__] = None
    if names[True] and names[False]:
        raise UnsupportedUNet(
            f"The U-Net mixes K blocks ({', '.join(names[True])}), which keep one skip each, with blocks that keep one "
            f"per layer ({', '.join(names[False])}). stepcache supports U-Nets of either kind, but no mixture. Run "
            "this pipeline without stepcache."
        )


def layout(unet: nn.Module) -> Layout:
    """The U-Net's joins and skips."""
    block_skips = None
    if kind_of(unet.down_blocks[0]).by_block:
        block_skips = sum(_keeps_skip(block, kind_of(block)) for block in unet.down_blocks)
    return Layout(
        tuple((len(block.resnets), bool(block.downsamplers)) for block in unet.down_blocks),
        tuple((len(block.resnets), bool(_upsampling(block, kind_of(block)))) for block in unet.up_blocks),
        block_skips,
    )


def deep_modules(unet: nn.Module, cut: Cut) -> list[nn.Module]:
    """The modules that a partial step skips."""
    entry = unet.up_blocks[cut.block]
    deep: list[Any] = [unet.mid_block, *unet.up_blocks[: cut.block]]
    deep += [module for layer in _layers(entry, kind_of(entry))[: cut.layer] for module in layer]
    if kind_of(entry).image:
        deep.append(entry.upsampler)  # the feature has the upsampled image
    skips = 0 if cut.by_block else 1  # conv_in's
    for block in unet.down_blocks:
        kind = kind_of(block)
        for layer in _layers(block, kind):
            deep += layer if skips >= cut.skips else ()
            skips += not cut.by_block
        skips += cut.by_block
        if block.downsamplers is not None:
            deep += _downsampling(block, kind) if skips >= cut.skips else ()
            skips += not cut.by_block
    return [module for module in deep if module is not None]


def _layers(block: nn.Module, kind: Kind) -> list[tuple[nn.Module, ...]]:
    return list(zip(block.resnets, block.attentions, strict=True)) if kind.attend else [(r,) for r in block.resnets]


def _downsampling(block: nn.Module, kind: Kind) -> list[nn.Module]:
    return [*block.downsamplers, block.resnet_down, block.skip_conv] if kind.image else list(block.downsamplers)


def _upsampling(block: nn.Module, kind: Kind) -> list[nn.Module]:
    if kind.image:
        return [] if block.resnet_up is None else [block.resnet_up]
    return list(block.upsamplers or ())


def _keeps_skip(block: nn.Module, kind: Kind) -> bool:
    # The deepest K block keeps none if it has attention: its output is what the first up block continues with.
    return kind.attend is None or block.downsamplers is not None


def down_layers(
    block: nn.Module,
    kind: Kind,
    hidden: Tensor,
    temb: Tensor,
    arguments: dict[str, Any],
    skips: list[Any],
    limit: int | None,
    residual: Tensor | None = None,
) -> Tensor:
    """The layers of a down block, up to `limit` skips (None: all layers). Appends the skips it keeps to `skips`.

    arguments: for attentions (`Attend`). residual: added to the last layer's output. Returns the hidden state. A K
    block that keeps no skip appends None.
    """
    last = len(block.resnets) - 1
    layers = zip(block.resnets, block.attentions if kind.attend else block.resnets, strict=True)
    for i, (resnet, attention) in enumerate(layers):
        if len(skips) == limit:
            return hidden
        hidden = resnet(hidden, temb)
        if kind.attend:
            hidden = _attended(kind.attend, attention, hidden, temb, arguments)
        if i == last and residual is not None:
            hidden = hidden + residual
        if not kind.by_block:
            skips.append(hidden)
    if kind.by_block:
        skips.append(hidden if _keeps_skip(block, kind) else None)
    return hidden


def up_layers(
    block: nn.Module,
    kind: Kind,
    hidden: Any,
    temb: Tensor,
    arguments: dict[str, Any],
    skips: list[Any],
    join: JoinFunction,
    first: int = 0,
    stop: int | None = None,
    is_skip: bool = False,
) -> Any:
    """Layers `first` to `stop` - 1 (None: to the last) of an up block. Pops `skips` at their joins.

    hidden: a tensor, or a Blend at the first join of a partial step. is_skip: it is layer 0's skip itself, in a stock
    forward of these inputs. Returns the hidden state.
    """
    layers = zip(block.resnets, block.attentions if kind.attend else block.resnets, strict=True)
    for i, (resnet, attention) in enumerate(layers):
        if i < first:
            continue
        if i == stop:
            break
        skip = None if kind.by_block and i > 0 else skips.pop()
        if skip is None:
            hidden = resnet(hidden, temb)
        else:
            if kind.freeu:
                hidden, skip = freeu(block, hidden, skip, is_skip and i == 0)
            hidden = join(resnet, hidden, skip, temb)
        if kind.attend:
            hidden = _attended(kind.attend, attention, hidden, temb, arguments)
    return hidden


def _attended(attend: Attend, attention: nn.Module, hidden: Tensor, temb: Tensor, arguments: dict[str, Any]) -> Tensor:
    """A layer's attention on `hidden` [B, C, H, W]. In compiled GPU graphs its result has the layout of `hidden`.

    Linear projections leave their output contiguous, and every later convolution and join would convert it. Inductor
    fuses the one conversion here into the kernel that adds the residual, so it is free. In eager mode it would be a
    launch, and on a CPU it would change bits of the stock forward's result.
    """
    attended = attend(attention, hidden, temb, arguments)
    if attended.device.type == "cuda" and torch.compiler.is_compiling():
        return attended.contiguous(memory_format=memory_format_of(hidden))
    return attended


def resampled(samplers: Iterable[nn.Module], hidden: Tensor, temb: Tensor, *size: Any) -> Tensor:
    """Run down- or upsamplers on `hidden`. ResNets among them take the time embedding, others `size`, if given."""
    for sampler in samplers:
        hidden = sampler(hidden, temb) if isinstance(sampler, ResnetBlock2D) else sampler(hidden, *size)
    return hidden
