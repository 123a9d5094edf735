"""Multiply-accumulates of full and partial steps, counted on the meta device: shapes only, no weights.

One MAC is two of torch's FLOPs. As usual, only convolutions, linear layers and attention's two products count, not
normalisation, activations and additions. The resulting bound is on what skipping work alone can give: it does not
consider kernels, the VAE or the text encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidSetting, UnsupportedUNet
from ..reuse.cut import Cut
from . import FAMILIES, family_of
from .join import reference_join

# CLIP's text tokens, on which all U-Nets of Stable Diffusion are conditioned.
TOKENS = 77


@dataclass(frozen=True)
class BranchMacs:
    """What one branch costs: MACs of one U-Net call in a full and a partial step, and the feature's [B, C, H, W]."""

    branch: int
    full_macs: int
    partial_macs: int
    feature_shape: tuple[int, ...]

    @property
    def share(self) -> float:
        """MACs of a partial step over those of a full one, 0 to 1."""
        return self.partial_macs / self.full_macs

    def bound(self, interval: int) -> float:
        """The U-Net's greatest possible speed-up with a uniform schedule of `interval`, if time follows MACs."""
        return interval / (1 + (interval - 1) * self.share)

    def spent(self, kinds: str) -> int:
        """MACs of the U-Net calls of a run, `RunRecord.kinds`."""
        full, partial = calls_by_cost(kinds)
        return full * self.full_macs + partial * self.partial_macs

    def feature_bytes(self, itemsize: int = 2) -> int:
        """Bytes of the cached feature at `itemsize` bytes a value (2: fp16, bf16)."""
        return math.prod(self.feature_shape) * itemsize


def calls_by_cost(kinds: str) -> tuple[int, int]:
    """How many calls of `RunRecord.kinds` cost a full step's MACs, stock ones among them, and how many a partial one's.

    A reused call of guidance ("R") costs nothing.
    """
    partial = kinds.count("P")
    return len(kinds) - partial - kinds.count("R"), partial


def meta_unet(config: Mapping[str, Any]) -> nn.Module:
    """The U-Net of a diffusers `config` (unet/config.json, or `unet.config`) on the meta device: no memory, no weights.

    Raises UnsupportedUNet if the class is not supported, or diffusers cannot build it from the config.
    """
    name = config.get("_class_name", "UNet2DConditionModel")
    if name not in FAMILIES:
        raise UnsupportedUNet(f"{name} is not a U-Net that stepcache knows. Supported: {', '.join(sorted(FAMILIES))}.")
    import diffusers

    try:
        with torch.device("meta"):
            unet: nn.Module = getattr(diffusers, name).from_config(dict(config))
    except Exception as error:  # diffusers may raise anything for a bad config
        raise UnsupportedUNet(
            f"diffusers cannot build a {name} from this config ({type(error).__name__}: {error}). "
            "Check it against the model's own unet/config.json."
        ) from error
    # SVD makes its mixing factors from numbers, so they are on the CPU.
    return unet.to("meta").eval().requires_grad_(False)


def branch_macs(
    unet: nn.Module, height: int, width: int, batch: int = 1, branches: Iterable[int] | None = None
) -> Iterator[BranchMacs]:
    """Yield one BranchMacs for each of `branches` (default: all of the U-Net's), counting each on demand.

    unet: on the meta device, from `meta_unet`. height, width: of the latents. batch: of the U-Net call, twice the
    number of images with guidance. Raises UnsupportedUNet for unknown blocks, conditionings without example inputs and
    latents that the U-Net cannot take, InvalidSetting for a U-Net not on the meta device or a branch it lacks.
    """
    if any(not p.is_meta for p in unet.parameters()):
        raise InvalidSetting("branch_macs() takes a U-Net on the meta device: meta_unet(unet.config).")
    family = family_of(unet)
    layout = family.layout(unet)
    cuts = [layout.cut(m) for m in (range(len(layout.joins)) if branches is None else branches)]
    return _count(unet, family, cuts, example_inputs(unet, height, width, batch))


def _count(unet: nn.Module, family: ModuleType, cuts: list[Cut], inputs: dict[str, Any]) -> Iterator[BranchMacs]:
    from torch.utils.flop_counter import FlopCounterMode

    def macs(function: Callable[..., Any]) -> int:
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                function()
        except (RuntimeError, ValueError) as error:
            size = "x".join(str(n) for n in inputs["sample"].shape[-2:])
            raise UnsupportedUNet(
                f"This U-Net does not run on latents of {size} ({error}). Try a larger size; if that fails too, "
                "its config needs inputs that stepcache does not build."
            ) from error
        return counter.get_total_flops() // 2

    if not cuts:
        return
    shapes: list[tuple[int, ...]] = []
    # The features' shapes come from this one full step, because tracing one for each branch takes most of the time.
    full_macs = macs(lambda: shapes.extend(feature_shapes(unet, inputs)))
    for cut in cuts:
        shape = shapes[cut.branch]
        feature = inputs["sample"].new_empty(shape)
        partial_macs = macs(lambda f=feature, c=cut: family.partial(unet, c, f, **inputs))
        yield BranchMacs(cut.branch, full_macs, partial_macs, shape)


