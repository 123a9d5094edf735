"""A pipeline's VAE and its decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import AlreadyCached, UnsupportedVAE
from ..values import is_a

# The attributes that hold a pipeline's VAE (Kandinsky: movq).
NAMES = ("vae", "movq", "vqvae")

USUAL = 8
"""Pixels per latent of Stable Diffusion's VAEs."""

# Decoders that are pure functions of tensors, with the VAEs that have them.
DECODERS = {
    "diffusers.models.autoencoders.vae.Decoder": "AutoencoderKL, VQModel",
    "diffusers.models.autoencoders.vae.DecoderTiny": "AutoencoderTiny",
    "diffusers.models.autoencoders.vae.MaskConditionDecoder": "AsymmetricAutoencoderKL",
    "diffusers.models.autoencoders.autoencoder_kl_temporal_decoder.TemporalDecoder": "AutoencoderKLTemporalDecoder",
}


def vae_of(pipe: object) -> tuple[nn.Module, nn.Module]:
    """The pipe's VAE and its decoder.

    Raises UnsupportedVAE, with the types, if there is no VAE, it is no module or its decoder is not known, and
    AlreadyCached if decoding is compiled already.
    """
    vae = next((vae for name in NAMES if (vae := getattr(pipe, name, None)) is not None), None)
    if vae is None:
        raise UnsupportedVAE(f"vae=True, but {type(pipe).__name__} has no VAE ({', '.join(NAMES)}). Leave it False.")
    if not is_a(vae, nn.Module):
        raise UnsupportedVAE(
            f"vae=True, but the pipe's VAE is a {_named(vae)}, which is no torch.nn.Module: a wrapper, perhaps, whose "
            "decode() stepcache does not know. Put the VAE itself into the pipe, or use vae=False to accelerate only "
            "the U-Net."
        )
    decoder = getattr(vae, "decoder", None)
    compiled = type(decoder).__name__ == "OptimizedModule" or getattr(decoder, "_compiled_call_impl", None) is not None
    if compiled or hasattr(vars(vae).get("decode"), "_torchdynamo_orig_callable"):
        raise AlreadyCached(
            f"vae=True, but this {type(vae).__name__}'s decoding is compiled already. Undo that (del vae.decode, or "
            "vae.decoder = vae.decoder._orig_mod), or leave vae=False."
        )
    if _named(decoder) not in DECODERS or not is_a(decoder, nn.Module):
        raise UnsupportedVAE(
            f"vae=True, but the decoder of {type(vae).__name__}, a {_named(decoder)}, is not known. Known are those of "
            f"{', '.join(DECODERS.values())}. Use vae=False to accelerate only the U-Net."
        )
    return vae, decoder


def pixels_per_latent(pipe: object) -> int:
    """Along a side of an image that the pipeline makes; 1 without a VAE, where the U-Net works on the pixels."""
    own = getattr(pipe, "vae_scale_factor", None)
    if own is not None:
        return int(own)
    # Kandinsky's have no vae_scale_factor.
    vae = next((vae for name in NAMES if (vae := getattr(pipe, name, None)) is not None), None)
    return 1 if vae is None else factor_of(vae.config) or USUAL


def factor_of(config: Mapping[str, Any]) -> int | None:
    """Pixels per latent of a VAE's config, as diffusers computes them: each block but one halves the size.

    None if the config does not tell.
    """
    channels = config.get("block_out_channels")
    return 2 ** (len(channels) - 1) if isinstance(channels, (list, tuple)) and channels else None


def _named(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
