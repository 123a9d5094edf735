"""The graphs of one pipe's models, for one run at a time."""

from __future__ import annotations

from dataclasses import dataclass

from .decoder import DecoderGraphs
from .unet import UNetGraphs


@dataclass(eq=False)
class Engine:
    """The U-Net's graphs, and the VAE decoder's with vae=True.

    nbytes: bytes of features, and of captured graphs' inputs and outputs, when last counted.
    """

    unet_graphs: UNetGraphs
    decoder: DecoderGraphs | None = None
    nbytes: tuple[int, int] = (0, 0)

    def count(self) -> None:
        """Count the bytes held. Called between runs, because a run's buckets come and go."""
        decoder = 0 if self.decoder is None else self.decoder.buckets.static_nbytes
        buckets = self.unet_graphs.buckets
        self.nbytes = buckets.nbytes, buckets.static_nbytes + decoder

    def clear(self) -> None:
        """Free all memory."""
        self.nbytes = 0, 0
        self.unet_graphs.buckets.clear()
        if self.decoder is not None:
            self.decoder.clear()