def feature_shapes(unet: nn.Module, inputs: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """The shapes [B, C, H, W] of all branches' features, from one full step on `inputs`."""
    family = family_of(unet)
    layout = family.layout(unet)
    shapes: list[tuple[int, ...]] = []

    def noting_join(resnet: nn.Module, hidden: Tensor, skip: Tensor, temb: Tensor) -> Tensor:
        shapes.append(tuple(hidden.shape))
        return reference_join(resnet, hidden, skip, temb)

    family.full(unet, layout.cut(0), noting_join, **inputs)
    features = []
    for branch, (batch, channels, *size) in enumerate(reversed(shapes)):
        beside = family.image_channels(unet, layout.cut(branch)) if hasattr(family, "image_channels") else 0
        features.append((batch, channels + beside, *size))
    return features


def example_inputs(unet: nn.Module, height: int, width: int, batch: int = 1) -> dict[str, Any]:
    """Inputs of the family's `full` and `partial` for latents of `height` x `width`, with the conditionings of `unet`.

    They come from the family's own `example_inputs`, if it has one. Otherwise they are text-to-image inputs, float32
    zeros on the U-Net's device: sample [B, in_channels, H, W], timestep [1], encoder_hidden_states [B, 77, D], and, if
    the config has them, class labels, LCM's guidance embedding, SDXL's added conditions and image embeddings. Raises
    UnsupportedUNet, with the config's setting, for any other conditioning.
    """
    own = getattr(family_of(unet), "example_inputs", None)
    if own is not None:
        inputs: dict[str, Any] = own(unet, height, width, batch)
        return inputs
    config: Any = unet.config
    device = next(unet.parameters()).device

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    # The hint, an image, becomes four channels of the latents.
    hint = config.addition_embed_type == "image_hint"
    inputs = {"sample": zeros(batch, config.in_channels - 4 * hint, height, width), "timestep": zeros(1)}
    if (text := _text_width(config)) is not None:
        inputs["encoder_hidden_states"] = zeros(batch, TOKENS, text)
    if config.time_cond_proj_dim is not None:
        inputs["timestep_cond"] = zeros(batch, config.time_cond_proj_dim)

    if config.class_embed_type is None and config.num_class_embeds is not None:
        inputs["class_labels"] = zeros(batch, dtype=torch.int64)
    elif config.class_embed_type == "timestep":
        inputs["class_labels"] = zeros(batch)
    elif config.class_embed_type in ("projection", "simple_projection"):
        inputs["class_labels"] = zeros(batch, config.projection_class_embeddings_input_dim)
    elif config.class_embed_type == "identity":
        embedding: Any = unet.time_embedding
        inputs["class_labels"] = zeros(batch, embedding.linear_2.out_features)
    elif config.class_embed_type is not None:
        raise _unknown("class_embed_type", config.class_embed_type)

    added: dict[str, Tensor] = {}
    if config.addition_embed_type == "text_time":
        width_all, width_id = config.projection_class_embeddings_input_dim, config.addition_time_embed_dim
        # The config only has the sum of the two widths. How they divide it does not change the count. SDXL has 6 ids.
        ids = min(6, (width_all - 1) // width_id)
        added = {"text_embeds": zeros(batch, width_all - ids * width_id), "time_ids": zeros(batch, ids)}
    elif config.addition_embed_type == "text_image":
        added["text_embeds"] = zeros(batch, config.cross_attention_dim)
    elif hint:
        added["hint"] = zeros(batch, 3, 8 * height, 8 * width)
    elif config.addition_embed_type not in (None, "text", "image"):
        raise _unknown("addition_embed_type", config.addition_embed_type)
    kinds = config.addition_embed_type, config.encoder_hid_dim_type
    if "text_image" in kinds or "text_image_proj" in kinds:
        added["image_embeds"] = zeros(batch, config.cross_attention_dim)
    elif "image" in kinds or "image_proj" in kinds or hint:
        added["image_embeds"] = zeros(batch, config.encoder_hid_dim)
    return {**inputs, "added_cond_kwargs": added} if added else inputs


def _text_width(config: Any) -> int | None:
    """The width of the U-Net's text embeddings, None if it takes none."""
    if config.encoder_hid_dim_type == "image_proj":
        return None
    if config.encoder_hid_dim_type in ("text_proj", "text_image_proj"):
        return int(config.encoder_hid_dim)
    if config.encoder_hid_dim_type is not None:
        raise _unknown("encoder_hid_dim_type", config.encoder_hid_dim_type)
    widths = config.cross_attention_dim
    if isinstance(widths, int):
        return widths
    if tuple(widths) == tuple(config.block_out_channels):  # AudioLDM: the image attends to itself, twice
        return None
    if len(set(widths)) > 1:
        raise _unknown("cross_attention_dim", list(widths))
    return int(widths[0])


def _unknown(name: str, value: object) -> UnsupportedUNet:
    return UnsupportedUNet(
        f"No example inputs for a U-Net with {name}={value!r}: counting supports text, image embeddings, class labels "
        "and SDXL's text_time. stepcache may still accelerate it; measure it instead."
    )
