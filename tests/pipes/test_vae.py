"""How large a latent is, by the pipeline's VAE. Decoders: tests/run/test_decoder_in_pipes.py."""

from types import SimpleNamespace

import pytest
from diffusers import DDPMPipeline, DDPMScheduler, KandinskyV22Pipeline
from support.cases.families import kandinsky22
from support.small import tiny_pipe

from stepcache.images.models import Model
from stepcache.pipes.vae import factor_of, pixels_per_latent


def test_by_the_pipelines_own_factor_or_its_vae():
    assert pixels_per_latent(tiny_pipe()) == tiny_pipe().vae_scale_factor == 4
    assert pixels_per_latent(DDPMPipeline(tiny_pipe().unet, DDPMScheduler())) == 1
    assert pixels_per_latent(SimpleNamespace(vqvae=SimpleNamespace(config={}))) == 8  # it does not tell


def test_kandinskys_have_a_vae_without_a_factor():
    pipe = kandinsky22(KandinskyV22Pipeline)
    assert not hasattr(pipe, "vae_scale_factor") and pixels_per_latent(pipe) == pipe.movq_scale_factor == 2
    side = 2 * pipe.unet.config.sample_size
    assert Model("mine", pipe, "trained", ()).size() == (side, side)


@pytest.mark.parametrize(
    "config, factor",
    [({"block_out_channels": [128, 256, 512, 512]}, 8), ({"block_out_channels": []}, None), ({}, None)],
)
def test_each_block_but_one_halves_the_size(config, factor):
    assert factor_of(config) == factor
