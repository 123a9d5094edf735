"""The graphs of one pipe's models, for one run at a time."""

from __future__ import annotations

from dataclasses import dataclass

from .decoder import DecoderGraphs
from .unet import UNetGraphs


@dataclass
class Engine:
    """The U-Net's graphs, and the VAE decoder's with vae=True."""

    unet_graphs: UNetGraphs
    decoder: DecoderGraphs | None = None

    @property
    def static_nbytes(self) -> int:
        decoder = 0 if self.decoder is None else self.decoder.buckets.static_nbytes
        return self.unet_graphs.buckets.static_nbytes + decoder

    def clear(self) -> None:
        """Free all memory."""
        self.unet_graphs.buckets.clear()
        if self.decoder is not None:
            self.decoder.clear()
