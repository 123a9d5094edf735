"""Small VAEs of each kind, and their decoder's graphs without a pipeline."""

from contextlib import contextmanager
from types import SimpleNamespace

import diffusers
import torch

from stepcache.graphs.compiled import Compilations
from stepcache.graphs.decoder import DecoderGraphs
from stepcache.graphs.progress import Costs
from stepcache.graphs.settings import GraphSettings
from stepcache.graphs.standin import StandInBackend
from stepcache.pipes.vae import vae_of
from stepcache.run.watch import Interception

CAPTURED = GraphSettings(cuda_graphs=StandInBackend)
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
SMALL = {**BLOCKS, "block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4}
TINY = {"encoder_block_out_channels": (8, 8), "num_encoder_blocks": (1, 1)}

# class -> its arguments, and arguments of its decode() beside the latents [2, 4, 8, 8]
VAES = {
    "AutoencoderKL": (SMALL, {}),
    "AutoencoderTiny": ({**TINY, "decoder_block_out_channels": (8, 8), "num_decoder_blocks": (1, 1)}, {}),
    "AsymmetricAutoencoderKL": (
        {**BLOCKS, "down_block_out_channels": (8, 16), "up_block_out_channels": (8, 16), "norm_num_groups": 4},
        {"image": torch.ones(2, 3, 16, 16), "mask": torch.eye(16).expand(2, 1, 16, 16)},
    ),
    "AutoencoderKLTemporalDecoder": (
        {"down_block_types": BLOCKS["down_block_types"], "block_out_channels": (32, 32)},
        {"num_frames": 2},
    ),
    "VQModel": (
        {**SMALL, "block_out_channels": (32, 32), "norm_type": "spatial", "num_vq_embeddings": 16},
        {"force_not_quantize": True},
    ),
}


def make_vae(name="AutoencoderKL"):
    torch.manual_seed(0)
    return getattr(diffusers, name)(**VAES[name][0]).eval().requires_grad_(False)


def make_latents(batch=2, height=8, width=8):
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(1))


def make_graphs(settings=CAPTURED, max_buckets=4):
    return DecoderGraphs(settings, max_buckets, Costs(), Compilations())


@contextmanager
def run(graphs, vae):
    """A run in which the VAE's decoder has these graphs."""
    _, decoder = vae_of(SimpleNamespace(vae=vae))
    graphs.begin_run(vae, decoder)

    def wrap(stock):
        return lambda *args, **kwargs: graphs.call(decoder, stock, args, kwargs)

    with Interception.on(decoder, "forward", wrap), torch.no_grad():
        yield


def decode(graphs, vae, latents, **kwargs):
    with run(graphs, vae):
        return vae.decode(latents, **kwargs)[0]
